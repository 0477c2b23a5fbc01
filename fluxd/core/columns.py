"""The columns of a RecordBatch: counts and lengths that agree, bounded decompression, slices.

`declared_bytes` looks at the numbers only, which are never compressed; `decompressed` yields the bytes, in memory of at
most their declared size and a little. Both refuse anything odd with CorruptDataError.

`fluxlog.batch` has its own reader of the same layout: the server shares nothing with the client library but the stubs.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from operator import lt

import lz4.frame
import zstandard

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxlog.v1 import record_pb2

_CODECS = frozenset(record_pb2.Codec.values())
_ZSTD_WINDOW_BYTES_MAX = limits.BATCH_UNCOMPRESSED_BYTES_MAX


def declared_bytes(batch: record_pb2.RecordBatch) -> int:
    """Verify that counts, lengths and nulls agree.

    Returns:
        Declared size of the columns after decompression, bytes; any number.

    Raises:
        CorruptDataError: they do not.
    """
    count = batch.record_count
    if not 1 <= count <= limits.BATCH_RECORDS_MAX:
        raise CorruptDataError(f"record_count is {count}, must be 1..{limits.BATCH_RECORDS_MAX}")
    if batch.codec not in _CODECS:
        raise CorruptDataError(f"unknown codec {batch.codec}")
    _check_count("timestamp_deltas_ms", len(batch.timestamp_deltas_ms), count, or_empty=True)
    _check_count("value_lengths", len(batch.value_lengths), count)
    declared = _check_nulls("value", batch.value_lengths[:], batch.null_values[:])
    _check_count("key_lengths", len(batch.key_lengths), count, or_empty=True)
    declared += _check_nulls("key", batch.key_lengths[:], batch.null_keys[:])
    _check_count("header_counts", len(batch.header_counts), count, or_empty=True)
    headers = sum(batch.header_counts[:])
    _check_count("header_key_lengths", len(batch.header_key_lengths), headers)
    _check_count("header_value_lengths", len(batch.header_value_lengths), headers)
    declared += sum(batch.header_key_lengths[:])
    return declared + _check_nulls("header value", batch.header_value_lengths[:], batch.null_header_values[:])


def _check_count(name: str, actual: int, expected: int, *, or_empty: bool = False) -> None:
    if actual != expected and not (or_empty and actual == 0):
        raise CorruptDataError(f"{name} has {actual} numbers, must have {expected}")


def _check_nulls(name: str, lengths: Sequence[int], nulls: Sequence[int]) -> int:
    if nulls:
        if nulls[-1] >= len(lengths) or not all(map(lt, nulls, nulls[1:])):
            raise CorruptDataError(f"the numbers of null {name}s are not strictly ascending below {len(lengths)}")
        if any(map(lengths.__getitem__, nulls)):
            raise CorruptDataError(f"a null {name} has a length above 0")
    return sum(lengths)


def packed_sum(packed: bytes, count: int) -> int | None:
    """The sum of packed numbers, where each has one byte or each has two, without making a number of each.

    Returns:
        None where it is another shape, or another count: the parser should judge.
    """
    if len(packed) == count:
        return sum(packed) if packed.isascii() else None
    low, high = packed[::2], packed[1::2]
    if len(low) == len(high) == count and high.isascii() and min(low) >= 0x80:
        return sum(low) + 128 * (sum(high) - count)
    return None


def check_size(actual: int, declared: int) -> None:
    """Verify that uncompressed columns have the declared size, bytes.

    Raises:
        CorruptDataError: otherwise.
    """
    if actual != declared:
        raise CorruptDataError(f"the lengths add up to {declared} bytes, the columns have {actual}")


def check_header_keys(batch: record_pb2.RecordBatch, columns: bytes) -> None:
    """Verify that header keys are UTF-8.

    Raises:
        CorruptDataError: otherwise.
    """
    start = sum(batch.value_lengths[:]) + sum(batch.key_lengths[:])
    if not columns[start : start + sum(batch.header_key_lengths[:])].isascii():
        header_keys(batch, columns)


def header_keys(batch: record_pb2.RecordBatch, columns: bytes) -> list[str]:
    """One per header, over all records.

    Raises:
        CorruptDataError: one is not UTF-8.
    """
    start = sum(batch.value_lengths[:]) + sum(batch.key_lengths[:])
    try:
        return [key.decode() for key in slices(columns, start, batch.header_key_lengths[:])]
    except UnicodeDecodeError as error:
        raise CorruptDataError("a header key is not UTF-8") from error


def slices(columns: bytes, start: int, lengths: Sequence[int]) -> list[bytes]:
    """One column, taken apart."""
    end = start
    return [columns[end : (end := end + length)] for length in lengths]


def with_nulls(column: list[bytes], nulls: Sequence[int]) -> list[bytes | None]:
    """A copy in which the records of these numbers are null."""
    out: list[bytes | None] = [*column]
    for number in nulls:
        out[number] = None
    return out


def decompressed(batch: record_pb2.RecordBatch) -> bytes:
    """The columns of a batch that was not checked, or only as `check_batch` does.

    Returns:
        As many bytes as the lengths add up to, at most limits.BATCH_UNCOMPRESSED_BYTES_MAX. Never more memory than that
        and the codec's window (16 MiB at most) is taken, whatever the compressed bytes say.

    Raises:
        CorruptDataError: counts and lengths disagree, the codec refuses, or the size is not the declared one.
    """
    declared = declared_bytes(batch)
    if declared > limits.BATCH_UNCOMPRESSED_BYTES_MAX:
        raise CorruptDataError(f"declares {declared} bytes, over {limits.BATCH_UNCOMPRESSED_BYTES_MAX}")
    deltas = batch.offset_deltas[:]
    _check_count("offset_deltas", len(deltas), batch.record_count, or_empty=True)
    if not all(map(lt, deltas, deltas[1:])):
        raise CorruptDataError("offset_deltas are not strictly ascending")
    try:
        columns = _decompress(batch.codec, batch.columns, declared)
    except (zstandard.ZstdError, zlib.error, RuntimeError) as error:  # lz4 raises RuntimeError
        raise CorruptDataError(f"columns cannot be decompressed: {error}") from error
    check_size(len(columns), declared)
    check_header_keys(batch, columns)
    return columns


def _decompress(codec: int, data: bytes, declared: int) -> bytes:
    """One frame and nothing behind it; what yields more than `declared` bytes is refused when that shows."""
    if codec == record_pb2.CODEC_NONE:
        return data
    if codec == record_pb2.CODEC_ZSTD:
        content_bytes = zstandard.get_frame_parameters(data).content_size
        if content_bytes not in (declared, zstandard.CONTENTSIZE_UNKNOWN):
            raise CorruptDataError(f"the zstd frame holds {content_bytes} bytes, the lengths add up to {declared}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
        return decompressor.decompress(data, max_output_size=max(declared, 1), allow_extra_data=False)
    stream = lz4.frame.LZ4FrameDecompressor() if codec == record_pb2.CODEC_LZ4 else zlib.decompressobj(wbits=31)
    # One byte of room more than declared: a longer content shows, and the end of the frame is always reached.
    columns: bytes = stream.decompress(data, declared + 1)
    if not stream.eof or stream.unused_data:
        raise CorruptDataError("the columns are not one whole compressed frame of the declared size")
    return columns
