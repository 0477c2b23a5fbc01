"""The bytes of produce requests, put together by hand around an encoded batch.

batch_crc32c is over exactly the batch's bytes: parsing and encoding them again need not give the same ones (and would
cost a copy).
"""

from __future__ import annotations

from collections.abc import Iterator

from crc32c import crc32c

from fluxlog.v1 import log_pb2

PRODUCE_STREAM = "/fluxlog.v1.Log/ProduceStream"
_BATCH_TAG = b"\x1a"  # ProduceRequest.batch
_CORRELATION_TAG = b"\x08"  # ProduceStreamRequest.correlation_id
_REQUEST_TAG = b"\x12"  # ProduceStreamRequest.request
_ACCEPTS_MORE = b"\x18\x01"  # ProduceStreamRequest.accepts_more


def encode_varint(number: int) -> bytes:
    """A protobuf varint. Args: number: 0 or more."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_produce(
    topic: str,
    partition: int,
    batch: bytes,
    *,
    topic_id: bytes = b"",
    timeout_ms: int = 0,
    expected_offset: int | None = None,
) -> bytes:
    """Encode a ProduceRequest around a batch that is encoded already, with its checksum."""
    head = log_pb2.ProduceRequest(
        topic=topic,
        partition=partition,
        batch_crc32c=crc32c(batch),
        topic_id=topic_id,
        timeout_ms=timeout_ms,
        expected_offset=expected_offset,
    ).SerializeToString()
    return b"".join((head, _BATCH_TAG, encode_varint(len(batch)), batch))


def encode_stream_request(correlation_id: int, request: bytes) -> bytes:
    """Encode a ProduceStreamRequest around an encoded ProduceRequest; its answer may stand in another one's `more`."""
    head = (_ACCEPTS_MORE, _CORRELATION_TAG, encode_varint(correlation_id), _REQUEST_TAG, encode_varint(len(request)))
    return b"".join((*head, request))


def answers_of(response: log_pb2.ProduceStreamResponse) -> Iterator[log_pb2.ProduceStreamResponse]:
    """Each request's own answer."""
    yield response
    yield from response.more
