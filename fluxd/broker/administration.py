"""Requests to change or describe topics and the cluster, on any node: what needs the controller, or a partition's
leader, is passed on.

A refused change (this node, or the one asked, does not lead after all) wrote nothing and is tried again while an
election may be under way; everything else is the caller's to judge. After a change this node's own metadata is brought
up to date, so that whoever made the change sees it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from fluxd.broker import describe
from fluxd.broker.answer import answer_of
from fluxd.broker.cluster import ClusterView, LeaderHint
from fluxd.broker.controller import Controller
from fluxd.broker.currency import Calls, MetadataCurrency
from fluxd.broker.leader_waiting import LeaderWaiting
from fluxd.broker.routes import LEADER_WAIT, Route
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import Topic
from fluxd.core.status import error_message
from fluxd.core.types import METADATA_TOPIC, GroupId, NodeId, Offset
from fluxlog.v1 import admin_pb2

CONTROLLER_WAIT = limits.ELECTION_TIMEOUT_MAX + 1.0
"""A change waits this long for a controller, if a majority is there to elect one."""
TRANSFER_WAIT = limits.ELECTION_TIMEOUT_MIN + 1.0
_HOP_TIMEOUT = 10.0
_RETRY_AFTER = 0.05
_DESCRIBED_PER_TURN = 200
"""Partitions described in one turn of the loop."""

R = TypeVar("R", bound=Message)


class LeadingGroup(Protocol):
    """A group while this node leads it."""

    def transfer(self, to: NodeId | None) -> FluxError | None: ...
    def read_index(self, done: Callable[[FluxError | None], None]) -> None: ...
    def trim(self, log_start_offset: Offset, done: Callable[[FluxError | None], None]) -> None: ...
    @property
    def log_start_offset(self) -> Offset: ...
    @property
    def high_watermark(self) -> Offset: ...


class Routing(Protocol):
    """From names to leaders: `Routes`."""

    async def find(self, topic: str, partition: int, topic_id: bytes) -> Route: ...
    async def find_all(self, partitions: Iterable[tuple[str, int, bytes]]) -> list[Route | FluxError]: ...
    async def await_leader(self, route: Route, seconds: float) -> LeaderHint: ...
    def leader(self, route: Route) -> LeaderHint | None: ...
    def leading(self, route: Route) -> LeadingGroup | None: ...
    def named(self, error: FluxError, route: Route) -> FluxError: ...


class Administration:
    """See the module. `forwarded`: another node has passed the request on, so it is not passed on again.

    Args:
        controller: None on a node without a replica of the metadata group that takes part.
    """

    def __init__(
        self,
        view: ClusterView,
        routes: Routing,
        currency: MetadataCurrency,
        controller: Controller | None,
        calls: Calls,
    ) -> None:
        self._view, self._routes, self._currency = view, routes, currency
        self.controller, self._calls = controller, calls
        self.leader_waiting = LeaderWaiting(view)

    # ---- changes

    async def create_topic(
        self, request: admin_pb2.CreateTopicRequest, *, forwarded: bool
    ) -> admin_pb2.CreateTopicResponse:
        """See admin.proto."""
        if request.wait_ms > limits.TOPIC_WAIT_MS_MAX:
            raise FluxError(
                Reason.INVALID_ARGUMENT, f"wait_ms {request.wait_ms} is above the bound {limits.TOPIC_WAIT_MS_MAX}"
            )

        async def create(controller: Controller) -> admin_pb2.CreateTopicResponse:
            result = await controller.create_topic(request)
            topic = result.topic
            return admin_pb2.CreateTopicResponse(
                name=topic.name,
                topic_id=topic.topic_id,
                created=result.changed,
                partitions=len(topic.partitions),
                replication_factor=topic.replication_factor,
            )

        response = await self._change("CreateTopic", request, create, admin_pb2.CreateTopicResponse, forwarded)
        if request.wait_ms and not forwarded:
            groups = [GroupId(response.topic_id, number) for number in range(response.partitions)]
            response.all_leaders_elected = await wait_for_leaders(self._view, groups, request.wait_ms / 1000)
        return response

    async def delete_topic(
        self, request: admin_pb2.DeleteTopicRequest, *, forwarded: bool
    ) -> admin_pb2.DeleteTopicResponse:
        """See admin.proto."""

        async def delete(controller: Controller) -> admin_pb2.DeleteTopicResponse:
            return admin_pb2.DeleteTopicResponse(deleted=await controller.delete_topic(request))

        return await self._change("DeleteTopic", request, delete, admin_pb2.DeleteTopicResponse, forwarded)

    async def alter_topic(
        self, request: admin_pb2.AlterTopicRequest, *, forwarded: bool
    ) -> admin_pb2.AlterTopicResponse:
        """See admin.proto."""

        async def alter(controller: Controller) -> admin_pb2.AlterTopicResponse:
            return admin_pb2.AlterTopicResponse(configs=(await controller.alter_topic(request)).configs)

        return await self._change("AlterTopic", request, alter, admin_pb2.AlterTopicResponse, forwarded)

    async def add_partitions(
        self, request: admin_pb2.AddPartitionsRequest, *, forwarded: bool
    ) -> admin_pb2.AddPartitionsResponse:
        """See admin.proto."""

        async def add(controller: Controller) -> admin_pb2.AddPartitionsResponse:
            return admin_pb2.AddPartitionsResponse(
                partitions=len((await controller.add_partitions(request)).partitions)
            )

        return await self._change("AddPartitions", request, add, admin_pb2.AddPartitionsResponse, forwarded)

    async def transfer_leadership(
        self, request: admin_pb2.TransferLeadershipRequest, *, forwarded: bool
    ) -> admin_pb2.TransferLeadershipResponse:
        """See admin.proto."""
        route = await self._routes.find(request.topic, request.partition, b"")
        if request.to_node and request.to_node not in route.replicas:
            raise FluxError(
                Reason.UNKNOWN_NODE,
                f"node {request.to_node} has no replica of {route.name}; nodes {list(route.replicas)} have one",
            )
        hint = await self._routes.await_leader(route, LEADER_WAIT)
        if hint.node_id != request.to_node:
            if hint.node_id == self._view.local.node_id:
                hint = await self._transfer(route, NodeId(request.to_node) if request.to_node else None)
            elif forwarded:
                raise FluxError(Reason.NOT_LEADER, f"this node does not lead {route.name}, node {hint.node_id} does")
            else:
                answer = await self._call(hint.node_id, "TransferLeadership", request)
                return admin_pb2.TransferLeadershipResponse.FromString(answer)
        return admin_pb2.TransferLeadershipResponse(leader_node=hint.node_id, leader_epoch=hint.epoch)

    async def delete_records(
        self, request: admin_pb2.DeleteRecordsRequest, *, forwarded: bool
    ) -> admin_pb2.DeleteRecordsResponse:
        """See admin.proto."""
        route = await self._routes.find(request.topic, request.partition, b"")
        if route.topic.internal:
            raise FluxError(Reason.PERMISSION_DENIED, f"topic {route.topic.name} belongs to the cluster")
        hint = await self._routes.await_leader(route, LEADER_WAIT)
        if hint.node_id != self._view.local.node_id:
            if forwarded:
                raise FluxError(Reason.NOT_LEADER, f"this node does not lead {route.name}, node {hint.node_id} does")
            answer = await self._call(hint.node_id, "DeleteRecords", request)
            return admin_pb2.DeleteRecordsResponse.FromString(answer)
        group = self._routes.leading(route)
        if group is None:
            raise FluxError(Reason.NOT_LEADER, f"this node does not lead {route.name}")
        error = None
        if request.before_offset > group.high_watermark:  # a new leader's may be behind what its predecessor told
            error = await answer_of(group.read_index)
        if error is None:
            error = await answer_of(lambda done: group.trim(Offset(request.before_offset), done))
        if error is not None:
            raise self._routes.named(error, route)
        return admin_pb2.DeleteRecordsResponse(
            log_start_offset=group.log_start_offset, high_watermark=group.high_watermark
        )

    async def _transfer(self, route: Route, to: NodeId | None) -> LeaderHint:
        me = self._view.local.node_id
        group = self._routes.leading(route)
        if group is None:
            raise FluxError(Reason.NOT_LEADER, f"this node does not lead {route.name}")
        error = group.transfer(to)
        if error is not None:
            raise self._routes.named(error, route)
        changed = asyncio.Event()
        unwatch = self._view.watch_leader(route.group_id, changed.set)
        try:
            async with asyncio.timeout(TRANSFER_WAIT):
                while (hint := self._routes.leader(route)) is None or hint.node_id == me:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            whom = "no replica that is caught up" if to is None else f"node {to} is not caught up or"
            raise FluxError(Reason.TIMEOUT, f"{whom} did not take over {route.name} within {TRANSFER_WAIT} s") from None
        finally:
            unwatch()
        return hint

    async def _change(
        self,
        method: str,
        request: Message,
        local: Callable[[Controller], Awaitable[R]],
        response_type: type[R],
        forwarded: bool,
    ) -> R:
        """Have the controller make a change: here, or on the node that is it."""
        deadline = asyncio.get_running_loop().time() + CONTROLLER_WAIT
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                hint = await self._find_controller(0.0 if forwarded else left)
                if hint.node_id == self._view.local.node_id and self.controller is not None:
                    return await local(self.controller)
                if forwarded:
                    raise FluxError(Reason.NOT_LEADER, f"this node is not the controller, node {hint.node_id} is")
                answer = await self._call(hint.node_id, method, request)
                await self._currency.refresh()
                return response_type.FromString(answer)
            except FluxError as error:
                if error.reason not in (Reason.NOT_LEADER, Reason.NO_LEADER) or forwarded:
                    raise
                if left <= 0:
                    raise FluxError(
                        Reason.NO_CONTROLLER, f"no controller was found within {CONTROLLER_WAIT} s: {error.message}"
                    ) from error
            await asyncio.sleep(_RETRY_AFTER)

    async def _find_controller(self, seconds: float) -> LeaderHint:
        """The controller; without a quorum of the metadata group, NO_QUORUM at once."""
        return await self._routes.await_leader(await self._routes.find(METADATA_TOPIC, 0, b""), seconds)

    async def _call(self, node: NodeId, method: str, request: Message) -> bytes:
        return await self._calls.unary(
            node, f"/fluxlog.v1.Admin/{method}", request.SerializeToString(), timeout_s=_HOP_TIMEOUT, writes=True
        )

    # ---- descriptions

    async def list_topics(self, request: admin_pb2.ListTopicsRequest) -> admin_pb2.ListTopicsResponse:
        """See admin.proto."""
        await self._currency.refresh()
        return admin_pb2.ListTopicsResponse(
            topics=[
                describe.summary(topic) for topic in self._topics() if request.include_internal or not topic.internal
            ]
        )

    async def describe_topics(self, request: admin_pb2.DescribeTopicsRequest) -> admin_pb2.DescribeTopicsResponse:
        """See admin.proto."""
        await self._currency.refresh()
        if len(request.names) > limits.DESCRIBE_TOPICS_MAX:
            count = f"{len(request.names)} names are above {limits.DESCRIBE_TOPICS_MAX}"
            raise FluxError(Reason.INVALID_ARGUMENT, count)
        response = admin_pb2.DescribeTopicsResponse()
        topics = [topic for topic in self._topics() if not topic.internal]
        if request.names:
            topics = []
            for found in await self._routes.find_all((name, 0, b"") for name in dict.fromkeys(request.names)):
                if isinstance(found, FluxError):  # unknown, or not to be found out now
                    response.errors.append(error_message(found, writes=False))
                else:
                    topics.append(found.topic)
        described = 0
        for topic in topics:
            out = describe.topic_head(topic)
            for number in range(len(topic.partitions)):
                partition = describe.partition_description(self._view, topic, number)
                if not request.under_replicated_only or describe.is_under_replicated(partition):
                    out.partitions.append(partition)
                described += 1
                if described % _DESCRIBED_PER_TURN == 0:
                    await asyncio.sleep(0)
            if out.partitions or not request.under_replicated_only:
                response.topics.append(out)
        return response

    def _topics(self) -> list[Topic]:
        return sorted(self._view.image.topics.values(), key=lambda topic: topic.name)


async def wait_for_leaders(view: ClusterView, groups: Iterable[GroupId], seconds: float) -> bool:
    """Wait until every partition has a leader that is known here; False when the time is up first."""
    missing = {group for group in groups if view.leader(group) is None}
    if not missing:
        return True
    complete = asyncio.Event()

    def changed(group: GroupId) -> None:
        if group in missing and view.leader(group) is not None:
            missing.discard(group)
            if not missing:
                complete.set()

    unwatch = view.watch_leaders(changed)
    try:
        async with asyncio.timeout(seconds):
            await complete.wait()
    except TimeoutError:
        return all(view.leader(group) is not None for group in missing)
    finally:
        unwatch()
    return True
