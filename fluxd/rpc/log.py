"""The Log service: the door of the data path. What is decided stands in fluxd/broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import grpc

from fluxd.broker.admission import Admission
from fluxd.broker.fetch import FetchCall, Fetching
from fluxd.broker.offsets import ListingOffsets
from fluxd.broker.produce import ProduceCall, Producing
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_message
from fluxd.observability import get_logger
from fluxd.rpc.handling import Context, bidi_stream, parse, server_stream, unary
from fluxd.rpc.raw import parse_produce, parse_stream_request
from fluxlog.v1 import log_pb2

log = get_logger()

_Turns = WeakValueDictionary[tuple[str, int], asyncio.Lock]


@dataclass(frozen=True, slots=True)
class Broker:
    """What serves the data path."""

    producing: Producing
    fetching: Fetching
    offsets: ListingOffsets
    deliveries: Admission
    """Of responses that clients have not taken yet."""


class LogService:
    """Handlers of fluxlog.v1.Log.

    Args:
        broker: gives the broker, or raises NOT_READY or STOPPING.
        is_forwarded: another node passes the call on; raises UNAUTHENTICATED when a stranger says so.
    """

    def __init__(self, broker: Callable[[], Broker], is_forwarded: Callable[[Context], bool]) -> None:
        self._broker = broker
        self._is_forwarded = is_forwarded

    def handlers(self) -> grpc.GenericRpcHandler:
        """For a server."""
        return grpc.method_handlers_generic_handler(
            "fluxlog.v1.Log",
            {
                "Produce": unary("Log/Produce", self._produce, writes=True),
                "ProduceStream": bidi_stream("Log/ProduceStream", self._produce_stream, writes=True),
                "Fetch": unary("Log/Fetch", self._fetch),
                "Follow": server_stream("Log/Follow", self._follow),
                "ListOffsets": unary("Log/ListOffsets", self._list_offsets),
            },
        )

    async def _produce(self, request: bytes, context: Context) -> bytes:
        broker = self._broker()
        call = parse_produce(request, connection=context.peer(), forwarded=self._is_forwarded(context))
        response = await broker.producing.produce(call)
        return response.SerializeToString()

    async def _produce_stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Requests are served by a task each; a lock per partition keeps their order until they are on their way."""
        connection, forwarded = context.peer(), self._is_forwarded(context)
        responses: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by `places`
        places = asyncio.Semaphore(limits.STREAM_IN_FLIGHT_MAX)
        turns: _Turns = WeakValueDictionary()

        async def serve(number: int, raw: bytes | memoryview) -> None:
            response = await self._produce_one(raw, connection, turns, forwarded=forwarded)
            response.correlation_id = number
            responses.put_nowait(response.SerializeToString())

        async def read() -> None:
            try:
                async with asyncio.TaskGroup() as serving:
                    async for message in requests:
                        number, raw = parse_stream_request(message)
                        await places.acquire()
                        serving.create_task(serve(number, raw))
            finally:
                responses.put_nowait(None)

        reader = asyncio.ensure_future(read())
        try:
            while (response := await responses.get()) is not None:
                places.release()
                yield response
            await _outcome(reader)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _produce_one(
        self, raw: bytes | memoryview, connection: str, turns: _Turns, *, forwarded: bool
    ) -> log_pb2.ProduceStreamResponse:
        response = log_pb2.ProduceStreamResponse()
        try:
            call = parse_produce(raw, connection=connection, forwarded=forwarded)
            turn = _turn(turns, call)
            response.committed.CopyFrom(await self._broker().producing.produce(call, turn))
        except FluxError as error:
            response.error.CopyFrom(error_message(error, writes=True))
        except Exception as error:  # a defect ends this request, not the stream's other ones
            log.exception("rpc_failed", method="Log/ProduceStream")
            internal = FluxError(
                Reason.INTERNAL, f"a defect in the server ({type(error).__name__}); its log has the details"
            )
            response.error.CopyFrom(error_message(internal, writes=True))
        return response

    async def _fetch(self, request: bytes, context: Context) -> bytes:
        broker = self._broker()
        message = parse(log_pb2.FetchRequest, request)
        response = await broker.fetching.fetch(
            FetchCall(
                message.topic, message.partition, message.offset, message.max_bytes, message.max_wait_ms,
                message.min_bytes, message.as_records, message.topic_id, request, self._is_forwarded(context),
            )
        )  # fmt: skip
        ticket = broker.deliveries.admit(context.peer(), len(response))
        context.add_done_callback(lambda _: ticket.release())  # type: ignore[arg-type]  # the stub's class is no protocol
        return response

    async def _follow(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        broker = self._broker()
        message = parse(log_pb2.FollowRequest, request)
        call = FetchCall(
            message.topic, message.partition, message.offset, message.max_bytes, 0, 0,
            message.as_records, message.topic_id, request, self._is_forwarded(context),
        )  # fmt: skip
        async for response in broker.fetching.follow(call):
            ticket = broker.deliveries.admit(context.peer(), len(response))
            try:
                yield response
            finally:
                ticket.release()

    async def _list_offsets(self, request: bytes, context: Context) -> bytes:
        broker = self._broker()
        message = parse(log_pb2.ListOffsetsRequest, request)
        response = await broker.offsets.list_offsets(message, forwarded=self._is_forwarded(context))
        return response.SerializeToString()


def _turn(turns: _Turns, call: ProduceCall) -> asyncio.Lock:
    key = (call.topic, call.partition)
    turn = turns.get(key)
    if turn is None:
        turn = turns[key] = asyncio.Lock()
    return turn


async def _outcome(reader: asyncio.Future[None]) -> None:
    """The one error of a task group that ended."""
    try:
        await reader
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
