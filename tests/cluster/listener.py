"""grpc.aio on the simulated network, the server's side: the production handlers are called with bytes and a context."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import grpc

from tests.cluster.calls import WINDOW, Metadata, SimCall, Status
from tests.cluster.process import SimProcess
from tests.cluster.wire import Connection, Wire

Defect = Callable[[SimProcess, str], None]


class _Details(NamedTuple):
    """grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: Metadata


class SimContext:
    """What a handler is given: the part of grpc.aio.ServicerContext that ours use."""

    def __init__(self, connection: Connection, metadata: Metadata) -> None:
        self._connection, self._metadata = connection, metadata
        self.status_code = grpc.StatusCode.OK
        self.status_details = ""
        self.trailers: tuple[tuple[str, str | bytes], ...] = ()
        self._callbacks: list[Callable[[Any], None]] = []
        self._done = False

    def invocation_metadata(self) -> Metadata:
        """Of the call."""
        return self._metadata

    def peer(self) -> str:
        """The client's address."""
        return self._connection.peer

    def set_code(self, code: grpc.StatusCode) -> None:
        """Of the end."""
        self.status_code = code

    def set_details(self, details: str) -> None:
        """Of the end."""
        self.status_details = details

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Of the end."""
        self.trailers = tuple(metadata)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Called when the call is over."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """The handler is not wanted any more."""
        return self._done

    done = cancelled

    def end(self) -> None:
        """The call is over."""
        if not self._done:
            self._done = True
            for callback in self._callbacks:
                callback(self)


class ServerCall:
    """One call, in the server's process."""

    def __init__(self, listener: SimListener, handler: Any, call: SimCall, connection: Connection) -> None:
        self._listener, self._handler, self._call, self._connection = listener, handler, call, connection
        self._context = SimContext(connection, call.metadata)
        self._requests: deque[bytes | None] = deque()
        self._changed = asyncio.Event()
        self._untaken = 0
        self._is_stream = handler.response_streaming
        loop = listener.process.loop
        self._timer = loop.call_later(call.timeout, self.cancel) if call.timeout is not None else None
        self._status = Status(grpc.StatusCode.CANCELLED, "the server ended the call")
        self.task = loop.create_task(self._serve())
        self.task.add_done_callback(self._ended)

    # ---- from the client

    def feed(self, data: bytes | None) -> None:
        """See calls.Remote."""
        self._requests.append(data)
        self._changed.set()

    def credit(self) -> None:
        """See calls.Remote."""
        self._untaken -= 1
        self._changed.set()

    def cancel(self) -> None:
        """See calls.Remote."""
        self.task.cancel()

    # ---- serving

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _take(self) -> AsyncIterator[bytes]:
        while True:
            while not self._requests:
                await self._wait()
            data = self._requests.popleft()
            if data is None:
                return
            self._connection.down.send(self._call.credit)
            yield data

    async def _serve(self) -> None:
        handler, context = self._handler, self._context
        try:
            if handler.request_streaming:
                await self._answer(handler.stream_stream(self._take(), context))
            elif handler.response_streaming:
                await self._answer(handler.unary_stream(self._call.request, context))
            else:
                response = await handler.unary_unary(self._call.request, context)
                if context.status_code is grpc.StatusCode.OK:
                    self._respond(response)
            self._status = Status(context.status_code, context.status_details, context.trailers)
        except Exception as error:
            self._listener.on_defect(self._listener.process, f"{self._call.method} raised {error!r}")
            self._status = Status(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")

    def _ended(self, _: object) -> None:
        """The handler has returned, or was cancelled, perhaps before it had begun."""
        if self._timer is not None:
            self._timer.cancel()
        self._listener.ended(self)
        self._context.end()
        status = self._status
        if status.code is grpc.StatusCode.INTERNAL:
            self._listener.on_defect(self._listener.process, f"{self._call.method}: INTERNAL {status.details}")
        self._connection.down.send(lambda: self._call.finish(status))

    async def _answer(self, responses: AsyncIterator[bytes]) -> None:
        async for response in responses:
            while self._untaken >= WINDOW:
                await self._wait()
            self._untaken += 1
            self._respond(response)

    def _respond(self, response: bytes) -> None:
        self._connection.down.send(lambda: self._call.receive(response))


class SimListener:
    """The one port of a simulated node: `machine.Listener`."""

    def __init__(
        self, wire: Wire, process: SimProcess, address: str, handlers: Sequence[grpc.GenericRpcHandler],
        on_defect: Defect,
    ) -> None:  # fmt: skip
        self.process, self.on_defect = process, on_defect
        self.serving = False
        self._wire, self._address, self._handlers = wire, address, handlers
        self._calls: dict[int, ServerCall] = {}
        self._connections: list[Connection] = []
        self._stopping = False

    # ---- as the node uses it

    async def start(self) -> None:
        """Listen."""
        self._wire.listen(self._address, self.process, self._accept)

    async def set_serving(self, *, serving: bool) -> None:
        """What health would say."""
        self.serving = serving

    async def stop(self, grace_s: float) -> None:
        """Take no more; end what still runs after the grace."""
        self.serving, self._stopping = False, True
        self._wire.unlisten(self.process)
        deadline = self.process.loop.time() + grace_s
        while self._calls and (left := deadline - self.process.loop.time()) > 0:
            await asyncio.wait([call.task for call in self._calls.values()], timeout=left)
        tasks = [call.task for call in self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections:
            connection.break_server()

    # ---- as connections use it

    def _accept(self, connection: Connection) -> None:
        connection.service = self
        self._connections = [known for known in self._connections if known.server_open]
        self._connections.append(connection)
        connection.on_server_broken = lambda: self._broken(connection)

    def _broken(self, connection: Connection) -> None:
        for call in tuple(self._calls.values()):
            if call._connection is connection:
                call.cancel()

    def begin(self, call: SimCall, connection: Connection) -> ServerCall | Refused:
        """A call has arrived."""
        if self._stopping:
            return Refused(call, connection, Status(grpc.StatusCode.UNAVAILABLE, "the server is shutting down"))
        details = _Details(call.method, call.metadata)
        for services in self._handlers:
            handler = services.service(details)  # type: ignore[arg-type]  # a tuple of the two attributes it reads
            if handler is not None:
                served = ServerCall(self, handler, call, connection)
                self._calls[id(served)] = served
                return served
        return Refused(call, connection, Status(grpc.StatusCode.UNIMPLEMENTED, "no such method"))

    def ended(self, call: ServerCall) -> None:
        """A call is over."""
        self._calls.pop(id(call), None)


class Refused:
    """A call that nobody serves."""

    def __init__(self, call: SimCall, connection: Connection, status: Status) -> None:
        connection.down.send(lambda: call.finish(status))

    def feed(self, data: bytes | None) -> None:
        """Nobody reads it."""

    def credit(self) -> None:
        """Nobody waits for it."""

    def cancel(self) -> None:
        """It is over already."""
