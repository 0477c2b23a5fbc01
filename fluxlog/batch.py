"""Encoding and decoding of RecordBatch, column by column: thousands of records cost a handful of calls into C.

What `encode_batch` returns is what the log stores and what every consumer reads; layout and bounds are in record.proto.
`decode_batch` checks everything at once, so that nothing which is asked of a DecodedBatch later can fail.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from operator import lt
from typing import NamedTuple

from crc32c import crc32c
from google.protobuf.message import DecodeError

from fluxlog.codec import Codec, CodecError, compress, decompress
from fluxlog.framing import encode_varint
from fluxlog.v1 import record_pb2

__all__ = [
    "BATCH_BYTES_MAX", "BATCH_RECORDS_MAX", "BATCH_UNCOMPRESSED_BYTES_MAX", "BatchTooLargeError", "Codec",
    "CorruptBatchError", "DecodedBatch", "Headers", "Record", "crc32c_of", "decode_batch", "encode_batch",
]  # fmt: skip

BATCH_RECORDS_MAX = 65_536
BATCH_BYTES_MAX = 1024 * 1024
"""Encoded batch."""
BATCH_UNCOMPRESSED_BYTES_MAX = 16 * 1024 * 1024
"""All values, keys and headers of a batch together."""

Headers = Sequence[tuple[str, bytes | None]]

_COLUMNS_TAG = b"\x82\x01"
_CODECS = {int(codec): codec for codec in Codec}


class CorruptBatchError(Exception):
    """Bytes are not a valid RecordBatch: the one error that decoding raises."""


class BatchTooLargeError(ValueError):
    """More records or bytes than a batch may have; divide them."""


class Record(NamedTuple):
    """One record. None is null, which is not the same as empty; a null value is a tombstone."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int = 0
    """The producer's time, Unix milliseconds."""


def crc32c_of(data: bytes) -> int:
    """CRC-32C of an encoded batch, for ProduceRequest.batch_crc32c."""
    return crc32c(data)


# ---- encoding


def encode_batch(
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    timestamps_ms: int | Sequence[int] | None = None,
    producer_id: bytes = b"",
    base_sequence: int = 0,
    codec: Codec = Codec.NONE,
    level: int | None = None,
) -> bytes:
    """Encode records.

    Args:
        values: one per record, 1..BATCH_RECORDS_MAX of them; None is null.
        keys: one per record; None: all are null.
        headers: name and value pairs of each record; None: there are none.
        timestamps_ms: one per record, or one for all, Unix milliseconds; None: now.
        producer_id: 16 bytes with base_sequence, or empty: then a resend may be written twice.
        base_sequence: sequence number of the first record.
        level: of the codec; None is its default.

    Returns:
        The encoded batch, at most BATCH_BYTES_MAX bytes.

    Raises:
        BatchTooLargeError: too many records, or too many bytes before or after compression.
        ValueError: no record, a column of another length, or a number out of its bounds.
    """
    count = len(values)
    if not count:
        raise ValueError("a batch has at least one record")
    if count > BATCH_RECORDS_MAX:
        raise BatchTooLargeError(f"{count} records, a batch has at most {BATCH_RECORDS_MAX}")
    batch = record_pb2.RecordBatch(
        record_count=count, codec=codec.value, producer_id=producer_id, base_sequence=base_sequence
    )
    _set_timestamps(batch, timestamps_ms)
    column, lengths, nulls = _column(values)
    batch.value_lengths.extend(lengths)
    batch.null_values.extend(nulls)
    columns = [column]
    columns_bytes = sum(lengths)
    if keys is not None:
        columns_bytes += _add_keys(batch, keys, columns)
    if headers is not None:
        columns_bytes += _add_headers(batch, headers, columns)
    if columns_bytes > BATCH_UNCOMPRESSED_BYTES_MAX:
        raise BatchTooLargeError(f"{columns_bytes} bytes, a batch has at most {BATCH_UNCOMPRESSED_BYTES_MAX}")
    if codec is not Codec.NONE:
        compressed = compress(codec, b"".join(chain.from_iterable(columns)), level)
        columns, columns_bytes = [[compressed]], len(compressed)
    # The last field is written by hand: the records are copied once, into what is sent.
    head = (batch.SerializeToString(), _COLUMNS_TAG, encode_varint(columns_bytes))
    data = b"".join(chain(head, *columns))
    if len(data) > BATCH_BYTES_MAX:
        raise BatchTooLargeError(f"{len(data)} bytes encoded, a batch has at most {BATCH_BYTES_MAX}")
    return data


def _column(items: Sequence[bytes | None]) -> tuple[Sequence[bytes], list[int], list[int]]:
    """The items with nulls made empty, their lengths, and which are null."""
    try:
        # Without a null this is all; a null is found by the error that it makes.
        return items, list(map(len, items)), []  # type: ignore[arg-type,return-value]
    except TypeError:
        filled = [b"" if item is None else item for item in items]
        return filled, list(map(len, filled)), [i for i, item in enumerate(items) if item is None]


def _check_rows(name: str, rows: int, count: int) -> None:
    if rows != count:
        raise ValueError(f"{rows} {name} for {count} values")


def _set_timestamps(batch: record_pb2.RecordBatch, timestamps_ms: int | Sequence[int] | None) -> None:
    if timestamps_ms is None:
        timestamps_ms = time.time_ns() // 1_000_000
    if isinstance(timestamps_ms, int):
        batch.base_timestamp_ms = timestamps_ms
        return
    _check_rows("timestamps", len(timestamps_ms), batch.record_count)
    base = batch.base_timestamp_ms = timestamps_ms[0]
    deltas = [timestamp - base for timestamp in timestamps_ms]
    if any(deltas):
        try:
            batch.timestamp_deltas_ms.extend(deltas)
        except ValueError:  # a difference over 64 bits
            del batch.timestamp_deltas_ms[:]
            batch.timestamp_deltas_ms.extend(map(_wrapped, deltas))


def _add_keys(batch: record_pb2.RecordBatch, keys: Sequence[bytes | None], columns: list[Sequence[bytes]]) -> int:
    """Returns: the size of the column, bytes."""
    _check_rows("keys", len(keys), batch.record_count)
    column, lengths, nulls = _column(keys)
    if len(nulls) < batch.record_count:
        batch.key_lengths.extend(lengths)
        batch.null_keys.extend(nulls)
        columns.append(column)
    return sum(lengths)


def _add_headers(batch: record_pb2.RecordBatch, headers: Sequence[Headers], columns: list[Sequence[bytes]]) -> int:
    """Returns: the size of both columns, bytes."""
    _check_rows("rows of headers", len(headers), batch.record_count)
    pairs = list(chain.from_iterable(headers))
    if not pairs:
        return 0
    names = [name.encode() for name, _ in pairs]
    name_lengths = list(map(len, names))
    column, lengths, nulls = _column([value for _, value in pairs])
    batch.header_counts.extend(map(len, headers))
    batch.header_key_lengths.extend(name_lengths)
    batch.header_value_lengths.extend(lengths)
    batch.null_header_values.extend(nulls)
    columns += (names, column)
    return sum(name_lengths) + sum(lengths)


def _wrapped(number: int) -> int:
    """To 64 bits with sign: sums and differences of timestamps wrap, as they do in other languages."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


# ---- decoding


def decode_batch(data: bytes | record_pb2.RecordBatch) -> DecodedBatch:
    """Decode a batch: of any bytes, or of a message that was already parsed.

    Memory is bounded by the size of `data`, and BATCH_UNCOMPRESSED_BYTES_MAX (twice, while it is decompressed).

    Raises:
        CorruptBatchError: it is not a valid batch, or cannot be decompressed.
    """
    if isinstance(data, record_pb2.RecordBatch):
        return DecodedBatch(data)
    try:
        return DecodedBatch(record_pb2.RecordBatch.FromString(data))
    except DecodeError as error:
        raise CorruptBatchError("the bytes are not a RecordBatch") from error


class DecodedBatch:
    """A checked batch. Columns are taken apart when they are first asked for; lists are shared, do not change them.

    Args:
        message: not to be changed afterwards.

    Raises:
        CorruptBatchError: as `decode_batch`.
    """

    __slots__ = (
        "_columns", "_header_rows", "_key_lengths", "_keys", "_message", "_value_lengths", "_values", "_values_bytes",
    )  # fmt: skip

    def __init__(self, message: record_pb2.RecordBatch) -> None:
        self._message = message
        self._value_lengths = message.value_lengths[:]
        self._key_lengths = message.key_lengths[:]
        self._values_bytes = sum(self._value_lengths)
        self._columns = _checked_columns(message, self._values_bytes, self._value_lengths, self._key_lengths)
        self._values: list[bytes | None] | None = None
        self._keys: list[bytes | None] | None = None
        self._header_rows: list[Headers] | None = None
        if message.header_counts:
            names = self._columns[self._headers_start :][: sum(message.header_key_lengths[:])]
            if not names.isascii():
                self._rows()

    def __len__(self) -> int:
        return self._message.record_count

    def __iter__(self) -> Iterator[Record]:
        return map(Record._make, zip(self.values(), self.keys(), self._rows(), self.timestamps(), strict=True))

    @property
    def producer_id(self) -> bytes:
        """16 bytes, or empty."""
        return self._message.producer_id

    @property
    def base_sequence(self) -> int:
        """Sequence number of the first record; with a producer id only."""
        return self._message.base_sequence

    @property
    def codec(self) -> Codec:
        """How the columns were compressed."""
        return _CODECS[self._message.codec]

    def values(self) -> list[bytes | None]:
        """One per record."""
        if self._values is None:
            self._values = _slices(self._columns, 0, self._value_lengths, self._message.null_values)
        return self._values

    def keys(self) -> list[bytes | None]:
        """One per record."""
        if self._keys is None:
            keys = _slices(self._columns, self._values_bytes, self._key_lengths, self._message.null_keys)
            self._keys = keys or [None] * len(self)
        return self._keys

    def headers(self, number: int) -> Headers:
        """Headers of record `number`, 0..len-1."""
        return self._rows()[number]

    def timestamps(self) -> list[int]:
        """The producer's times, Unix milliseconds, one per record."""
        base, deltas = self._message.base_timestamp_ms, self._message.timestamp_deltas_ms[:]
        if not deltas:
            return [base] * len(self)
        times = [base + delta for delta in deltas]
        if min(times) >= -(1 << 63) and max(times) < 1 << 63:
            return times
        return list(map(_wrapped, times))

    def offsets(self, base_offset: int) -> Sequence[int]:
        """One per record, ascending, when the batch begins at `base_offset`. Dense unless the log was compacted."""
        deltas = self._message.offset_deltas
        if not deltas:
            return range(base_offset, base_offset + len(self))
        return [base_offset + delta for delta in deltas]

    def record(self, number: int) -> Record:
        """Record `number`, 0..len-1."""
        deltas = self._message.timestamp_deltas_ms
        timestamp_ms = self.timestamps()[number] if deltas else self._message.base_timestamp_ms
        return Record(self.values()[number], self.keys()[number], self.headers(number), timestamp_ms)

    @property
    def _headers_start(self) -> int:
        return self._values_bytes + sum(self._key_lengths)

    def header_rows(self) -> list[Headers]:
        """One row per record."""
        return self._rows()

    def _rows(self) -> list[Headers]:
        if self._header_rows is None:
            message = self._message
            if not message.header_counts:
                self._header_rows = [()] * len(self)
                return self._header_rows
            name_lengths = message.header_key_lengths[:]
            start = self._headers_start
            names = _slices(self._columns, start, name_lengths, ())
            values = _slices(
                self._columns, start + sum(name_lengths), message.header_value_lengths[:], message.null_header_values
            )
            try:
                pairs = [(name.decode(), value) for name, value in zip(names, values, strict=True) if name is not None]
            except UnicodeDecodeError as error:
                raise CorruptBatchError("a header key is not UTF-8") from error
            ends = accumulate(message.header_counts[:], initial=0)
            self._header_rows = [tuple(pairs[begin:end]) for begin, end in pairwise(ends)]
        return self._header_rows


def _slices(columns: bytes, start: int, lengths: Sequence[int], nulls: Sequence[int]) -> list[bytes | None]:
    end = start
    out: list[bytes | None] = [columns[end : (end := end + length)] for length in lengths]
    for number in nulls:
        out[number] = None
    return out


def _checked_columns(
    message: record_pb2.RecordBatch, values_bytes: int, value_lengths: Sequence[int], key_lengths: Sequence[int]
) -> bytes:
    """Verify all counts, lengths and nulls; then decompress."""
    count = message.record_count
    if not 1 <= count <= BATCH_RECORDS_MAX:
        raise CorruptBatchError(f"record_count is {count}, must be 1..{BATCH_RECORDS_MAX}")
    if message.codec not in _CODECS:
        raise CorruptBatchError(f"unknown codec {message.codec}")
    header_value_lengths = message.header_value_lengths[:]
    headers = sum(message.header_counts[:])
    _check_count("value_lengths", len(value_lengths), count)
    _check_count("key_lengths", len(key_lengths) or count, count)
    _check_count("timestamp_deltas_ms", len(message.timestamp_deltas_ms) or count, count)
    _check_count("header_counts", len(message.header_counts) or count, count)
    _check_count("header_key_lengths", len(message.header_key_lengths), headers)
    _check_count("header_value_lengths", len(header_value_lengths), headers)
    _check_count("offset_deltas", len(message.offset_deltas) or count, count)
    _check_ascending("offset_deltas", message.offset_deltas[:])
    _check_nulls("null_values", value_lengths, message.null_values[:])
    _check_nulls("null_keys", key_lengths, message.null_keys[:])
    _check_nulls("null_header_values", header_value_lengths, message.null_header_values[:])
    declared = values_bytes + sum(key_lengths) + sum(message.header_key_lengths[:]) + sum(header_value_lengths)
    if declared > BATCH_UNCOMPRESSED_BYTES_MAX:
        raise CorruptBatchError(f"the lengths add up to {declared} bytes, over {BATCH_UNCOMPRESSED_BYTES_MAX}")
    try:
        return decompress(_CODECS[message.codec], message.columns, declared)
    except CodecError as error:
        raise CorruptBatchError(f"the columns cannot be decompressed: {error}") from error


def _check_count(name: str, actual: int, expected: int) -> None:
    if actual != expected:
        raise CorruptBatchError(f"{name} has {actual} numbers, must have {expected}")


def _check_ascending(name: str, numbers: Sequence[int]) -> None:
    if not all(map(lt, numbers, numbers[1:])):
        raise CorruptBatchError(f"{name} is not strictly ascending")


def _check_nulls(name: str, lengths: Sequence[int], nulls: Sequence[int]) -> None:
    if nulls:
        _check_ascending(name, nulls)
        if nulls[-1] >= len(lengths) or any(map(lengths.__getitem__, nulls)):
            raise CorruptBatchError(f"{name} names a record that does not exist or has a length above 0")
