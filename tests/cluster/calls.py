"""grpc.aio on the simulated network, the client's side: channels and calls, as far as nodes and clients use them.

A call is carried to the other process as what a handler is given and answers, bytes; framing and HTTP/2 are not
simulated. It fails as in gRPC: UNAVAILABLE when the connection is refused or breaks, DEADLINE_EXCEEDED when its time is
up, and not at all while the other end is silent and keepalive has not given up yet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import grpc
from grpc import aio

from fluxd.peer.channels import Door
from tests.cluster.process import SimProcess
from tests.cluster.wire import Connection, Wire

WINDOW = 16
"""Messages of one stream and direction that were sent and not taken: flow control."""
_PEER_STREAMS = ("/fluxlog.v1.Peer/Control", "/fluxlog.v1.Peer/Bulk")

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailers: tuple[tuple[str, str | bytes], ...] = ()


class Remote(Protocol):
    """The server's side of a call. Called in the server's process."""

    def feed(self, data: bytes | None) -> None:
        """A message of the client; None: there are no more."""

    def credit(self) -> None:
        """The client has taken a message."""

    def cancel(self) -> None:
        """The client does not want the answer any more."""


class Service(Protocol):
    """Who answers the calls of a connection."""

    def begin(self, call: SimCall, connection: Connection) -> Remote:
        """A call has arrived."""


class SimCall:
    """One call, in the client's process."""

    def __init__(
        self, channel: SimChannel, method: str, metadata: Metadata | None, timeout: float | None, request: bytes | None
    ) -> None:
        self.method, self.request, self.timeout = method, request, timeout
        self.metadata = tuple((key, value) for key, value in metadata or ())
        self._channel, self._loop = channel, channel.process.loop
        self._connection: Connection | None = None
        self._remote: Remote | None = None
        self._status: Status | None = None
        self._cancelled = False
        self._messages: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._untaken = 0
        self._sender: asyncio.Future[None] | None = None
        self._timer = self._loop.call_later(timeout, self._expire) if timeout is not None else None
        channel.begin(self)

    # ---- towards the server

    def connected(self, connection: Connection) -> None:
        """The way is there: go."""
        if self._status is None:
            self._connection = connection
            connection.up.send(lambda: self._arrive(connection))

    def _arrive(self, connection: Connection) -> None:
        service: Service = connection.service
        self._remote = service.begin(self, connection)

    def _tell(self, action: Callable[[Remote], None]) -> None:
        """Behind what was sent before: the call itself has arrived then."""
        if self._connection is not None:
            self._connection.up.send(lambda: action(cast(Remote, self._remote)))

    async def write(self, data: bytes) -> None:
        """Send one message of a stream."""
        while self._status is None and (self._connection is None or self._untaken >= WINDOW):
            await self._wait()
        if self._status is not None:
            raise self._failure() or asyncio.InvalidStateError("the call is over")
        self._untaken += 1
        self._tell(lambda remote: remote.feed(data))
        if self.method in _PEER_STREAMS:
            self._channel.wire.on_peer_frame(self._channel.process, self._channel.address, data)
            if self._channel.wire.duplicates():
                self._channel.wire.counts["frames_duplicated"] += 1
                self._untaken += 1
                self._tell(lambda remote: remote.feed(data))

    def send_all(self, requests: AsyncIterator[bytes]) -> None:
        """Send what an iterator yields, as long as the call lasts."""

        async def send() -> None:
            try:
                async for request in requests:
                    await self.write(request)
                await self.done_writing()
            except (aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the call is over: its reader is told

        self._sender = self._loop.create_task(send())

    async def done_writing(self) -> None:
        """The stream of requests ends here."""
        self._tell(lambda remote: remote.feed(None))

    def cancel(self) -> bool:
        """Give up; the server is told."""
        if self._status is not None:
            return False
        self._cancelled = True
        self.finish(Status(grpc.StatusCode.CANCELLED, "cancelled by the client"))
        self._tell(lambda remote: remote.cancel())
        return True

    def _expire(self) -> None:
        if self._status is None:
            self.finish(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
            self._tell(lambda remote: remote.cancel())

    # ---- from the server

    def receive(self, data: bytes) -> None:
        """A message of the server."""
        if self._status is None:
            self._messages.append(data)
            self._wake()

    def credit(self) -> None:
        """The server has taken a message."""
        self._untaken -= 1
        self._wake()

    def finish(self, status: Status) -> None:
        """The call is over. Only the first end counts."""
        if self._status is None:
            self._status = status
            if self._timer is not None:
                self._timer.cancel()
            if self._sender is not None:
                self._sender.cancel()
            self._channel.ended(self)
            self._wake()

    def _wake(self) -> None:
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # ---- for the caller

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._answer().__await__()

    async def _answer(self) -> bytes:
        try:
            while self._status is None:
                await self._wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        failure = self._failure()
        if failure is not None:
            raise failure
        return self._messages[0]

    async def read(self) -> Any:
        """The next message of a stream, or aio.EOF."""
        try:
            while not self._messages and self._status is None:
                await self._wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._messages:
            self._tell(lambda remote: remote.credit())
            return self._messages.popleft()
        failure = self._failure()
        if failure is not None:
            raise failure
        return aio.EOF

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (data := await self.read()) is not aio.EOF:
            yield data

    def done(self) -> bool:
        """It is over."""
        return self._status is not None

    async def trailing_metadata(self) -> aio.Metadata:
        """Once it is over."""
        while self._status is None:
            await self._wait()
        return aio.Metadata(*self._status.trailers)

    def _failure(self) -> BaseException | None:
        status = self._status
        if status is None or status.code is grpc.StatusCode.OK:
            return None
        if self._cancelled:
            return asyncio.CancelledError()
        return aio.AioRpcError(status.code, aio.Metadata(), aio.Metadata(*status.trailers), details=status.details)


class SimChannel:
    """A channel of one process to an address. Its connection is made for the first call, and again after it broke."""

    def __init__(self, wire: Wire, process: SimProcess, address: str, patience: float) -> None:
        self.wire, self.process, self.address, self._patience = wire, process, address, patience
        self._connection: Connection | None = None
        self._connecting = self._closed = False
        self._calls: dict[int, SimCall] = {}
        self._waiting: list[SimCall] = []

    # ---- as grpc.aio has it

    def unary_unary(self, method: str) -> Callable[..., SimCall]:
        """A method with one request and one response."""
        return self._method(method)

    unary_stream = unary_unary

    def stream_stream(self, method: str) -> Callable[..., SimCall]:
        """A method with streams both ways."""

        def call(requests: AsyncIterator[bytes] | None = None, **options: Any) -> SimCall:
            begun = self._method(method)(None, **options)
            if requests is not None:
                begun.send_all(requests)
            return begun

        return call

    def _method(self, method: str) -> Callable[..., SimCall]:
        def call(request: bytes | None, *, metadata: Metadata | None = None, timeout: float | None = None) -> SimCall:
            return SimCall(self, method, metadata, timeout, request)

        return call

    async def close(self, grace: float | None = None) -> None:
        """End the calls, after the grace, and the connection."""
        self._closed = True
        if grace and self._calls:
            await asyncio.sleep(grace)
        for call in tuple(self._calls.values()):
            call.cancel()
        if self._connection is not None:
            self._connection.break_client("the channel was closed")

    # ---- for calls

    def begin(self, call: SimCall) -> None:
        """Find a connection for a call."""
        self._calls[id(call)] = call
        if self._connection is not None:
            call.connected(self._connection)
            return
        self._waiting.append(call)
        if not self._connecting:
            self._connecting = True
            self.wire.connect(self.process, self.address, self._patience, self._connected)

    def ended(self, call: SimCall) -> None:
        """A call is over."""
        self._calls.pop(id(call), None)

    def _connected(self, connection: Connection | str) -> None:
        self._connecting = False
        waiting, self._waiting = self._waiting, []
        if isinstance(connection, str):
            for call in waiting:
                call.finish(Status(grpc.StatusCode.UNAVAILABLE, f"failed to connect to {self.address}: {connection}"))
            return
        connection.on_client_broken = lambda why: self._broken(connection, why)
        if self._closed:
            connection.break_client("the channel was closed")
            return
        self._connection = connection
        for call in waiting:
            call.connected(connection)
            call._wake()

    def _broken(self, connection: Connection, why: str) -> None:
        if self._connection is connection:
            self._connection = None
            for call in tuple(self._calls.values()):
                call.finish(Status(grpc.StatusCode.UNAVAILABLE, why))


class SimNetwork:
    """What a process is handed as its `peer.channels.Network`."""

    def __init__(self, wire: Wire, process: SimProcess, patience: float) -> None:
        self._wire, self._process, self._patience = wire, process, patience

    def open_channel(self, address: str) -> aio.Channel:
        """To a node."""
        return cast(aio.Channel, SimChannel(self._wire, self._process, address, self._patience))

    async def knock(self, address: str) -> Door:
        """A process that stands still does not hang up: its system answers for it."""
        await asyncio.sleep(2 * self._wire.delay())
        for _ in range(4):
            reached = self._wire.reaches(self._process.host, address)
            if reached is not None:
                return Door.OPEN if reached else Door.CLOSED
            await asyncio.sleep(0.25)
        return Door.SILENT
