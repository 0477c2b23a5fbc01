"""What is inside a producer's batch: the leader's one check, and the way from and to plain records.

A batch is checked once, by the leader, before it is appended (`check_batch`). What passes uncompressed is decodable by
every reader. Columns that are compressed stay compressed: whether they can be decompressed shows at the reader, and one
who cannot steps over that batch (`UndecodableBatchError` says where to).

A batch must have the shape that generated code gives it: each field at most once, repeated numbers packed, no field
that this server does not know. The reasons: an unknown field may be a column that was not checked; unknown groups so
deep that they just pass here would go over the recursion limit of readers, who see the batch two levels deeper (entries
that nobody could read past); and the work of a check stays bounded. So servers are upgraded before clients.

Deliberately absent: the encoder of clients (`fluxlog.batch`), which the server does not need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from google.protobuf.message import DecodeError

from fluxd.core import entry, limits
from fluxd.core.columns import (
    check_header_keys,
    check_size,
    declared_bytes,
    decompressed,
    header_keys,
    packed_sum,
    slices,
    with_nulls,
)
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxd.core.types import PRODUCER_ID_BYTES, Offset
from fluxlog.v1 import record_pb2

_COLUMNS_TAG = 0x82
"""First byte of the tag of field 16; 0x01 follows. All others have one byte."""
_VARINT_TAGS = frozenset((0x08, 0x10, 0x20, 0x28))
_BYTES_TAGS = frozenset((0x1A, 0x32, 0x3A, 0x42, 0x4A, 0x52, 0x5A, 0x62, 0x6A, 0x72, 0x7A, _COLUMNS_TAG))
_PRODUCER_TAGS = (0x08, 0x1A, 0x20)
"""record_count, producer_id, base_sequence."""
_PLAIN = (0x08, 0x1A, 0x20, 0x28, 0x42, _COLUMNS_TAG)
"""record_count, producer_id, base_sequence, base_timestamp_ms, value_lengths, columns."""
_PLAIN_TAGS = frozenset(_PLAIN)
_HEAD_BYTES_MAX = 6
"""Tag and length of a field, as the parser takes them."""
_UINT32_MAX, _UINT64_MAX = (1 << 32) - 1, (1 << 64) - 1


class BatchInfo(NamedTuple):
    """What the log has to know of a batch."""

    record_count: int
    producer_id: bytes
    """16 bytes, or empty: no duplicate detection."""
    base_sequence: int


class UndecodableBatchError(CorruptDataError):
    """A stored batch cannot be turned into records. A reader goes on at `next_offset`.

    Args:
        base_offset: of the batch's first record.
        next_offset: first offset after the batch.
    """

    def __init__(self, message: str, base_offset: Offset, next_offset: Offset) -> None:
        super().__init__(f"the batch at offsets {base_offset}..{next_offset - 1} cannot be decoded: {message}")
        self.base_offset = base_offset
        self.next_offset = next_offset


# ---- what the leader checks


def check_batch(data: bytes | memoryview) -> BatchInfo:
    """Check a batch that a producer sent: shape, counts, lengths, bounds. Nothing is decompressed.

    Args:
        data: encoded RecordBatch, of any size and content.

    Raises:
        FluxError: BATCH_TOO_LARGE or CORRUPT_BATCH, both REJECTED, with what is wrong.
    """
    if len(data) > limits.BATCH_BYTES_MAX:
        raise _too_large(f"the batch has {len(data)} bytes, at most {limits.BATCH_BYTES_MAX} are allowed")
    try:
        fields = _fields(data)
        return _plain(data, fields) or _checked_in_full(data, fields)
    except CorruptDataError as error:
        raise FluxError(Reason.CORRUPT_BATCH, f"not a valid batch: {error}") from error


def _checked_in_full(data: bytes | memoryview, fields: dict[int, _Field]) -> BatchInfo:
    columns = fields.get(_COLUMNS_TAG) or _Field(len(data), 0, len(data))
    # Without its largest field, which the parser would copy.
    batch = _parse(b"".join((data[: columns.start], data[columns.end :])))
    if batch.record_count > limits.BATCH_RECORDS_MAX:
        raise _too_large(f"the batch has {batch.record_count} records, at most {limits.BATCH_RECORDS_MAX} are allowed")
    _check_producer(batch)
    if batch.offset_deltas:
        raise CorruptDataError("offset_deltas must be empty in what a producer sends")
    declared = declared_bytes(batch)
    if declared > limits.BATCH_UNCOMPRESSED_BYTES_MAX:
        raise _too_large(
            f"the batch declares {declared} bytes of records, at most {limits.BATCH_UNCOMPRESSED_BYTES_MAX} are allowed"
        )
    if batch.codec == record_pb2.CODEC_NONE:
        check_size(columns.number, declared)
        if batch.header_counts:
            check_header_keys(batch, bytes(data[columns.end - columns.number : columns.end]))
    return BatchInfo(batch.record_count, batch.producer_id, batch.base_sequence)


def _plain(data: bytes | memoryview, fields: dict[int, _Field]) -> BatchInfo | None:
    """What the check finds of a valid batch of the most frequent shape: values only, one time for all, no compression.

    Returns:
        None: another shape, or not valid: for the parser and the full check, which take three to five times as long.
    """
    if not fields.keys() <= _PLAIN_TAGS:
        return None
    record_count, producer, base_sequence, time_ms, lengths, columns = (fields.get(tag, _ABSENT) for tag in _PLAIN)
    count, sequence = record_count.number, base_sequence.number
    if (
        not 1 <= count <= limits.BATCH_RECORDS_MAX
        or producer.number not in ((PRODUCER_ID_BYTES,) if sequence else (0, PRODUCER_ID_BYTES))
        or max(sequence + count, time_ms.number) > _UINT64_MAX
        or producer.end - producer.number - producer.start > _HEAD_BYTES_MAX
        or lengths.end - lengths.number - lengths.start > _HEAD_BYTES_MAX
        or packed_sum(bytes(data[lengths.end - lengths.number : lengths.end]), count) != columns.number
        or columns.number > limits.BATCH_UNCOMPRESSED_BYTES_MAX
    ):
        return None
    return BatchInfo(count, bytes(data[producer.end - producer.number : producer.end]), sequence)


def producer_of(data: bytes | memoryview) -> BatchInfo:
    """What `check_batch` answered for a batch of the log; not checked again.

    Raises:
        CorruptDataError: the bytes are not a RecordBatch.
    """
    fields = _fields(data)
    record_count, producer, base_sequence = (fields.get(tag, _ABSENT) for tag in _PRODUCER_TAGS)
    producer_id = bytes(data[producer.end - producer.number : producer.end])
    return BatchInfo(record_count.number & _UINT32_MAX, producer_id, base_sequence.number & _UINT64_MAX)


def _too_large(message: str) -> FluxError:
    return FluxError(Reason.BATCH_TOO_LARGE, message)


def _parse(data: bytes | memoryview) -> record_pb2.RecordBatch:
    try:
        return record_pb2.RecordBatch.FromString(data)  # type: ignore[arg-type]  # takes any buffer
    except DecodeError as error:
        raise CorruptDataError("the bytes are not a RecordBatch") from error


class _Field(NamedTuple):
    """Where a field stands, and its number: a varint's value, else the length of the content, which ends at `end`."""

    start: int
    number: int
    end: int


_ABSENT = _Field(0, 0, 0)


def _fields(data: bytes | memoryview) -> dict[int, _Field]:
    """By tag. Each known field at most once, and no other: at most 16 steps, whatever the bytes are."""
    position, end = 0, len(data)
    fields: dict[int, _Field] = {}
    while position < end:
        start, tag = position, data[position]
        if tag in fields:
            raise CorruptDataError(f"field {_field_of(tag)} occurs twice; repeated numbers must be packed")
        position += 1
        if tag == _COLUMNS_TAG:
            if data[position : position + 1] != b"\x01":
                raise CorruptDataError(f"unknown field at byte {start}")
            position += 1
        number, position = _read_varint(data, position)
        if tag in _BYTES_TAGS:
            position += number
        elif tag not in _VARINT_TAGS:
            raise CorruptDataError(f"unknown field or wire type, tag {tag:#x} at byte {start}")
        fields[tag] = _Field(start, number, position)
    if position > end:
        raise CorruptDataError("the batch is cut off")
    return fields


def _field_of(tag: int) -> int:
    return 16 if tag == _COLUMNS_TAG else tag >> 3


def _read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    for byte in data[position : position + 10]:
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    raise CorruptDataError("a number is cut off")


def _check_producer(batch: record_pb2.RecordBatch) -> None:
    producer_id_bytes = len(batch.producer_id)
    if producer_id_bytes not in (0, PRODUCER_ID_BYTES):
        raise CorruptDataError(f"producer_id has {producer_id_bytes} bytes, must have 0 or {PRODUCER_ID_BYTES}")
    if not producer_id_bytes and batch.base_sequence:
        raise CorruptDataError("base_sequence without producer_id")
    if batch.base_sequence + batch.record_count > _UINT64_MAX:
        raise CorruptDataError(f"base_sequence {batch.base_sequence} + {batch.record_count} records is over 2^64 - 1")


# ---- from and to plain records


def batch_from_records(
    records: Sequence[record_pb2.Record], producer_id: bytes, base_sequence: int, now_ms: int
) -> bytes:
    """Encode what a client sent as plain records. The result passes `check_batch`.

    Args:
        records: their offsets are ignored.
        producer_id: 16 bytes, or empty.
        now_ms: stands in for a timestamp of 0, Unix milliseconds.

    Raises:
        FluxError: INVALID_ARGUMENT (no record, producer id) or BATCH_TOO_LARGE; nothing was written.
    """
    if not records:
        raise FluxError(Reason.INVALID_ARGUMENT, "the request has neither a batch nor records")
    if len(records) > limits.BATCH_RECORDS_MAX:
        raise _too_large(f"the request has {len(records)} records, at most {limits.BATCH_RECORDS_MAX} are allowed")
    headers = [header for record in records for header in record.headers]
    columns = (
        [record.value for record in records],
        [record.key for record in records],
        [header.key.encode() for header in headers],
        [header.value for header in headers],
    )
    value_lengths, key_lengths, header_key_lengths, header_value_lengths = (
        list(map(len, column)) for column in columns
    )
    has_keys = any(record.HasField("key") for record in records)
    base_timestamp_ms, *timestamps = (record.timestamp_ms or now_ms for record in records)
    deltas = [0, *(_wrapped(timestamp - base_timestamp_ms) for timestamp in timestamps)]
    batch = record_pb2.RecordBatch(
        record_count=len(records),
        producer_id=producer_id,
        base_sequence=base_sequence,
        base_timestamp_ms=base_timestamp_ms,
        timestamp_deltas_ms=deltas if any(deltas) else (),
        value_lengths=value_lengths,
        null_values=[i for i, record in enumerate(records) if not record.HasField("value")],
        key_lengths=key_lengths if has_keys else (),
        null_keys=[i for i, record in enumerate(records) if not record.HasField("key")] if has_keys else (),
        header_counts=[len(record.headers) for record in records] if headers else (),
        header_key_lengths=header_key_lengths,
        header_value_lengths=header_value_lengths,
        null_header_values=[i for i, header in enumerate(headers) if not header.HasField("value")],
        columns=b"".join(map(b"".join, columns)),
    )
    try:
        _check_producer(batch)
    except CorruptDataError as error:
        raise FluxError(Reason.INVALID_ARGUMENT, str(error)) from error
    data = batch.SerializeToString()
    if len(data) > limits.BATCH_BYTES_MAX:
        raise _too_large(f"the records take {len(data)} bytes as a batch, at most {limits.BATCH_BYTES_MAX} are allowed")
    return data


def records_from_frames(
    frames: bytes | memoryview,
    from_offset: int,
    *,
    records_max: int = limits.BATCH_RECORDS_MAX,
    bytes_max: int = limits.FETCH_BYTES_MAX,
) -> list[record_pb2.Record]:
    """The records of whole entries, for readers that want plain records.

    Args:
        frames: entries as they are stored, in order, whole.
        from_offset: records below it are left out.
        records_max: bound on the result, at least 1.
        bytes_max: bound on the encoded size of the result. One record is returned even if it is larger, so that readers
            always get on.

    Returns:
        Records with their offsets, ascending. It ends early before a batch that cannot be decoded.

    Raises:
        UndecodableBatchError: that batch is the first one wanted; carries where to go on.
        CorruptDataError: the frames themselves are bad.
    """
    out: list[record_pb2.Record] = []
    size = 0
    try:
        for record in _records_of_frames(memoryview(frames), from_offset):
            # Tag and length in the response stand before each record.
            size += record.ByteSize() + 5
            if out and size > bytes_max:
                break
            out.append(record)
            if len(out) >= records_max:
                break
    except UndecodableBatchError:
        if not out:
            raise
    return out


def _records_of_frames(frames: memoryview, from_offset: int) -> Iterator[record_pb2.Record]:
    position = 0
    while position < len(frames):
        frame = frames[position : position + entry.read_stamp(frames, position).frame_bytes]
        stamp = entry.verify_frame(frame)
        position += len(frame)
        if stamp.kind is not entry.EntryKind.RECORDS:
            continue  # Raft's own: what it holds is no batch
        base_offset = stamp.base_offset
        for data in entry.split_batches(frame):
            batch = _parse(data)
            next_offset = Offset(
                base_offset + (batch.offset_deltas[-1] + 1 if batch.offset_deltas else batch.record_count)
            )
            if next_offset > from_offset:
                try:
                    records = _records_of_batch(batch, base_offset)
                except CorruptDataError as error:
                    raise UndecodableBatchError(str(error), base_offset, next_offset) from error
                yield from (record for record in records if record.offset >= from_offset)
            base_offset = next_offset


def _records_of_batch(batch: record_pb2.RecordBatch, base_offset: int) -> Iterator[record_pb2.Record]:
    """Decode all columns now, build each record when it is asked for."""
    columns, count = decompressed(batch), batch.record_count
    values = with_nulls(slices(columns, 0, batch.value_lengths[:]), batch.null_values)
    start = sum(batch.value_lengths[:])
    keys = with_nulls(slices(columns, start, batch.key_lengths[:]), batch.null_keys) or [None] * count
    start += sum(batch.key_lengths[:]) + sum(batch.header_key_lengths[:])
    header_values = with_nulls(slices(columns, start, batch.header_value_lengths[:]), batch.null_header_values)
    headers = list(zip(header_keys(batch, columns), header_values, strict=True))
    ends = [0, *accumulate(batch.header_counts[:] or [0] * count)]
    deltas = batch.timestamp_deltas_ms[:] or [0] * count
    offsets = batch.offset_deltas[:] or range(count)
    return (
        record_pb2.Record(
            key=key,
            value=value,
            headers=[record_pb2.Header(key=name, value=content) for name, content in headers[begin:end]],
            timestamp_ms=_wrapped(batch.base_timestamp_ms + delta),
            offset=base_offset + offset,
        )
        for key, value, delta, offset, (begin, end) in zip(keys, values, deltas, offsets, pairwise(ends), strict=True)
    )


def _wrapped(number: int) -> int:
    """To 64 bits with sign, as other languages add: timestamps are data and may be anything."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
