"""One ProduceStream to one node: a task that writes and one that reads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import grpc
from grpc import aio

from fluxlog.aio.connection import Node
from fluxlog.aio.tasks import TaskSet, was_cancelled
from fluxlog.errors import FluxlogError, Outcome, from_rpc_error
from fluxlog.framing import PRODUCE_STREAM, answers_of, encode_stream_request
from fluxlog.v1 import admin_pb2, log_pb2

_PING = admin_pb2.DescribeClusterRequest()
_PING_TIMEOUT = 2.0

_Call = aio.StreamStreamCall[bytes, log_pb2.ProduceStreamResponse]


class ProduceStream:
    """A stream to one node. Requests leave in the order of `send`.

    It is opened once the node has answered: when it does not, nothing was sent, and the failure says REJECTED.
    The error of a stream alone would not tell whether it broke before or after.

    Args:
        tasks: own what runs here.
        on_answer: called with each answer.
        on_broken: called once, when the stream has ended by itself; unless the failure's outcome is REJECTED, what was
            sent and not answered is UNKNOWN. Not called after `cancel`.
    """

    def __init__(
        self,
        node: Node,
        tasks: TaskSet,
        on_answer: Callable[[ProduceStream, log_pb2.ProduceStreamResponse], None],
        on_broken: Callable[[ProduceStream, FluxlogError], None],
    ) -> None:
        self.address = node.address
        self._node, self._on_answer, self._on_broken = node, on_answer, on_broken
        # Bounded by what the pipeline allows in flight.
        self._outbox: deque[bytes] = deque()
        self._something = asyncio.Event()
        self._cancelled = False
        self._call: aio.Call | None = None
        tasks.start(self._run(), f"produce {node.address}")

    def send(self, correlation_id: int, request: bytes) -> None:
        """Queue one encoded ProduceRequest."""
        self._outbox.append(encode_stream_request(correlation_id, request))
        self._something.set()

    def cancel(self) -> None:
        """End the stream at once."""
        self._cancelled = True
        if self._call is not None:
            # Not the task: gRPC's operations are to end before it, not after the loop perhaps.
            self._call.cancel()

    async def _run(self) -> None:
        failure = FluxlogError(
            "UNAVAILABLE", f"{self.address} does not answer", outcome=Outcome.REJECTED, retriable=True,
            address=self.address,
        )  # fmt: skip
        try:
            if await self._answers():
                failure = await self._exchange()
        except aio.UsageError:  # the channel was closed
            pass
        except asyncio.CancelledError:  # so ends a call, too, that was cancelled or whose channel was closed
            if was_cancelled():
                raise
        if not self._cancelled:
            self._on_broken(self, failure)

    async def _answers(self) -> bool:
        try:
            self._call = ping = self._node.admin.DescribeCluster(_PING, timeout=_PING_TIMEOUT)
            await ping
        except grpc.RpcError as error:
            return from_rpc_error(error).from_server
        return not self._cancelled

    async def _exchange(self) -> FluxlogError:
        method: aio.StreamStreamMultiCallable[bytes, log_pb2.ProduceStreamResponse]
        method = self._node.channel.stream_stream(
            PRODUCE_STREAM, response_deserializer=log_pb2.ProduceStreamResponse.FromString
        )
        self._call = call = method()
        writer = asyncio.ensure_future(self._write(call))
        try:
            while isinstance(response := await call.read(), log_pb2.ProduceStreamResponse):
                for answer in answers_of(response):
                    self._on_answer(self, answer)
            # It ended without a complaint, but nobody asked it to: what has no answer is in doubt.
            return FluxlogError("UNAVAILABLE", f"{self.address} ended the stream", retriable=True, address=self.address)
        except grpc.RpcError as error:
            return from_rpc_error(error, address=self.address)
        except aio.UsageError as error:
            return FluxlogError("CANCELLED", str(error), retriable=True, address=self.address)
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            return FluxlogError(
                "CANCELLED", f"the connection to {self.address} was closed", retriable=True, address=self.address
            )
        finally:
            writer.cancel()
            call.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: _Call) -> None:
        """What goes wrong here is told by the reader."""
        while True:
            while self._outbox:
                await call.write(self._outbox.popleft())
            self._something.clear()
            await self._something.wait()
