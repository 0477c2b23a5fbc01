"""One ProduceStream to one node, on a thread of its own: the way of the threaded Sender."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import grpc

from fluxlog.client import Node
from fluxlog.errors import FluxlogError, Outcome, from_rpc_error
from fluxlog.framing import PRODUCE_STREAM, answers_of, encode_stream_request
from fluxlog.v1 import admin_pb2, log_pb2

_PING = admin_pb2.DescribeClusterRequest()
_PING_TIMEOUT = 2.0


class ProduceStream:
    """A stream to one node. Requests leave in the order of `send`.

    It is opened once the node has answered: when it does not, nothing was sent, and the failure says REJECTED.
    The error of a stream alone would not tell whether it broke before or after.

    Args:
        node: where to.
        on_answer: called with each answer, on a thread of the stream's own.
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
        self._outbox.put(encode_stream_request(correlation_id, request))

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
        method: grpc.StreamStreamMultiCallable[bytes, log_pb2.ProduceStreamResponse]
        try:
            method = self._node.channel.stream_stream(
                PRODUCE_STREAM,
                request_serializer=bytes,
                response_deserializer=log_pb2.ProduceStreamResponse.FromString,
            )
            with self._lock:
                if not self._cancelled:
                    self._call = method(self._requests())
        except ValueError:  # the channel was closed meanwhile
            return False
        return self._call is not None

    def _requests(self) -> Iterator[bytes]:
        while (message := self._outbox.get()) is not None:
            yield message

    def _read(self) -> FluxlogError:
        assert self._call is not None
        try:
            for response in self._call:
                for answer in answers_of(response):
                    self._on_answer(self, answer)
        except grpc.RpcError as error:
            return from_rpc_error(error, address=self.address)
        return FluxlogError("UNAVAILABLE", f"{self.address} ended the stream", retriable=True)
