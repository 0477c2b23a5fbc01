"""From a plain async function to a gRPC handler: parse, serve, map what went wrong, one log line.

All methods take bytes and give bytes. So malformed protobuf becomes our own INVALID_ARGUMENT (gRPC's deserialiser would
answer an opaque INTERNAL), and what is bytes already goes out without being touched. Whatever a handler raises ends its
call and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from fluxd.core.errors import FluxError, Outcome, Reason
from fluxd.observability import get_logger
from fluxd.rpc.errors import STATUS_CODES, set_error

log = get_logger()

Context = aio.ServicerContext[bytes, bytes]
UnaryBody = Callable[[bytes, Context], Awaitable[bytes]]
StreamBody = Callable[[bytes, Context], AsyncIterator[bytes]]
BidiBody = Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """Decode a request.

    Raises:
        FluxError: INVALID_ARGUMENT. Any bytes either decode or give this.
    """
    try:
        return kind.FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise FluxError(
            Reason.INVALID_ARGUMENT, f"the {len(data)} bytes of the request are not a {kind.__name__}"
        ) from error


async def parse_each(kind: type[M], requests: AsyncIterator[bytes]) -> AsyncIterator[M]:
    """`parse`, of a stream."""
    async for request in requests:
        yield parse(kind, request)


class _Call:
    """One call's end: its status, its log line."""

    def __init__(self, method: str, context: Context, *, writes: bool) -> None:
        self.method, self.context, self.writes = method, context, writes
        self.started = time.perf_counter()

    def ended(self, error: BaseException | None) -> None:
        """Log, and for an error set the status. Cancellation is the client's and is passed on by the caller."""
        duration_ms = round((time.perf_counter() - self.started) * 1000, 1)
        if error is None:
            log.debug("rpc_handled", method=self.method, duration_ms=duration_ms, status="OK")
            return
        if isinstance(error, asyncio.CancelledError | aio.BaseError) and not isinstance(error, aio.InternalError):
            # grpc.aio's own exceptions tell a handler that reads on that the call is over: answered, aborted, or the
            # server stopped
            log.debug("rpc_handled", method=self.method, duration_ms=duration_ms, status="CANCELLED")
            return
        if not isinstance(error, FluxError):
            log.error("rpc_failed", method=self.method, duration_ms=duration_ms, exc_info=error)
            error = FluxError(
                Reason.INTERNAL, f"a defect in the server ({type(error).__name__}); its log has the details"
            )
        status = STATUS_CODES[error.reason].name
        # What the cluster cannot do at the moment may come thousands of times a second; clients are told, and retry.
        level = log.debug if error.traits.retriable and error.traits.outcome is Outcome.REJECTED else log.info
        level(
            "rpc_handled",
            method=self.method,
            duration_ms=duration_ms,
            status=status,
            reason=error.reason.name,
            message=error.message,
            client=self.context.peer(),
        )
        set_error(self.context, error, writes=self.writes)


def unary(method: str, body: UnaryBody, *, writes: bool = False) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler for one request and one response.

    Args:
        writes: errors say what became of the write.
    """

    async def handle(request: bytes, context: Context) -> bytes:
        call = _Call(method, context, writes=writes)
        try:
            response = await body(request, context)
        except asyncio.CancelledError as error:
            call.ended(error)
            raise
        except Exception as error:  # noqa: BLE001 - the edge: a defect ends this call, not the node
            call.ended(error)
            return b""
        call.ended(None)
        return response

    return grpc.unary_unary_rpc_method_handler(handle)


def server_stream(method: str, body: StreamBody) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler for one request and a stream of responses."""

    async def handle(request: bytes, context: Context) -> AsyncIterator[bytes]:
        call = _Call(method, context, writes=False)
        try:
            async for response in body(request, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit) as error:
            call.ended(asyncio.CancelledError() if isinstance(error, GeneratorExit) else error)
            raise
        except Exception as error:  # noqa: BLE001 - as in unary
            call.ended(error)
        else:
            call.ended(None)

    return grpc.unary_stream_rpc_method_handler(handle)


def bidi_stream(method: str, body: BidiBody, *, writes: bool = False) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler for a stream of requests and a stream of responses."""

    async def handle(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        call = _Call(method, context, writes=writes)
        try:
            async for response in body(requests, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit) as error:
            call.ended(asyncio.CancelledError() if isinstance(error, GeneratorExit) else error)
            raise
        except Exception as error:  # noqa: BLE001 - as in unary
            call.ended(error)
        else:
            call.ended(None)

    return grpc.stream_stream_rpc_method_handler(handle)


def typed_service(
    service: ServiceDescriptor, servicers: Sequence[object], *, writes: frozenset[str]
) -> grpc.GenericRpcHandler:
    """A service that has unary methods only: see `typed_unaries`."""
    return grpc.method_handlers_generic_handler(service.full_name, typed_unaries(service, servicers, writes=writes))


def typed_unaries(
    service: ServiceDescriptor, servicers: Sequence[object], *, writes: frozenset[str]
) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
    """The unary methods of a service, from servicers whose methods take and give messages and raise FluxError.

    Args:
        servicers: each method is the first one's that has it.
        writes: names of the methods whose errors say an outcome.
    """

    def body_of(method: MethodDescriptor) -> UnaryBody:
        request_type = GetMessageClass(method.input_type)
        serve = next(getattr(servicer, method.name) for servicer in servicers if hasattr(servicer, method.name))

        async def body(request: bytes, context: Context) -> bytes:
            response = await serve(parse(request_type, request), context)
            encoded: bytes = response.SerializeToString()
            return encoded

        return body

    return {
        method.name: unary(f"{service.name}/{method.name}", body_of(method), writes=method.name in writes)
        for method in service.methods
        if not method.client_streaming and not method.server_streaming
    }
