"""From a topic's name to the replica or the leader that serves a request, and the clear refusal when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from fluxd.broker.cluster import ClusterView, LeaderHint
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import Topic
from fluxd.core.types import GroupId, NodeId, Term
from fluxd.raft.group import Group
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.spec import Role
from fluxlog.v1 import log_pb2

LEADER_WAIT = 0.75 * limits.NO_QUORUM_ANSWER
"""A request may wait this long for an election that is under way; the refusal is due at NO_QUORUM_ANSWER."""

_MAYBE_STALE = (Reason.UNKNOWN_TOPIC, Reason.UNKNOWN_PARTITION, Reason.TOPIC_ID_MISMATCH)


@dataclass(frozen=True, slots=True)
class Route:
    """One partition of one incarnation of a topic."""

    topic: Topic
    partition: int
    group_id: GroupId

    @property
    def name(self) -> str:
        """As people call it: "orders-3"."""
        return f"{self.topic.name}-{self.partition}"

    @property
    def replicas(self) -> tuple[NodeId, ...]:
        """The preferred leader first."""
        return self.topic.partitions[self.partition].voters


def _may_be_stale(found: Route | FluxError) -> bool:
    return isinstance(found, FluxError) and found.reason in _MAYBE_STALE


class Routes:
    """See the module.

    Args:
        groups: this node's replicas, read live.
        confirm: brings this node's metadata up to what was committed when it was called, or raises FluxError.
        is_connected: a link to that node stands.
    """

    def __init__(
        self,
        cluster: ClusterView,
        groups: Mapping[GroupId, Group | OfflineGroup],
        confirm: Callable[[], Awaitable[None]],
        is_connected: Callable[[NodeId], bool],
    ) -> None:
        self._cluster = cluster
        self._groups = groups
        self._confirm = confirm
        self.is_connected = is_connected
        self.node_id = cluster.local.node_id

    async def find(self, topic: str, partition: int, topic_id: bytes) -> Route:
        """The partition of a request. Only an unknown one costs a wait: this node's metadata may be behind.

        Raises:
            FluxError: UNKNOWN_TOPIC, UNKNOWN_PARTITION, TOPIC_ID_MISMATCH; or NO_CONTROLLER: whether it is so cannot be
            found out now, retriable.
        """
        found = self._try(topic, partition, topic_id)
        if isinstance(found, FluxError):
            (found,) = await self.find_all([(topic, partition, topic_id)])
        if isinstance(found, FluxError):
            raise found
        return found

    async def find_all(self, partitions: Iterable[tuple[str, int, bytes]]) -> list[Route | FluxError]:
        """As `find`, for many: topic, partition, topic id of each. However many are unknown, they cost one wait."""
        asked = list(partitions)
        found = [self._try(*each) for each in asked]
        if not any(_may_be_stale(each) for each in found):
            return found
        try:
            async with asyncio.timeout(limits.NO_QUORUM_ANSWER):
                await self._confirm()
        except (FluxError, TimeoutError) as error:
            why = error.message if isinstance(error, FluxError) else "the controller did not answer in time"
            return [self._not_to_be_told(each, why) if _may_be_stale(each) else each for each in found]
        return [self._try(*each) for each in asked]

    def _try(self, topic: str, partition: int, topic_id: bytes) -> Route | FluxError:
        try:
            return self.lookup(topic, partition, topic_id)
        except FluxError as error:
            return error

    def _not_to_be_told(self, unknown: Route | FluxError, why: str) -> FluxError:
        assert isinstance(unknown, FluxError)
        return FluxError(
            Reason.NO_CONTROLLER,
            f"{unknown.message} as far as node {self.node_id} knows, but its metadata may be behind: {why}",
            metadata=unknown.metadata,
        )

    def lookup(self, topic: str, partition: int, topic_id: bytes) -> Route:
        """As `find`, from what this node knows now."""
        known = self._cluster.topic(topic)
        if known is None:
            raise FluxError(Reason.UNKNOWN_TOPIC, f"there is no topic {topic[:300]!r}", metadata={"topic": topic})
        if topic_id and topic_id != known.topic_id:
            raise FluxError(
                Reason.TOPIC_ID_MISMATCH,
                f"topic {topic} now has id {known.topic_id.hex()}, not {topic_id.hex()[:64]}: it was created again",
                metadata={"topic": topic, "topic_id": known.topic_id.hex()},
            )
        if partition >= len(known.partitions):
            raise FluxError(
                Reason.UNKNOWN_PARTITION,
                f"topic {topic} has partitions 0..{len(known.partitions) - 1}, not {partition}",
                metadata={"topic": topic, "partitions": str(len(known.partitions))},
            )
        return Route(known, partition, known.group_id(partition))

    def led_here(self, topic: str, partition: int, topic_id: bytes) -> tuple[Route, Group] | None:
        """As `lookup`, with this node's own replica, where that leads; None: it does not, or the topic is internal or
        unknown.
        """
        try:
            route = self.lookup(topic, partition, topic_id)
        except FluxError:
            return None
        group = self.leading(route)
        return None if group is None or route.topic.internal else (route, group)

    def is_current(self, route: Route) -> bool:
        """The partition has not been deleted since."""
        return self._cluster.topic_by_id(route.topic.topic_id) is not None

    def replica(self, route: Route) -> Group | None:
        """This node's own replica, if it takes part."""
        group = self._groups.get(route.group_id)
        return group if isinstance(group, Group) and group.role is not Role.FAILED else None

    def leading(self, route: Route) -> Group | None:
        """This node's own replica, if it leads."""
        group = self.replica(route)
        return group if group is not None and group.role is Role.LEADER else None

    def leader(self, route: Route) -> LeaderHint | None:
        """The leader, if its node can be reached."""
        hint = self._cluster.leader(route.group_id)
        if hint is None or not (hint.node_id == self.node_id or self.is_connected(hint.node_id)):
            return None
        return hint

    def leader_of_group(self, group_id: GroupId) -> NodeId | None:
        """The leader as this node knows it, reachable or not."""
        hint = self._cluster.leader(group_id)
        return None if hint is None else hint.node_id

    def watch_leaders(self, callback: Callable[[GroupId], None]) -> None:
        """Call whenever what is known of a partition's leader may have changed."""
        self._cluster.watch_leaders(callback)

    def reachable_replicas(self, route: Route) -> list[NodeId]:
        """Other nodes with a replica, to whom a link stands."""
        return [node for node in route.replicas if self.is_connected(node)]

    async def await_leader(self, route: Route, seconds: float) -> LeaderHint:
        """The leader; while an election is under way it is waited for.

        Args:
            seconds: at most this long. Without a quorum there is no wait: no election can succeed.

        Raises:
            FluxError: NO_QUORUM or NO_LEADER, REJECTED.
        """
        hint = self.leader(route)
        if hint is not None:
            return hint
        changed = asyncio.Event()
        unwatch = self._cluster.watch_leader(route.group_id, changed.set)
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                while (hint := self.leader(route)) is None and self._missing(route) is None:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            unwatch()
        if hint is None:
            raise self.refusal(route)
        return hint

    def refusal(self, route: Route) -> FluxError:
        """Why there is no leader: REJECTED, naming the partition, what it needs and who is missing."""
        missing = self._missing(route)
        if missing is None:
            return FluxError(
                Reason.NO_LEADER,
                f"{route.name} has no leader at the moment: an election is under way",
                metadata={"partition": route.name},
            )
        names = ",".join(map(str, missing))
        needed = len(route.replicas) // 2 + 1
        return FluxError(
            Reason.NO_QUORUM,
            f"{route.name} has {len(route.replicas)} replicas and needs {needed} of them; missing: nodes {names}",
            metadata={
                "partition": route.name,
                "replicas": str(len(route.replicas)),
                "needed": str(needed),
                "missing_nodes": names,
            },
        )

    def _missing(self, route: Route) -> tuple[NodeId, ...] | None:
        """Nodes that are missing for a majority; None when there are enough.

        A node counts that is connected and was heard from lately; one that hangs is missing, too, and so is one whose
        replica takes no part, as it says itself (its disk is full, or was lost).
        """
        own = self.replica(route)
        missing = set((own.quorum_missing() if own is not None else None) or ())
        missing.update(
            node
            for node in route.replicas
            if not self._is_well(node) or self._cluster.trouble(route.group_id, node) is not None
        )
        return tuple(sorted(missing)) if 2 * (len(route.replicas) - len(missing)) <= len(route.replicas) else None

    def _is_well(self, node: NodeId) -> bool:
        return node == self.node_id or (self.is_connected(node) and self._cluster.is_up(node))

    def named(self, error: FluxError, route: Route) -> FluxError:
        """An error of a group, in the words of the API: the partition's name instead of its id, and where the
        leader is.
        """
        error.message = error.message.replace(str(route.group_id), route.name)
        error.metadata.setdefault("partition", route.name)
        hint = self._cluster.leader(route.group_id)
        if hint is not None and error.reason in (Reason.NOT_LEADER, Reason.REPLICA_OFFLINE):
            error.metadata["leader_node"] = str(hint.node_id)
            error.metadata["leader_address"] = hint.address
        return error

    def own_hint(self, epoch: Term) -> log_pb2.LeaderHint:
        """This node as the leader."""
        return log_pb2.LeaderHint(node_id=self.node_id, address=self._cluster.local.address, leader_epoch=epoch)

    def hint(self, route: Route) -> log_pb2.LeaderHint:
        """What a response tells of the leader."""
        hint = self._cluster.leader(route.group_id)
        if hint is None:
            return log_pb2.LeaderHint()
        return log_pb2.LeaderHint(node_id=hint.node_id, address=hint.address, leader_epoch=hint.epoch)
