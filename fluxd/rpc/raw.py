"""ProduceRequest without taking the batch apart.

The same messages are built once more at import, from the descriptors of log.proto, with one change: field 3 of
ProduceRequest is `bytes` instead of RecordBatch. On the wire that is the same (a length and bytes), so protobuf's C
parser hands out the batch as it came, and whoever is not its leader passes on the request as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from fluxd.broker.produce import ProduceCall
from fluxd.core.errors import FluxError, Reason
from fluxlog.v1 import errors_pb2, log_pb2, record_pb2


class _RawProduceRequest(Protocol):
    topic: str
    partition: int
    batch: bytes
    batch_crc32c: int
    expected_offset: int
    timeout_ms: int
    topic_id: bytes
    records: Sequence[record_pb2.Record]
    producer_id: bytes
    base_sequence: int

    def HasField(self, name: str) -> bool: ...  # noqa: N802 - protobuf's name
    def ParseFromString(self, data: bytes) -> int: ...  # noqa: N802


class _RawStreamRequest(Protocol):
    correlation_id: int
    request: bytes
    accepts_more: bool

    def ParseFromString(self, data: bytes) -> int: ...  # noqa: N802


def _build_raw_types() -> tuple[type[_RawProduceRequest], type[_RawStreamRequest]]:
    """Copy log.proto's file into a pool of its own, with bytes in the place of the two messages that are passed
    through.
    """
    pool = descriptor_pool.DescriptorPool()
    for module in (errors_pb2, record_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto.FromString(log_pb2.DESCRIPTOR.serialized_pb)
    for message, name in (("ProduceRequest", "batch"), ("ProduceStreamRequest", "request")):
        described = next(m for m in file.message_type if m.name == message)
        field = next(f for f in described.field if f.name == name)
        field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
        field.ClearField("type_name")
    pool.Add(file)
    types = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fluxlog.v1.{name}"))
        for name in ("ProduceRequest", "ProduceStreamRequest")
    ]
    return cast(type[_RawProduceRequest], types[0]), cast(type[_RawStreamRequest], types[1])


_ProduceRequest, _StreamRequest = _build_raw_types()
_BATCH_TAG = 0x1A  # ProduceRequest.batch
_REQUEST_TAG = 0x12  # ProduceStreamRequest.request
_FIXED_BYTES = {1: 8, 5: 4}
_SMALL_BYTES = 4_096
"""Up to this much is copied by the parser sooner than it is cut out."""


def parse_produce(raw: bytes | memoryview, *, connection: str, forwarded: bool) -> ProduceCall:
    """Read an encoded ProduceRequest; the batch inside is left as it is, and where it is.

    Raises:
        FluxError: INVALID_ARGUMENT: not a ProduceRequest. Any bytes either parse or give this.
    """
    request = _ProduceRequest()
    rest, batch = cut_out(raw, _BATCH_TAG)
    _parse(request, rest, "ProduceRequest")
    return ProduceCall(
        topic=request.topic,
        partition=request.partition,
        batch=request.batch if batch is None else batch,
        batch_crc32c=request.batch_crc32c if request.HasField("batch_crc32c") else None,
        expected_offset=request.expected_offset if request.HasField("expected_offset") else None,
        timeout_ms=request.timeout_ms,
        topic_id=request.topic_id,
        records=request.records,
        producer_id=request.producer_id,
        base_sequence=request.base_sequence,
        raw=raw,
        connection=connection,
        forwarded=forwarded,
    )


def parse_stream_request(raw: bytes) -> tuple[int, bytes | memoryview, bool]:
    """Read an encoded ProduceStreamRequest: (correlation id, encoded ProduceRequest, accepts `more`).

    Raises:
        FluxError: INVALID_ARGUMENT.
    """
    message = _StreamRequest()
    rest, request = cut_out(raw, _REQUEST_TAG)
    _parse(message, rest, "ProduceStreamRequest")
    return message.correlation_id, message.request if request is None else request, message.accepts_more


def _parse(message: _RawProduceRequest | _RawStreamRequest, raw: bytes, name: str) -> None:
    try:
        message.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise FluxError(Reason.INVALID_ARGUMENT, f"the {len(raw)} bytes of the request are not a {name}") from error


def cut_out(data: bytes | memoryview, tag: int) -> tuple[bytes, memoryview | None]:
    """Take one length-delimited field out of an encoded message, so that its bytes are not copied by the parser.

    Returns:
        (the rest, the field's content); or (all of it, None) where the field is not there exactly once, or the bytes
        are few or such that the parser should judge them.
    """
    if len(data) <= _SMALL_BYTES:
        return bytes(data), None
    view = memoryview(data)
    position, end = 0, len(data)
    found: tuple[int, int, int] | None = None
    while position < end:
        at, kind = position, view[position]
        position, length = _skip_tag(view, position)
        if kind == tag and position <= end:
            if found is not None:
                return bytes(data), None
            found = at, position - length, position
    if position != end or found is None:
        return bytes(data), None
    at, begin, after = found
    return b"".join((view[:at], view[after:])), view[begin:after]


def _skip_tag(view: memoryview, position: int) -> tuple[int, int]:
    """Where the field after the one at a position begins, and how long its content is (length-delimited ones).

    Beyond the end of the view: it is cut off, or of a kind that is not met in what clients send.
    """
    kind = view[position]
    if kind >= 0x80:
        return len(view) + 1, 0
    wire_type = kind & 7
    if wire_type in _FIXED_BYTES:
        return position + 1 + _FIXED_BYTES[wire_type], 0
    number = shift = 0
    for byte in view[position + 1 : position + 11]:
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if wire_type == 0:
                return position + 1, 0
            if wire_type == 2:
                return position + 1 + number, number
            break
    return len(view) + 1, 0
