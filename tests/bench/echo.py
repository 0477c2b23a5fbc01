"""A bare grpc.aio server: the transport's own limit, without any log behind it.

Run as `python -m tests.bench.echo PORT`. `Echo` answers a request with itself, `Swallow` a stream of requests with
eight bytes each, `Blast` one request (count and size) with that many messages of that size.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
from grpc import aio

from fluxd import tuning
from fluxd.rpc.server import OPTIONS

SERVICE = "bench.Echo"
_ACK = bytes(8)


async def _echo(request: bytes, _: aio.ServicerContext[bytes, bytes]) -> bytes:
    return request


async def _swallow(requests: AsyncIterator[bytes], _: aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    async for _request in requests:
        yield _ACK


async def _blast(request: bytes, _: aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    count, size = map(int, request.split())
    message = bytes(size)
    for _number in range(count):
        yield message


async def serve(port: int) -> None:
    """Until killed."""
    server = aio.server(options=OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Swallow": grpc.stream_stream_rpc_method_handler(_swallow),
        "Blast": grpc.unary_stream_rpc_method_handler(_blast),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    tuning.tune_allocator()
    with asyncio.Runner(loop_factory=tuning.loop_factory()) as runner:
        runner.run(serve(int(sys.argv[1])))
