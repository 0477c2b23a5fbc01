"""The Consumer service: a whole group consumer over one stream. What is decided stands in fluxd/broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import grpc

from fluxd.broker.group_membership import MemberClient
from fluxd.broker.thin_consuming import ThinConsuming
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.rpc.groups import client_host
from fluxd.rpc.handling import Context, bidi_stream, parse_each
from fluxlog.v1 import consume_pb2


class ConsumerService:
    """Handlers of fluxlog.v1.Consumer.

    Args:
        consuming: gives what serves it, or raises NOT_READY or STOPPING.
    """

    def __init__(self, node_id: NodeId, consuming: Callable[[], ThinConsuming]) -> None:
        self._node_id, self._consuming = node_id, consuming

    def handlers(self) -> grpc.GenericRpcHandler:
        """For a server."""
        consume = bidi_stream("Consumer/Consume", self._consume)
        return grpc.method_handlers_generic_handler("fluxlog.v1.Consumer", {"Consume": consume})

    async def _consume(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        consuming = self._consuming()
        client = MemberClient(client_host(context), self._node_id, forwarded=False)
        messages = parse_each(consume_pb2.ConsumeRequest, requests)
        first = await anext(messages, None)
        if first is None or not first.HasField("subscribe"):
            raise FluxError(Reason.INVALID_ARGUMENT, "the first message of a consumer is Subscribe")
        async for response in consuming.consume(first.subscribe, messages, client):
            yield response.SerializeToString()
