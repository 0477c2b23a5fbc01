"""The Groups service: the door to consumer groups. What is decided stands in fluxd/broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc

from fluxd.broker.group_membership import CLIENT_KEY, MemberClient, Membership
from fluxd.broker.group_requests import GroupRequests
from fluxd.broker.thin_consuming import ThinConsuming
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.rpc.handling import Context, bidi_stream, parse_each, typed_unaries
from fluxlog.v1 import groups_pb2

WRITES = frozenset({"CommitOffsets", "DeleteGroup", "ResetOffsets"})
"""Methods whose errors say what became of the change."""

SERVICE = groups_pb2.DESCRIPTOR.services_by_name["Groups"]
_HOST_CHARS_MAX = 100


@dataclass(frozen=True, slots=True)
class GroupsBroker:
    """What serves consumer groups."""

    requests: GroupRequests
    membership: Membership
    consuming: ThinConsuming


class GroupsService:
    """Handlers of fluxlog.v1.Groups; the unary ones are found by their names in the .proto.

    Args:
        broker: gives the broker, or raises NOT_READY or STOPPING.
        forwarded_by: the node that passes the call on, if one does; raises UNAUTHENTICATED when a stranger says so.
    """

    def __init__(
        self, node_id: NodeId, broker: Callable[[], GroupsBroker], forwarded_by: Callable[[Context], NodeId | None]
    ) -> None:
        self._node_id, self._broker, self._forwarded_by = node_id, broker, forwarded_by

    def handlers(self) -> grpc.GenericRpcHandler:
        """For a server."""
        unary = typed_unaries(SERVICE, [self], writes=WRITES)
        join = bidi_stream("Groups/Join", self._join)
        return grpc.method_handlers_generic_handler(SERVICE.full_name, {**unary, "Join": join})

    async def _join(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        membership = self._broker().membership
        client = self._client(context)
        messages = parse_each(groups_pb2.MemberMessage, requests)
        first = await anext(messages, None)
        if first is None or not first.HasField("join"):
            raise FluxError(Reason.INVALID_ARGUMENT, "the first message of a member is Join")
        async for response in membership.serve(first.join, messages, client):
            yield response.SerializeToString()

    def _client(self, context: Context) -> MemberClient:
        node = self._forwarded_by(context)
        if node is None:
            return MemberClient(client_host(context), self._node_id, forwarded=False)
        told = dict(context.invocation_metadata() or ()).get(CLIENT_KEY, "")
        return MemberClient(str(told)[:_HOST_CHARS_MAX], node, forwarded=True)

    def _is_forwarded(self, context: Context) -> bool:
        return self._forwarded_by(context) is not None

    async def CommitOffsets(  # noqa: N802
        self, request: groups_pb2.CommitOffsetsRequest, context: Context
    ) -> groups_pb2.CommitOffsetsResponse:
        """See groups.proto."""
        return await self._broker().requests.commit_offsets(request, forwarded=self._is_forwarded(context))

    async def FetchOffsets(  # noqa: N802
        self, request: groups_pb2.FetchOffsetsRequest, context: Context
    ) -> groups_pb2.FetchOffsetsResponse:
        """See groups.proto."""
        return await self._broker().requests.fetch_offsets(request, forwarded=self._is_forwarded(context))

    async def ListGroups(  # noqa: N802
        self, request: groups_pb2.ListGroupsRequest, context: Context
    ) -> groups_pb2.ListGroupsResponse:
        """See groups.proto."""
        return await self._broker().requests.list_groups(request, forwarded=self._is_forwarded(context))

    async def DescribeGroups(  # noqa: N802
        self, request: groups_pb2.DescribeGroupsRequest, context: Context
    ) -> groups_pb2.DescribeGroupsResponse:
        """See groups.proto."""
        return await self._broker().requests.describe_groups(request, forwarded=self._is_forwarded(context))

    async def DeleteGroup(  # noqa: N802
        self, request: groups_pb2.DeleteGroupRequest, context: Context
    ) -> groups_pb2.DeleteGroupResponse:
        """See groups.proto."""
        return await self._broker().requests.delete_group(request, forwarded=self._is_forwarded(context))

    async def ResetOffsets(  # noqa: N802
        self, request: groups_pb2.ResetOffsetsRequest, context: Context
    ) -> groups_pb2.ResetOffsetsResponse:
        """See groups.proto."""
        return await self._broker().requests.reset_offsets(request, forwarded=self._is_forwarded(context))


def client_host(context: Context) -> str:
    """Where a call comes from: gRPC's "ipv4:127.0.0.1:5000" without the family."""
    peer = context.peer()
    family, _, address = peer.partition(":")
    return (address if family in ("ipv4", "ipv6") else peer)[:_HOST_CHARS_MAX]
