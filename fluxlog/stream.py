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
from fluxlog.errors import FluxlogError, Outcome, from_rpc_error
from fluxlog.v1 import admin_pb2, log_pb2

_PING = admin_pb2.DescribeClusterRequest()
_PING_TIMEOUT = 2.0
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

    It is opened once the node has answered: when it does not, nothing was sent, and the failure says REJECTED.
    The error of a stream alone would not tell whether it broke before or after.

    Args:
        node: where to.
        on_answer: called with each response, on a thread of the stream's own.
        on_broken: called once, when the stream has ended for whatever reason; unless its outcome is REJECTED, what was
            sent and not answered is UNKNOWN.
    """

    def __init__(
        self,
        node: Node,
        on_answer: Callable[[ProduceStream, log_pb2.ProduceStreamResponse], None],
        on_broken: Callable[[ProduceStream, FluxlogError], None],
    ) -> None:
        self.address = node.address
        self._node, self._on_answer, self._on_broken = node, on_answer, on_broken
        # Bounded by what the sender allows in flight.
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._cancelled = False
        self._call: grpc._CallIterator[log_pb2.ProduceStreamResponse] | None = None
        threading.Thread(target=self._run, name=f"produce {node.address}", daemon=True).start()

    def send(self, correlation_id: int, request: bytes) -> None:
        """Queue one encoded ProduceRequest."""
        self._outbox.put(
            b"".join((_CORRELATION_TAG, _varint(correlation_id), _REQUEST_TAG, _varint(len(request)), request))
        )

    def cancel(self) -> None:
        """End the stream at once."""
        with self._lock:
            self._cancelled = True
            self._outbox.put(None)
            if self._call is not None:
                self._call.cancel()

    def _run(self) -> None:
        if self._connect():
            failure = self._read()
        else:
            failure = FluxlogError(
                "UNAVAILABLE", f"{self.address} does not answer", outcome=Outcome.REJECTED, retriable=True,
                address=self.address,
            )  # fmt: skip
        self._outbox.put(None)
        self._on_broken(self, failure)

    def _connect(self) -> bool:
        """Have the node answer something that writes nothing, then open the stream; False: it does not answer.

        Watching the channel's state instead would leave a thread of gRPC's that fails when the channel is closed.
        """
        try:
            self._node.admin.DescribeCluster(_PING, timeout=_PING_TIMEOUT)
        except grpc.RpcError as error:
            if not from_rpc_error(error).from_server:
                return False
        except ValueError:  # the channel was closed
            return False
        method: grpc.StreamStreamMultiCallable[bytes, log_pb2.ProduceStreamResponse] = self._node.channel.stream_stream(
            _METHOD, request_serializer=bytes, response_deserializer=log_pb2.ProduceStreamResponse.FromString
        )
        with self._lock:
            if not self._cancelled:
                self._call = method(self._requests())
        return self._call is not None

    def _requests(self) -> Iterator[bytes]:
        while (message := self._outbox.get()) is not None:
            yield message

    def _read(self) -> FluxlogError:
        assert self._call is not None
        try:
            for response in self._call:
                self._on_answer(self, response)
        except grpc.RpcError as error:
            return from_rpc_error(error, address=self.address)
        return FluxlogError("UNAVAILABLE", f"{self.address} ended the stream", retriable=True)
