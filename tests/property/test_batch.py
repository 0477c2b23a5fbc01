"""Batches of any records, and bytes of any kind: both sides agree, and nothing but the documented error is raised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fluxlog.entry
from fluxd.core.batch import (
    BatchInfo,
    UndecodableBatchError,
    _checked_in_full,
    _fields,
    batch_from_records,
    check_batch,
    producer_of,
    records_from_frames,
)
from fluxd.core.entry import EntryKind, build_frame
from fluxd.core.errors import FluxError, Reason
from fluxlog.batch import Codec, CorruptBatchError, DecodedBatch, Record, decode_batch, encode_batch
from fluxlog.entry import FetchedRecord, parse_response, records_of
from fluxlog.v1 import record_pb2

BYTES = st.binary(max_size=30)
NULLABLE = st.none() | BYTES
HEADERS = st.lists(st.tuples(st.text(max_size=5), NULLABLE), max_size=3).map(tuple)
RECORDS = st.lists(
    st.builds(Record, value=NULLABLE, key=NULLABLE, headers=HEADERS, timestamp_ms=st.integers(-(2**63), 2**63 - 1)),
    min_size=1,
    max_size=20,
)
CODECS = st.sampled_from(list(Codec))
PRODUCERS = st.just((b"", 0)) | st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 2**63))
BASE_OFFSET = 1000


def encode(records: list[Record], codec: Codec, producer: tuple[bytes, int] = (b"", 0)) -> bytes:
    return encode_batch(
        [record.value for record in records],
        keys=[record.key for record in records],
        headers=[record.headers for record in records],
        timestamps_ms=[record.timestamp_ms for record in records],
        producer_id=producer[0],
        base_sequence=producer[1],
        codec=codec,
    )


def plain(record: Record, offset: int = 0) -> record_pb2.Record:
    headers = [record_pb2.Header(key=name, value=value) for name, value in record.headers]
    return record_pb2.Record(
        key=record.key, value=record.value, headers=headers, timestamp_ms=record.timestamp_ms, offset=offset
    )


def frame_of(*batches: bytes, record_count: int) -> bytes:
    return build_frame(
        kind=EntryKind.RECORDS, base_offset=BASE_OFFSET, raft_index=2, leader_epoch=3, append_time_ms=4,
        record_count=record_count, previous_checksum=5, batches=batches,
    )  # fmt: skip


@given(RECORDS, CODECS, PRODUCERS)
def test_what_a_client_encodes_passes_the_check_and_is_decoded(
    records: list[Record], codec: Codec, producer: tuple[bytes, int]
) -> None:
    """Every record comes back as it was, null and empty apart, with every codec, by every way of asking."""
    data = encode(records, codec, producer)
    assert check_batch(data) == producer_of(data) == BatchInfo(len(records), *producer)
    decoded = decode_batch(data)
    assert list(decoded) == records
    assert [decoded.record(i) for i in range(len(decoded))] == records
    assert (decoded.producer_id, decoded.base_sequence, decoded.codec) == (*producer, codec)
    assert decoded.values() == [record.value for record in records]
    assert decoded.keys() == [record.key for record in records]
    assert decoded.timestamps() == [record.timestamp_ms for record in records]
    assert [decoded.headers(i) for i in range(len(decoded))] == [record.headers for record in records]


@given(st.lists(st.tuples(RECORDS, CODECS), min_size=1, max_size=3), st.data())
def test_both_readers_deliver_the_same_records_from_an_offset_on(
    batches: list[tuple[list[Record], Codec]], data: st.DataObject
) -> None:
    """The server's conversion to plain records and the client's reader see the same log."""
    records = [record for batch, _ in batches for record in batch]
    wanted = data.draw(st.integers(0, len(records)))
    frame = frame_of(*(encode(batch, codec) for batch, codec in batches), record_count=len(records))
    expected = [(BASE_OFFSET + i, record) for i, record in enumerate(records)][wanted:]
    from_offset = BASE_OFFSET + wanted
    fetched = list(records_of(parse_response(frame).entries, from_offset))
    assert fetched == [FetchedRecord(offset, *record, 4, 3) for offset, record in expected]
    served = records_from_frames(frame, from_offset)
    assert served == [plain(record, offset) for offset, record in expected]


@given(RECORDS, PRODUCERS, st.integers(1, 5), st.integers(0, 200))
def test_bounds_of_plain_records_are_kept(
    records: list[Record], producer: tuple[bytes, int], records_max: int, bytes_max: int
) -> None:
    """A prefix, at least one record, and within the bounds otherwise."""
    frame = frame_of(encode(records, Codec.NONE, producer), record_count=len(records))
    served = records_from_frames(frame, BASE_OFFSET, records_max=records_max, bytes_max=bytes_max)
    assert served == records_from_frames(frame, BASE_OFFSET)[: len(served)]
    assert 1 <= len(served) <= records_max
    assert len(served) == 1 or sum(record.ByteSize() for record in served) <= bytes_max


@given(
    st.lists(
        st.builds(
            record_pb2.Record,
            key=NULLABLE,
            value=NULLABLE,
            headers=st.lists(st.builds(record_pb2.Header, key=st.text(max_size=5), value=NULLABLE), max_size=3),
            timestamp_ms=st.integers(-(2**63), 2**63 - 1),
        ),
        min_size=1,
        max_size=20,
    ),
    PRODUCERS,
)
def test_plain_records_become_a_batch_that_clients_decode(
    records: list[record_pb2.Record], producer: tuple[bytes, int]
) -> None:
    """Also with timestamps whose differences do not fit 64 bits; a timestamp of 0 becomes the node's time."""
    data = batch_from_records(records, *producer, now_ms=77)
    assert check_batch(data) == BatchInfo(len(records), *producer)
    decoded = list(decode_batch(data))
    for record in records:
        record.timestamp_ms = record.timestamp_ms or 77
    assert [plain(record) for record in decoded] == records
    for offset, record in enumerate(records, start=BASE_OFFSET):
        record.offset = offset
    assert records_from_frames(frame_of(data, record_count=len(records)), 0) == records


def judged(data: bytes) -> BatchInfo | None:
    """The leader's verdict; nothing but two errors is ever raised."""
    try:
        return check_batch(data)
    except FluxError as error:
        assert error.reason in (Reason.CORRUPT_BATCH, Reason.BATCH_TOO_LARGE)
        return None


def decoded_or_refused(data: bytes) -> DecodedBatch | None:
    """Once decoded, nothing that is asked can fail."""
    try:
        decoded = decode_batch(data)
    except CorruptBatchError:
        return None
    assert len(list(decoded)) == len(decoded) == len(decoded.offsets(0))
    return decoded


def check_any_bytes(data: bytes) -> None:
    info, decoded = judged(data), decoded_or_refused(data)
    if info is None:
        return
    assert producer_of(data) == info
    assert _checked_in_full(data, _fields(data)) == info, "the quick check accepts nothing else"
    compressed = record_pb2.RecordBatch.FromString(data).codec != record_pb2.CODEC_NONE
    assert decoded is not None or compressed, "what the leader accepts uncompressed must be decodable"
    frame = frame_of(data, record_count=info.record_count)
    assert len(parse_response(frame).entries) == 1, "what the leader accepts must not break the parser of readers"
    try:
        served = records_from_frames(frame, 0)
    except UndecodableBatchError as error:
        assert decoded is None
        assert (error.base_offset, error.next_offset) == (BASE_OFFSET, BASE_OFFSET + info.record_count)
    else:
        assert decoded is not None
        assert served == [plain(record, BASE_OFFSET + i) for i, record in enumerate(decoded)]


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    """Refused or accepted, by all readers alike."""
    check_any_bytes(data)


SMALL = st.lists(st.integers(0, 4), max_size=4)
NUMBERS = (
    "timestamp_deltas_ms", "offset_deltas", "value_lengths", "null_values", "key_lengths", "null_keys", "header_counts",
    "header_key_lengths", "header_value_lengths", "null_header_values",
)  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> record_pb2.RecordBatch:
    """A valid batch in which up to two of the columns of numbers are replaced by others, and the rest may fit again."""
    batch = record_pb2.RecordBatch.FromString(encode(draw(RECORDS)[:4], Codec.NONE))
    for name in draw(st.lists(st.sampled_from(NUMBERS), max_size=2)):
        batch.ClearField(name)  # type: ignore[arg-type]
        getattr(batch, name).extend(draw(SMALL))
    if draw(st.booleans()):
        batch.record_count = draw(st.sampled_from([0, 1, 4, 2**32 - 1]))
    if draw(st.booleans()):
        lengths = (batch.value_lengths, batch.key_lengths, batch.header_key_lengths, batch.header_value_lengths)
        batch.columns = draw(st.sampled_from([b"a", b"\xc3"])) * sum(map(sum, lengths))
    if draw(st.booleans()):
        batch.codec = draw(st.integers(0, 4))  # type: ignore[assignment]
    return batch


@given(
    st.lists(st.sampled_from([0, 1, 100, 127, 128, 300, 16_383, 16_384]), min_size=1, max_size=3).map(
        lambda some: some * 9
    )
    | st.lists(st.integers(128, 16_383), min_size=1, max_size=9)
    | st.lists(st.integers(0, 127), min_size=1, max_size=9),
    st.integers(-3, 3),
    PRODUCERS,
)
def test_lengths_of_any_encoding(lengths: list[int], off_by: int, producer: tuple[bytes, int]) -> None:
    """Numbers of one byte, of two, of both, of three: accepted when they add up to the columns, and only then."""
    batch = record_pb2.RecordBatch(
        record_count=len(lengths), value_lengths=lengths, producer_id=producer[0], base_sequence=producer[1]
    )
    batch.columns = bytes(max(0, sum(lengths) + off_by))
    data = batch.SerializeToString()
    check_any_bytes(data)
    assert (judged(data) is not None) == (len(batch.columns) == sum(lengths))


@given(messages())
def test_messages_whose_numbers_may_disagree(batch: record_pb2.RecordBatch) -> None:
    """Well-formed protobuf whose counts, lengths and nulls disagree, or by chance agree."""
    check_any_bytes(batch.SerializeToString())


@given(RECORDS, CODECS, PRODUCERS, st.data())
def test_mutated_batches(records: list[Record], codec: Codec, producer: tuple[bytes, int], data: st.DataObject) -> None:
    """A valid batch with a few bytes changed, cut, doubled or put in."""
    encoded = bytearray(encode(records, codec, producer))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(encoded)))
        length = data.draw(st.integers(0, 6))
        encoded[position : position + length] = data.draw(st.binary(max_size=6))
    check_any_bytes(bytes(encoded))


@given(RECORDS, CODECS, st.data())
def test_a_reader_steps_over_a_batch_that_cannot_be_decompressed(
    records: list[Record], codec: Codec, data: st.DataObject
) -> None:
    """The error carries where to go on; what stands before and behind is delivered, by both readers."""
    bad = record_pb2.RecordBatch.FromString(encode(records, codec))
    bad.codec = data.draw(st.sampled_from([record_pb2.CODEC_ZSTD, record_pb2.CODEC_LZ4, record_pb2.CODEC_GZIP]))
    bad.columns = b"\x00" + bad.columns
    good, n = encode(records, codec), len(records)
    check_batch(bad.SerializeToString())
    frame = frame_of(good, bad.SerializeToString(), good, record_count=3 * n)

    served = records_from_frames(frame, 0)
    assert [record.offset for record in served] == list(range(BASE_OFFSET, BASE_OFFSET + n))
    with pytest.raises(UndecodableBatchError):
        records_from_frames(frame, BASE_OFFSET + n)
    with pytest.raises(UndecodableBatchError) as caught:
        records_from_frames(frame, BASE_OFFSET + 2 * n - 1)
    go_on = caught.value.next_offset
    assert go_on == BASE_OFFSET + 2 * n
    assert len(records_from_frames(frame, go_on)) == n

    entries = parse_response(frame).entries
    offsets, position = [], 0
    while True:
        try:
            for record in records_of(entries, position):
                offsets.append(record.offset)
                position = record.offset + 1
            break
        except fluxlog.entry.UndecodableBatchError as error:
            position = error.next_offset
    assert offsets == [*range(BASE_OFFSET, BASE_OFFSET + n), *range(BASE_OFFSET + 2 * n, BASE_OFFSET + 3 * n)]
