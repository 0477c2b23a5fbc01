"""One ProduceStream to one node, and the bytes of its requests.

Requests are put together by hand around the encoded batch, since batch_crc32c is over exactly those bytes: parsing
and encoding them again need not give the same ones (and would cost a copy).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import grpc
from crc32c import crc32c

from fluxlog.client import Node
from fluxlog.errors import FluxlogError, from_rpc_error
from fluxlog.v1 import log_pb2

_METHOD = "/fluxlog.v1.Log/ProduceStream"
_BATCH_TAG = b"\x1a"  # ProduceRequest.batch
_CORRELATION_TAG = b"\x08"  # ProduceStreamRequest.correlation_id
_REQUEST_TAG = b"\x12"  # ProduceStreamRequest.request


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_produce(topic: str, partition: int, batch: bytes, *, topic_id: bytes = b"", timeout_ms: int = 0) -> bytes:
    """Encode a ProduceRequest around a batch that is encoded already, with its checksum."""
    head = log_pb2.ProduceRequest(
        topic=topic, partition=partition, batch_crc32c=crc32c(batch), topic_id=topic_id, timeout_ms=timeout_ms
    ).SerializeToString()
    return b"".join((head, _BATCH_TAG, _varint(len(batch)), batch))


class ProduceStream:
    """A stream to one node. Requests leave in the order of `send`.

    Args:
        node: where to.
        on_answer: called with each response, on a thread of the stream's own.
        on_broken: called once, when the stream has ended for whatever reason; what was sent and not answered is
            UNKNOWN.
    """

    def __init__(
        self,
        node: Node,
        on_answer: Callable[[ProduceStream, log_pb2.ProduceStreamResponse], None],
        on_broken: Callable[[ProduceStream, FluxlogError], None],
    ) -> None:
        self.address = node.address
        self._on_answer, self._on_broken = on_answer, on_broken
        # Bounded by what the sender allows in flight.
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method: grpc.StreamStreamMultiCallable[bytes, log_pb2.ProduceStreamResponse] = node.channel.stream_stream(
            _METHOD, request_serializer=bytes, response_deserializer=log_pb2.ProduceStreamResponse.FromString
        )
        self._call = method(self._requests())
        threading.Thread(target=self._read, name=f"produce {node.address}", daemon=True).start()

    def send(self, correlation_id: int, request: bytes) -> None:
        """Queue one encoded ProduceRequest."""
        self._outbox.put(
            b"".join((_CORRELATION_TAG, _varint(correlation_id), _REQUEST_TAG, _varint(len(request)), request))
        )

    def cancel(self) -> None:
        """End the stream at once."""
        self._outbox.put(None)
        self._call.cancel()

    def _requests(self) -> Iterator[bytes]:
        while (message := self._outbox.get()) is not None:
            yield message

    def _read(self) -> None:
        try:
            for response in self._call:
                self._on_answer(self, response)
            failure = FluxlogError("UNAVAILABLE", f"{self.address} ended the stream", retriable=True)
        except grpc.RpcError as error:
            failure = from_rpc_error(error, address=self.address)
        self._outbox.put(None)
        self._on_broken(self, failure)
