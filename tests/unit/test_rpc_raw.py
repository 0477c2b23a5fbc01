"""ProduceRequest with its batch left alone: the same as the generated class says, for any bytes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fluxd.broker.forward import _stream_request
from fluxd.broker.produce import ProduceCall
from fluxd.core.errors import FluxError, Reason
from fluxd.rpc.raw import _ProduceRequest, parse_produce, parse_stream_request
from fluxlog.v1 import log_pb2, record_pb2

BATCH = record_pb2.RecordBatch(record_count=2, value_lengths=[1, 1], columns=b"ab")


def parsed(raw: bytes) -> ProduceCall:
    return parse_produce(raw, connection="c", forwarded=False)


def test_all_fields() -> None:
    """Every field arrives; the batch as the bytes that were sent."""
    request = log_pb2.ProduceRequest(
        topic="t", partition=3, batch=BATCH, batch_crc32c=7, expected_offset=0, timeout_ms=5, topic_id=b"i" * 16,
        records=[record_pb2.Record(value=b"v")], producer_id=b"p" * 16, base_sequence=9,
    )  # fmt: skip
    call = parsed(request.SerializeToString())
    assert (call.topic, call.partition, call.batch_crc32c, call.expected_offset) == ("t", 3, 7, 0)
    assert (call.timeout_ms, call.topic_id, call.producer_id, call.base_sequence) == (5, b"i" * 16, b"p" * 16, 9)
    assert call.batch == BATCH.SerializeToString()
    assert [record.value for record in call.records] == [b"v"]


def test_absent_is_not_zero() -> None:
    """A checksum or expected offset that is not given is None; an absent batch is empty."""
    call = parsed(b"")
    assert (call.batch_crc32c, call.expected_offset, call.batch) == (None, None, b"")


def test_batch_bytes_are_untouched() -> None:
    """Whatever stands in the field of the batch comes out, protobuf or not."""
    for data in (b"\xff" * 7, b"\x0a\x35" + bytes(53)):
        assert parsed(b"\x1a" + bytes([len(data)]) + data).batch == data


@given(st.binary())
def test_any_bytes_parse_or_are_invalid(raw: bytes) -> None:
    """Bytes either parse, or give INVALID_ARGUMENT: never anything else; what the real class takes, this one takes."""
    try:
        parsed(raw)
    except FluxError as error:
        assert error.reason is Reason.INVALID_ARGUMENT
        with pytest.raises(DecodeError):
            log_pb2.ProduceRequest.FromString(raw)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_stream_requests_round_trip(number: int, request: bytes) -> None:
    """What is built for the hop is what the generated class would write, and comes apart again."""
    assert parse_stream_request(_stream_request(number, request)) == (number, request, True)


def test_stream_request_is_the_generated_one() -> None:
    """The hop's bytes are a ProduceStreamRequest."""
    request = log_pb2.ProduceRequest(topic="t", batch=BATCH)
    read = log_pb2.ProduceStreamRequest.FromString(_stream_request(300, request.SerializeToString()))
    assert (read.correlation_id, read.request) == (300, request)


_PIECES = [
    log_pb2.ProduceRequest(batch=BATCH).SerializeToString(),
    log_pb2.ProduceRequest(batch=record_pb2.RecordBatch(record_count=1)).SerializeToString(),
    b"\x1a\x00",
    b"\x1a\x82\x00ab",  # a length that is longer than it need be
    b"\x9a\x00\x02ab",  # a tag that is
    log_pb2.ProduceRequest(topic="t", partition=300, batch_crc32c=7, expected_offset=1).SerializeToString(),
    log_pb2.ProduceRequest(records=[record_pb2.Record(value=b"v")]).SerializeToString(),
    b"\xfa\x01\x03new",  # a field of a later version
    b"\x79" + bytes(8),
    b"\x7b\x7c",  # a group
    b"\x0a\x01\xff",  # not UTF-8
    b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
]


_LARGE = log_pb2.ProduceRequest(topic_id=bytes(5_000)).SerializeToString()


@given(st.lists(st.sampled_from(_PIECES), max_size=5), st.integers(0, 3), st.booleans())
def test_the_batch_that_is_cut_out_is_the_one_that_a_parser_finds(
    pieces: list[bytes], cut_off: int, is_large: bool
) -> None:
    """Fields in any order, twice, unknown or cut off: the answer is the parser's. Small requests are not cut at all."""
    raw = b"".join([_LARGE, *pieces] if is_large else pieces)
    raw = raw[: max(0, len(raw) - cut_off)]
    plain = _ProduceRequest()
    try:
        plain.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError):
        with pytest.raises(FluxError):
            parsed(raw)
        return
    call = parsed(raw)
    assert (call.topic, call.partition, call.batch) == (plain.topic, plain.partition, plain.batch)
    assert (call.batch_crc32c is not None, len(call.records)) == (plain.HasField("batch_crc32c"), len(plain.records))
