"""Passing requests on to the node that can serve them: one hop at most, and bytes as they came.

A forwarded call carries the proof of a node of the cluster and `fluxd-forwarded: 1`: who gets it does not pass it on
again. Produce goes over one stream per node, so that the order of one sender's batches survives the hop.

What is lost on the way: a write whose answer did not come is UNKNOWN, since it may have been carried out. Only where no
link to the other node stands, or the bytes were never handed to the stream, is it REJECTED. A call that ends because
its channel is closed here was lost like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from grpc import aio

from fluxd.core import limits
from fluxd.core.entry import encode_varint
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_from_message
from fluxd.core.types import NodeId
from fluxd.peer.channels import GRPC_NETWORK, Network, PeerUnreachable, error_of
from fluxd.peer.identity import Identity
from fluxd.peer.proof import prove
from fluxlog.v1 import log_pb2

_CHANNEL_GRACE = limits.FETCH_WAIT_MS_MAX / 1000 + 10
"""By then what was asked once over a discarded channel has been answered. Streams may still stand: they are broken off,
and who follows them begins anew.
"""

FORWARDED_KEY = "fluxd-forwarded"
PRODUCE_STREAM = "/fluxlog.v1.Log/ProduceStream"

ProduceAnswer = log_pb2.ProduceResponse | FluxError


class Peers(Protocol):
    """The links, as forwarding needs them."""

    def is_connected(self, peer: NodeId) -> bool:
        """A link to that node stands."""

    def address_of(self, peer: NodeId) -> str | None:
        """Where it is."""


class Forwarder:
    """Calls to other nodes on behalf of clients."""

    def __init__(
        self, me: Identity, secret: bytes, peers: Peers, nodes: list[NodeId], network: Network = GRPC_NETWORK
    ) -> None:
        self._me, self._secret, self._peers, self._network = me, secret, peers, network
        self._channels: dict[NodeId, aio.Channel] = {}
        self._discarded: asyncio.Queue[aio.Channel] = asyncio.Queue()
        self._pipes = {node: ProducePipe(node, self._open_pipe) for node in nodes if node != me.node_id}

    async def run(self) -> None:
        """Serve the produce pipes until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._close_discarded(tasks))
                for pipe in self._pipes.values():
                    tasks.create_task(pipe.run())
        finally:
            for channel in self._channels.values():
                await channel.close()

    def link_up(self, node: NodeId) -> None:
        """Connect now: a first request should not wait for it, nor be UNKNOWN because it failed."""
        self._pipes[node].connect()

    def link_down(self, node: NodeId) -> None:
        """Begin anew with the next link: a channel that has failed would wait before it tries again."""
        channel = self._channels.pop(node, None)
        if channel is not None:
            self._discarded.put_nowait(channel)

    async def _close_discarded(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            channel = await self._discarded.get()
            tasks.create_task(channel.close(_CHANNEL_GRACE))

    async def unary(self, node: NodeId, method: str, request: bytes, *, timeout_s: float, writes: bool) -> bytes:
        """Pass on one call.

        Args:
            method: "/fluxlog.v1.Service/Method".
            timeout_s: of the hop; past it a write is UNKNOWN.

        Raises:
            FluxError: the other node's own answer, or what the loss of it means.
        """
        self._check_link(node)
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel(node).unary_unary(method)
        with _losses_told(node, writes=writes):
            return await call(request, metadata=self._metadata(node), timeout=timeout_s)

    async def stream(self, node: NodeId, method: str, request: bytes) -> AsyncIterator[bytes]:
        """Pass on one call that is answered by a stream. It ends with the other one's.

        Raises:
            FluxError: as `unary`, of a read.
        """
        self._check_link(node)
        method_callable: aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel(node).unary_stream(method)
        call = method_callable(request, metadata=self._metadata(node))
        try:
            with _losses_told(node, writes=False):
                async for response in call:
                    yield response
        finally:
            call.cancel()

    async def bidi(
        self, node: NodeId, method: str, requests: AsyncIterator[bytes], *, metadata: Sequence[tuple[str, str]] = ()
    ) -> AsyncIterator[bytes]:
        """Pass on one call with a stream in each direction. It ends with the other one's.

        Args:
            metadata: goes with the call, beside the proof.

        Raises:
            FluxError: as `unary`, of a read.
        """
        self._check_link(node)
        method_callable: aio.StreamStreamMultiCallable[bytes, bytes] = self._channel(node).stream_stream(method)
        call = method_callable(requests, metadata=aio.Metadata(*self._metadata(node), *metadata))
        try:
            with _losses_told(node, writes=False):
                async for response in call:
                    yield response
        finally:
            call.cancel()

    def produce(self, node: NodeId, request: bytes) -> asyncio.Future[ProduceAnswer]:
        """Pass on an encoded ProduceRequest, behind those given before. The caller bounds the time.

        Raises:
            FluxError: REJECTED at once.
        """
        self._check_link(node)
        return self._pipes[node].put(request)

    def _check_link(self, node: NodeId) -> None:
        if node not in self._pipes or not self._peers.is_connected(node):
            raise FluxError(Reason.NO_LEADER, f"there is no connection to node {node}, which could serve this")

    def _channel(self, node: NodeId) -> aio.Channel:
        channel = self._channels.get(node)
        if channel is None:
            address = self._peers.address_of(node)
            assert address is not None, "only nodes with a link are called"
            channel = self._channels[node] = self._network.open_channel(address)
        return channel

    def _metadata(self, node: NodeId) -> aio.Metadata:
        return aio.Metadata(*prove(self._secret, self._me.call_to(node)), (FORWARDED_KEY, "1"))

    def _open_pipe(self, node: NodeId) -> aio.StreamStreamCall[bytes, bytes]:
        call: aio.StreamStreamMultiCallable[bytes, bytes] = self._channel(node).stream_stream(PRODUCE_STREAM)
        return call(metadata=self._metadata(node))


@contextmanager
def _losses_told(node: NodeId, *, writes: bool) -> Iterator[None]:
    """What becomes of a call inside, other than its answer.

    Raises:
        FluxError: the other node's own answer, or what the loss of it means.
    """
    try:
        yield
    except aio.AioRpcError as error:
        known = error_of(error)
        raise known if isinstance(known, FluxError) else _lost(node, known, writes=writes) from None
    except asyncio.CancelledError:  # so gRPC ends the calls of a channel that is closed
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _lost(node, PeerUnreachable("its channel was closed"), writes=writes) from None


def _lost(node: NodeId, why: PeerUnreachable, *, writes: bool) -> FluxError:
    if writes:
        return FluxError(
            Reason.OUTCOME_UNKNOWN, f"the answer of node {node}, to which this was passed on, was lost: {why}"
        )
    reason = Reason.TIMEOUT if why.timed_out else Reason.NO_LEADER
    return FluxError(reason, f"node {node}, to which this was passed on, did not answer: {why}")


class ProducePipe:
    """One ProduceStream to one node, opened when something waits, and again when it broke."""

    def __init__(self, node: NodeId, open_call: Callable[[NodeId], aio.StreamStreamCall[bytes, bytes]]) -> None:
        self._node = node
        self._open_call = open_call
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._unanswered: dict[int, tuple[asyncio.Future[ProduceAnswer], int]] = {}
        self._sent_up_to = 0
        self._last_id = 0
        self._bytes = 0
        self._filled = asyncio.Event()
        self._wanted = asyncio.Event()

    def connect(self) -> None:
        """Open the stream, if it is not open."""
        self._wanted.set()

    def put(self, request: bytes) -> asyncio.Future[ProduceAnswer]:
        """Queue an encoded ProduceRequest.

        Raises:
            FluxError: OVERLOADED, REJECTED.
        """
        if (
            len(self._unanswered) >= limits.STREAM_IN_FLIGHT_MAX
            or self._bytes + len(request) > limits.CONNECTION_QUEUE_BYTES_MAX
        ):
            raise FluxError(
                Reason.OVERLOADED,
                f"{len(self._unanswered)} requests of {self._bytes} bytes wait to be passed on to node {self._node}",
                retry_after_ms=limits.OVERLOADED_RETRY_MS,
            )
        future: asyncio.Future[ProduceAnswer] = asyncio.get_running_loop().create_future()
        self._last_id += 1
        self._unanswered[self._last_id] = (future, len(request))
        self._bytes += len(request)
        self._waiting.append((self._last_id, request))
        self._filled.set()
        self._wanted.set()
        return future

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                await self._serve()
        finally:
            self._break("this node is shutting down")

    async def _serve(self) -> None:
        call = self._open_call(self._node)
        tasks = [asyncio.ensure_future(self._write(call)), asyncio.ensure_future(self._read(call))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            errors = [None if task.cancelled() else task.exception() for task in done]
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._break(next((_describe(error) for error in errors if error is not None), "the stream ended"))

    async def _write(self, call: aio.StreamStreamCall[bytes, bytes]) -> None:
        while True:
            await self._filled.wait()
            while self._waiting:
                number, request = self._waiting.popleft()
                self._sent_up_to = number
                await call.write(_stream_request(number, request))
            self._filled.clear()

    async def _read(self, call: aio.StreamStreamCall[bytes, bytes]) -> None:
        while (data := await call.read()) is not aio.EOF:
            assert isinstance(data, bytes)
            response = log_pb2.ProduceStreamResponse.FromString(data)
            for answer in (response, *response.more):
                if answer.HasField("committed"):
                    self._answer(answer.correlation_id, answer.committed)
                else:
                    self._answer(answer.correlation_id, error_from_message(answer.error))

    def _answer(self, number: int, answer: ProduceAnswer) -> None:
        future, size = self._unanswered.pop(number, (None, 0))
        self._bytes -= size
        if future is not None and not future.done():
            future.set_result(answer)

    def _break(self, why: str) -> None:
        """The stream ended: what was handed to it is UNKNOWN, the rest was surely not sent."""
        self._waiting.clear()
        self._filled.clear()
        for number in tuple(self._unanswered):
            if number <= self._sent_up_to:
                error = FluxError(Reason.OUTCOME_UNKNOWN, f"passed on to node {self._node}, then: {why}")
            else:
                error = FluxError(Reason.NO_LEADER, f"could not be passed on to node {self._node}: {why}")
            self._answer(number, error)


def _describe(error: BaseException) -> str:
    if isinstance(error, aio.AioRpcError):
        known = error_of(error)
        return known.message if isinstance(known, FluxError) else str(known)
    if isinstance(error, asyncio.InvalidStateError | PeerUnreachable):
        return "the stream ended"
    raise error


def _stream_request(number: int, request: bytes) -> bytes:
    """An encoded ProduceStreamRequest that accepts `more`, without parsing what is in it."""
    return b"".join((b"\x18\x01\x08", encode_varint(number), b"\x12", encode_varint(len(request)), request))
