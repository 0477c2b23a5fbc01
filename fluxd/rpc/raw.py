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


def parse_produce(raw: bytes, *, connection: str, forwarded: bool) -> ProduceCall:
    """Read an encoded ProduceRequest; the batch inside is left as it is.

    Raises:
        FluxError: INVALID_ARGUMENT: not a ProduceRequest. Any bytes either parse or give this.
    """
    request = _ProduceRequest()
    _parse(request, raw, "ProduceRequest")
    return ProduceCall(
        topic=request.topic,
        partition=request.partition,
        batch=request.batch,
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


def parse_stream_request(raw: bytes) -> tuple[int, bytes]:
    """Read an encoded ProduceStreamRequest: (correlation id, encoded ProduceRequest).

    Raises:
        FluxError: INVALID_ARGUMENT.
    """
    request = _StreamRequest()
    _parse(request, raw, "ProduceStreamRequest")
    return request.correlation_id, request.request


def _parse(message: _RawProduceRequest | _RawStreamRequest, raw: bytes, name: str) -> None:
    try:
        message.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise FluxError(Reason.INVALID_ARGUMENT, f"the {len(raw)} bytes of the request are not a {name}") from error
