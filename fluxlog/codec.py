"""Compression of a batch's columns: one whole frame, sizes known beforehand, memory bounded whatever the bytes are."""

from __future__ import annotations

import zlib
from enum import IntEnum

import lz4.frame
import zstandard

from fluxlog.v1 import record_pb2

ZSTD_WINDOW_BYTES_MAX = 16 * 1024 * 1024
"""Frames that need a larger window are refused; zstd's levels up to 19 need 8 MiB."""


class Codec(IntEnum):
    """As in record.proto."""

    NONE = record_pb2.CODEC_NONE
    ZSTD = record_pb2.CODEC_ZSTD
    LZ4 = record_pb2.CODEC_LZ4
    GZIP = record_pb2.CODEC_GZIP


class CodecError(Exception):
    """The bytes are not one whole frame of the codec with the declared size."""


def compress(codec: Codec, data: bytes, level: int | None = None) -> bytes:
    """Compress columns.

    Args:
        level: of the codec (zstd 1..22, lz4 0..16, gzip 0..9); None is its default (3, 0, 6).

    Raises:
        ValueError: the codec has no such level.
    """
    match codec:
        case Codec.NONE:
            return data
        case Codec.ZSTD:
            # With levels above 19 the window could be larger than readers allow; it is not, since the size is known.
            return zstandard.ZstdCompressor(level=3 if level is None else level).compress(data)
        case Codec.LZ4:
            compressed: bytes = lz4.frame.compress(data, compression_level=level or 0)
            return compressed
        case Codec.GZIP:
            try:
                compressor = zlib.compressobj(level=-1 if level is None else level, wbits=31)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            return compressor.compress(data) + compressor.flush()


def decompress(codec: Codec, data: bytes, declared_bytes: int) -> bytes:
    """Decompress columns whose size is known.

    Returns:
        Exactly `declared_bytes` bytes. Memory: these and the codec's window (16 MiB at most), whatever `data` says.

    Raises:
        CodecError: not one whole frame, bytes behind it, or another size than declared.
    """
    try:
        columns = _decompress(codec, data, declared_bytes)
    except (zstandard.ZstdError, zlib.error, RuntimeError) as error:  # lz4 raises RuntimeError
        raise CodecError(f"{codec.name}: {error}") from error
    if len(columns) != declared_bytes:
        raise CodecError(f"{codec.name}: {len(columns)} bytes, the lengths add up to {declared_bytes}")
    return columns


def _decompress(codec: Codec, data: bytes, declared_bytes: int) -> bytes:
    if codec is Codec.NONE:
        return data
    if codec is Codec.ZSTD:
        content_bytes = zstandard.get_frame_parameters(data).content_size
        # The decompressor would believe the frame and allocate what it says.
        if content_bytes not in (declared_bytes, zstandard.CONTENTSIZE_UNKNOWN):
            raise CodecError(f"ZSTD: the frame holds {content_bytes} bytes, the lengths add up to {declared_bytes}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        return decompressor.decompress(data, max_output_size=max(declared_bytes, 1), allow_extra_data=False)
    stream = lz4.frame.LZ4FrameDecompressor() if codec is Codec.LZ4 else zlib.decompressobj(wbits=31)
    # One byte of room more than declared: a longer content shows, and the end of the frame is always reached.
    columns: bytes = stream.decompress(data, declared_bytes + 1)
    if not stream.eof or stream.unused_data:
        raise CodecError(f"{codec.name}: not one whole frame of {declared_bytes} bytes")
    return columns
