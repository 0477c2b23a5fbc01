"""The coordinators of this node, one for each of its replicas of __consumer_offsets, and the way from a group's name to
its coordinator, here or on another node.

The topic is created by the controller when it is first needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol
from zlib import crc32

from fluxd.broker.cluster import ClusterView, LeaderHint
from fluxd.broker.coordinator import Coordinator
from fluxd.broker.metadata import Change
from fluxd.broker.routes import LEADER_WAIT, Route
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.runtime import Reactor
from fluxd.core.types import OFFSETS_TOPIC, GroupId, NodeId
from fluxd.raft.group import Group
from fluxd.raft.offline import OfflineGroup
from fluxlog.v1 import admin_pb2

_TOPIC_WAIT_MS = 5_000


class Topics(Protocol):
    """Creates topics: `Administration`."""

    async def create_topic(
        self, request: admin_pb2.CreateTopicRequest, *, forwarded: bool
    ) -> admin_pb2.CreateTopicResponse: ...


class Routing(Protocol):
    """From partitions to leaders: `Routes`."""

    async def find(self, topic: str, partition: int, topic_id: bytes) -> Route: ...
    async def await_leader(self, route: Route, seconds: float) -> LeaderHint: ...


class Currency(Protocol):
    """Makes this node's metadata current: `MetadataCurrency`."""

    async def confirm_at_last(self) -> None: ...


class Coordinators:
    """See the module.

    Args:
        groups: this node's replicas, read live.
    """

    def __init__(
        self,
        reactor: Reactor,
        view: ClusterView,
        groups: Mapping[GroupId, Group | OfflineGroup],
        routes: Routing,
        topics: Topics,
        currency: Currency,
    ) -> None:
        self.node_id = view.local.node_id
        self._reactor, self._view, self._groups = reactor, view, groups
        self._routes, self._topics, self._currency = routes, topics, currency
        self._by_partition: dict[int, tuple[Group, Coordinator]] = {}
        self._unconfirmed = asyncio.Event()
        self._creating = asyncio.Lock()
        self._unwatch: Callable[[], None] = view.watch_leaders(self._leader_changed)

    async def run(self) -> None:
        """Bring the metadata up to date for coordinators that begin, until cancelled."""
        try:
            while True:
                await self._unconfirmed.wait()
                self._unconfirmed.clear()
                begun = [(coordinator, coordinator.term) for coordinator in self if coordinator.serving]
                await self._currency.confirm_at_last()
                for coordinator, term in begun:
                    coordinator.metadata_confirmed(term)
        finally:
            self._unwatch()
            for coordinator in self:
                coordinator.stop()

    def __iter__(self) -> Iterator[Coordinator]:
        return iter([coordinator for _, coordinator in self._by_partition.values()])

    def metadata_changed(self, change: Change) -> None:
        """Follow the metadata: a listener of `MetadataFollower`, behind the one that sets the view's image."""
        if change.old.topics is change.new.topics:
            return
        for coordinator in self:
            coordinator.forget_topics(change.deleted_topics)
            coordinator.topics_changed()

    def _leader_changed(self, group_id: GroupId) -> None:
        topic = self._view.topic_by_id(group_id.topic_id)
        if topic is None or topic.name != OFFSETS_TOPIC:
            return
        replica = self._groups.get(group_id)
        known = self._by_partition.get(group_id.partition)
        if known is not None and known[0] is not replica:
            known[1].stop()
            del self._by_partition[group_id.partition]
            known = None
        if known is None and isinstance(replica, Group):
            coordinator = Coordinator(self._reactor, replica, self._view, self._unconfirmed.set)
            self._by_partition[group_id.partition] = (replica, coordinator)

    # ---- from a name to its coordinator

    @property
    def partition_count(self) -> int:
        """Of __consumer_offsets; 0: nobody needed it yet, as far as this node knows."""
        topic = self._view.topic(OFFSETS_TOPIC)
        return len(topic.partitions) if topic is not None else 0

    async def ensure_topic(self) -> None:
        """Have the controller create __consumer_offsets, if it is not there.

        Raises:
            FluxError: NO_CONTROLLER, NO_QUORUM, …
        """
        if self.partition_count:
            return
        async with self._creating:
            if not self.partition_count:
                request = admin_pb2.CreateTopicRequest(name=OFFSETS_TOPIC, if_not_exists=True, wait_ms=_TOPIC_WAIT_MS)
                await self._topics.create_topic(request, forwarded=False)

    async def route(self, group: str) -> Route:
        """The partition that a group's commands are in. The topic has to be there.

        Raises:
            FluxError: UNKNOWN_TOPIC, NO_CONTROLLER.
        """
        first = await self._routes.find(OFFSETS_TOPIC, 0, b"")
        return await self.partition_route(crc32(group.encode()) % len(first.topic.partitions))

    async def partition_route(self, partition: int) -> Route:
        """One partition of __consumer_offsets."""
        return await self._routes.find(OFFSETS_TOPIC, partition, b"")

    async def node_of(self, route: Route) -> NodeId:
        """The node that coordinates the groups of a partition.

        Raises:
            FluxError: NO_LEADER, NO_QUORUM.
        """
        return (await self._routes.await_leader(route, LEADER_WAIT)).node_id

    async def serving(self, route: Route) -> Coordinator:
        """This node's coordinator, as soon as it serves.

        Raises:
            FluxError: NOT_LEADER, NO_LEADER.
        """
        known = self._by_partition.get(route.partition)
        if known is None:
            raise FluxError(Reason.NOT_LEADER, f"node {self.node_id} does not lead {route.name}")
        await known[1].wait_serving(limits.ELECTION_TIMEOUT_MIN)
        return known[1]

    def here(self) -> dict[int, Coordinator]:
        """Partitions whose coordinator serves on this node."""
        return {number: each for number, (_, each) in sorted(self._by_partition.items()) if each.serving}
