"""The frame of an entry: nothing inside a producer's bytes can change it, and no flipped bit goes unseen."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.entry import EntryKind, Stamp, build_frame, read_stamp, read_trim, split_batches, verify_frame
from fluxd.core.errors import CorruptDataError
from fluxlog.entry import CorruptResponseError, parse_response
from fluxlog.v1 import log_pb2, record_pb2

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)

STAMPS = st.builds(
    record_pb2.EntryStamp,
    base_offset=U64,
    raft_index=U64,
    leader_epoch=U64,
    append_time_ms=I64,
    record_count=U32,
    kind=st.sampled_from(list(EntryKind)),
    previous_checksum=U32,
    checksum=U32,
)
"""What a forger would like the stamp to be."""


def forgery(stamp: record_pb2.EntryStamp) -> bytes:
    """Bytes that are a LogEntry with another stamp, and a legal RecordBatch (of unknown fields) as well."""
    return record_pb2.LogEntry(stamp=stamp).SerializeToString()


HOSTILE = st.one_of(
    STAMPS.map(forgery),
    STAMPS.map(lambda stamp: stamp.SerializeToString()),
    st.builds(
        lambda batch, stamp: batch.SerializeToString() + forgery(stamp), st.builds(record_pb2.RecordBatch), STAMPS
    ),
    st.binary(max_size=40).map(lambda columns: record_pb2.RecordBatch(columns=columns).SerializeToString()),
)


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    kind = draw(st.sampled_from(list(EntryKind)))
    batches = draw(st.lists(HOSTILE, min_size=1, max_size=4)) if kind is EntryKind.RECORDS else []
    frame = build_frame(
        kind=kind,
        base_offset=draw(U64),
        raft_index=draw(U64),
        leader_epoch=draw(U64),
        append_time_ms=draw(I64),
        record_count=draw(st.integers(1, 2**32 - 1)) if batches else 0,
        log_start_offset=draw(U64) if kind is EntryKind.TRIM else None,
        previous_checksum=draw(U32),
        batches=batches,
    )
    return frame, batches


def as_tuple(stamp: Stamp | record_pb2.EntryStamp) -> tuple[int, ...]:
    return (
        stamp.base_offset, stamp.raft_index, stamp.leader_epoch, stamp.append_time_ms, stamp.record_count,
        int(stamp.kind), stamp.previous_checksum, stamp.checksum,
    )  # fmt: skip


@given(frames())
def test_a_frame_is_read_as_it_was_built(built: tuple[bytes, list[bytes]]) -> None:
    """Header and batches come back, the batches untouched."""
    frame, batches = built
    stamp = verify_frame(frame)
    assert stamp == read_stamp(b"xyz" + frame, 3)
    assert stamp.frame_bytes == len(frame)
    if stamp.kind is EntryKind.TRIM:
        assert read_trim(frame) == record_pb2.LogEntry.FromString(frame[5:]).log_start_offset
    else:
        assert [bytes(batch) for batch in split_batches(frame)] == batches


@given(frames(), st.data())
def test_any_flipped_bit_is_detected(built: tuple[bytes, list[bytes]], data: st.DataObject) -> None:
    """On the server, and by a client that verifies."""
    frame = bytearray(built[0])
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptDataError):
        verify_frame(bytes(frame))
    try:
        response = parse_response(bytes(frame))
    except CorruptResponseError:
        return
    assert not response.entries, "the first byte may have become another field's tag"


@given(st.lists(frames(), max_size=4))
def test_a_producer_cannot_forge_the_stamp(built: list[tuple[bytes, list[bytes]]]) -> None:
    """Any protobuf parser sees the stamps that the server wrote, in a segment file as in a response."""
    data = b"".join(frame for frame, _ in built)
    response = log_pb2.FetchResponse.FromString(data)
    assert [as_tuple(entry.stamp) for entry in response.entries] == [
        as_tuple(verify_frame(frame)) for frame, _ in built
    ]
    assert [len(entry.batches) for entry in response.entries] == [len(batches) for _, batches in built]
    assert parse_response(data) == response
    status = log_pb2.FetchResponse(status=log_pb2.FetchStatus(high_watermark=7)).SerializeToString()
    assert parse_response(status + data).status.high_watermark == 7


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_frame_or_the_one_error(data: bytes) -> None:
    """Nothing else is ever raised."""
    for bytes_ in (data, build_header_only() + data):
        with suppress(CorruptDataError):
            verify_frame(bytes_)
        with suppress(CorruptDataError):
            split_batches(bytes_)
        with suppress(CorruptResponseError):
            parse_response(bytes_)


def build_header_only() -> bytes:
    return build_frame(
        kind=EntryKind.NO_OP, base_offset=1, raft_index=2, leader_epoch=3, append_time_ms=4, record_count=0,
        previous_checksum=5,
    )  # fmt: skip
