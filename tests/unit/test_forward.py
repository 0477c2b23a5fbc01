"""Calls that are passed on to another node, over real channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest
from grpc import aio

from fluxd.broker import forward
from fluxd.broker.forward import Forwarder
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.peer.identity import Identity
from tests.unit.broker_fakes import ME, directory

THERE = NodeId(2)


class _Links:
    """One to the other node stands."""

    def __init__(self, address: str) -> None:
        self._address = address

    def is_connected(self, peer: NodeId) -> bool:
        return peer == THERE

    def address_of(self, peer: NodeId) -> str | None:
        return self._address


class _Silent(grpc.GenericRpcHandler):
    """Takes calls, says that it has, and never ends them."""

    def __init__(self) -> None:
        self.taken = asyncio.Event()

    def service(self, handler_call_details: object) -> Any:
        async def unary(request: bytes, context: object) -> bytes:
            self.taken.set()
            await asyncio.Event().wait()
            return b""

        async def stream(request: object, context: object) -> AsyncIterator[bytes]:
            yield b"taken"
            await asyncio.Event().wait()

        kinds: dict[str, Any] = {
            "unary": grpc.unary_unary_rpc_method_handler(unary),
            "stream": grpc.unary_stream_rpc_method_handler(stream),
            "bidi": grpc.stream_stream_rpc_method_handler(stream),
        }
        method: str = handler_call_details.method  # type: ignore[attr-defined]
        return kinds[method.rpartition("/")[2]]


def run(test: Callable[[Forwarder, _Silent], Awaitable[None]]) -> None:
    async def inside() -> None:
        there, server = _Silent(), aio.server()
        handlers: Sequence[Any] = [there]
        server.add_generic_rpc_handlers(handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        me = Identity(ME, directory(ME), (), "host1:7000", 1, "0", False)
        forwarder = Forwarder(me, b"", _Links(f"127.0.0.1:{port}"), [ME, THERE])
        running = asyncio.ensure_future(forwarder.run())
        try:
            async with asyncio.timeout(30):
                await test(forwarder, there)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await server.stop(0)

    asyncio.run(inside())


async def _never() -> AsyncIterator[bytes]:
    yield b"first"
    await asyncio.Event().wait()


async def _unary(forwarder: Forwarder, there: _Silent, *, writes: bool) -> asyncio.Future[bytes]:
    call = forwarder.unary(THERE, "/t.T/unary", b"", timeout_s=60, writes=writes)
    asked = asyncio.ensure_future(call)
    await there.taken.wait()
    return asked


async def _read(forwarder: Forwarder, there: _Silent) -> asyncio.Future[bytes]:
    return await _unary(forwarder, there, writes=False)


async def _write(forwarder: Forwarder, there: _Silent) -> asyncio.Future[bytes]:
    return await _unary(forwarder, there, writes=True)


async def _stream(forwarder: Forwarder, there: _Silent) -> asyncio.Future[bytes]:
    answers = forwarder.stream(THERE, "/t.T/stream", b"")
    assert await anext(answers) == b"taken"
    return asyncio.ensure_future(_next(answers))


async def _bidi(forwarder: Forwarder, there: _Silent) -> asyncio.Future[bytes]:
    answers = forwarder.bidi(THERE, "/t.T/bidi", _never())
    assert await anext(answers) == b"taken"
    return asyncio.ensure_future(_next(answers))


async def _next(answers: AsyncIterator[bytes]) -> bytes:
    return await anext(answers)


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (_read, Reason.NO_LEADER),
        (_write, Reason.OUTCOME_UNKNOWN),
        (_stream, Reason.NO_LEADER),
        (_bidi, Reason.NO_LEADER),
    ],
)
def test_what_a_discarded_channel_takes_with_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Forwarder, _Silent], Awaitable[asyncio.Future[bytes]]],
    reason: Reason,
) -> None:
    """gRPC cancels what stands on a channel that is closed: not to be taken for the end of the task that waits."""
    monkeypatch.setattr(forward, "_CHANNEL_GRACE", 0.0)

    async def test(forwarder: Forwarder, there: _Silent) -> None:
        asked = await ask(forwarder, there)
        forwarder.link_down(THERE)
        with pytest.raises(FluxError) as caught:
            await asked
        assert caught.value.reason is reason

    run(test)


def test_a_task_that_is_cancelled_stays_so() -> None:
    async def test(forwarder: Forwarder, there: _Silent) -> None:
        asked = await _bidi(forwarder, there)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    run(test)
