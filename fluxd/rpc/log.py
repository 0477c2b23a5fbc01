"""The Log service: the door of the data path. What is decided stands in fluxd/broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc

from fluxd.broker.admission import Admission
from fluxd.broker.fetch import FetchCall, Fetching
from fluxd.broker.offsets import ListingOffsets
from fluxd.broker.produce import Producing
from fluxd.rpc.handling import Context, bidi_stream, parse, server_stream, unary
from fluxd.rpc.produce_stream import ProduceStream
from fluxd.rpc.raw import parse_produce
from fluxlog.v1 import log_pb2


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

    def _produce_stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        stream = ProduceStream(lambda: self._broker().producing, context.peer(), forwarded=self._is_forwarded(context))
        return stream.serve(requests)

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
