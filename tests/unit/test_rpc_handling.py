"""Whatever a handler does ends its own call with a clear status, over a real connection."""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from structlog.testing import capture_logs

from fluxd.core.errors import TRAITS, FluxError, Reason
from fluxd.rpc.handling import Context, bidi_stream, parse, server_stream, typed_service, unary
from fluxd.rpc.server import Server
from fluxlog.v1 import admin_pb2, log_pb2


async def _fail(request: bytes, context: Context) -> bytes:
    reason = Reason[request.decode()] if request else None
    if reason is None:
        raise RuntimeError("a defect")
    raise FluxError(reason, f"said {reason.name}", metadata={"a": "b"}, retry_after_ms=70)


async def _echo(request: bytes, context: Context) -> bytes:
    return request


async def _three(request: bytes, context: Context) -> AsyncIterator[bytes]:
    yield b"1"
    yield b"2"
    raise FluxError(Reason.UNKNOWN_TOPIC, "gone")


async def _each(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for request in requests:
        if not request:
            raise RuntimeError("a defect")
        yield request


class _Admin:
    async def CreateTopic(
        self, request: admin_pb2.CreateTopicRequest, context: Context
    ) -> admin_pb2.CreateTopicResponse:
        return admin_pb2.CreateTopicResponse(name=request.name)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        async def missing(*_: object) -> object:
            raise FluxError(Reason.NOT_READY, name)

        return missing


def with_server(test: Callable[[aio.Channel], Awaitable[None]]) -> None:
    """Run a test against a server with the handlers above."""
    handlers = {
        "Fail": unary("Fail", _fail, writes=True),
        "Read": unary("Read", _fail),
        "Echo": unary("Echo", _echo),
        "Three": server_stream("Three", _three),
        "Each": bidi_stream("Each", _each),
    }

    async def run() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        admin = typed_service(admin_pb2.DESCRIPTOR.services_by_name["Admin"], [_Admin()], writes=frozenset())
        server = Server(address, [grpc.method_handlers_generic_handler("x.Test", handlers), admin])
        await server.start()
        async with aio.insecure_channel(address) as channel:
            await test(channel)
        await server.stop(0)

    asyncio.run(run())


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, error_details_pb2.ErrorInfo, int]:
    """Status, text, ErrorInfo and retry delay of a call that must fail."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    details = dict(caught.value.trailing_metadata() or ()).get("grpc-status-details-bin")
    status = status_pb2.Status.FromString(cast(bytes, details))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(retry)
    assert info.domain == "fluxlog"
    return caught.value.code(), caught.value.details() or "", info, retry.retry_delay.ToMilliseconds()


def test_every_reason_has_its_status() -> None:
    """Status, reason, outcome, retriable, metadata and delay arrive as the table of errors says."""

    async def test(channel: aio.Channel) -> None:
        method: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/x.Test/Fail")
        for reason, traits in TRAITS.items():
            code, text, info, delay = await failure(method(reason.name.encode()))
            assert (code.name, text, info.reason, delay) == (traits.status, f"said {reason.name}", reason.name, 70)
            assert info.metadata["outcome"] == traits.outcome.name
            assert info.metadata["retriable"] == str(traits.retriable).lower()
            assert info.metadata["a"] == "b"

    with_server(test)


def test_reads_have_no_outcome() -> None:
    """What became of a write is said of writes alone."""

    async def test(channel: aio.Channel) -> None:
        method: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/x.Test/Read")
        _, _, info, _ = await failure(method(b"NO_LEADER"))
        assert "outcome" not in info.metadata

    with_server(test)


def test_defects_end_their_call_alone() -> None:
    """An exception of any kind is INTERNAL with our details, and the server goes on."""

    async def test(channel: aio.Channel) -> None:
        method: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/x.Test/Fail")
        code, text, info, _ = await failure(method(b""))
        assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "RuntimeError" in text
        echo: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/x.Test/Echo")
        assert await echo(b"\xff\x00") == b"\xff\x00"

    with_server(test)


def test_streams() -> None:
    """A stream delivers what came before its error; a defect in the middle of one is INTERNAL."""

    async def test(channel: aio.Channel) -> None:
        three: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/x.Test/Three")
        call = three(b"")
        assert [await call.read(), await call.read()] == [b"1", b"2"]
        code, _, info, _ = await failure(call.read())
        assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TOPIC")
        each: aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/x.Test/Each")
        both = each(iter([b"a", b""]))
        assert await both.read() == b"a"
        assert (await failure(both.read()))[0] is grpc.StatusCode.INTERNAL

    with_server(test)


def test_typed_methods() -> None:
    """Messages in, messages out; bytes that are none are INVALID_ARGUMENT."""

    async def test(channel: aio.Channel) -> None:
        create: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/fluxlog.v1.Admin/CreateTopic")
        answer = await create(admin_pb2.CreateTopicRequest(name="n").SerializeToString())
        assert admin_pb2.CreateTopicResponse.FromString(answer).name == "n"
        assert (await failure(create(b"\xff")))[2].reason == "INVALID_ARGUMENT"
        stop: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/fluxlog.v1.Admin/StopNode")
        assert (await failure(stop(b"")))[1] == "StopNode"

    with_server(test)


def test_bad_text_is_invalid() -> None:
    """A string that is not UTF-8 is a malformed request, not a defect."""
    with pytest.raises(FluxError) as caught:
        parse(log_pb2.FetchRequest, b"\x0a\x02\xff\xfe")
    assert caught.value.reason is Reason.INVALID_ARGUMENT


_SERVER_STOPPED = importlib.import_module("grpc._cython.cygrpc")._ServerStoppedError  # has no public name


@pytest.mark.parametrize("kind", [aio.UsageError, _SERVER_STOPPED])
def test_a_call_that_ended_under_a_reading_handler_is_no_defect(kind: type[Exception]) -> None:
    """grpc.aio raises its own errors in a handler that reads on when its call is answered, or the server has stopped
    (short chaos run; chaos seed 103: a node that stopped while a peer's stream was read).
    """

    async def over(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        yield b"1"
        raise kind("the server is stopped")

    class Peer:
        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name}: the status of a call that is over must not be set")

    async def run() -> list[bytes]:
        handler = cast(Any, bidi_stream("Test/Over", over))
        return [response async for response in handler.stream_stream(None, Peer())]

    with capture_logs() as logs:
        assert asyncio.run(run()) == [b"1"]
    assert not [entry for entry in logs if entry["log_level"] == "error"]
