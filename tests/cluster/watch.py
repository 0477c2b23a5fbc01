"""The invariants of every group of every node (tests/simulation/invariants.py), checked when something changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from fluxd.core.types import GroupId, NodeId
from fluxd.raft.group import Group
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.replicas import Replica
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2
from tests.cluster.node import SimNode
from tests.simulation.disk import SimDisk
from tests.simulation.invariants import Invariants


class GroupSide:
    """One node, as far as one group is concerned: `invariants.Watched`."""

    callback_failed = ""
    directory_id = b""

    def __init__(self, node: SimNode, group_id: GroupId) -> None:
        self._node, self._group_id = node, group_id
        self.wiped = False
        """The disk that its vote is bound to is gone."""

    @property
    def node_id(self) -> NodeId:
        """Of the node."""
        return self._node.node_id

    @property
    def disk(self) -> SimDisk:
        """With the files of all groups."""
        return self._node.disk

    @property
    def incarnation(self) -> int:
        """Of the process."""
        return self._node.incarnation

    @property
    def replica(self) -> Group | OfflineGroup | None:
        """Of a running process."""
        raft = self._node.raft
        return raft.groups.get(self._group_id) if raft is not None else None

    @property
    def group(self) -> Group | None:
        """The replica, if it takes part."""
        replica = self.replica
        return replica if isinstance(replica, Group) and replica.role is not Role.FAILED else None

    @property
    def step_is_due(self) -> bool:
        """Of the group, by the host."""
        return self._node.raft is not None and self._group_id in self._node.raft._ready


class _CachedInvariants(Invariants):
    """Reads of a log's durable bytes what is new: logs only grow, mostly."""

    def _walk(self, data: bytes, entries: dict[int, int]) -> None:  # type: ignore[override]
        cache = self.__dict__.setdefault("_parsed", {})
        known = cache.get(data[:60])
        if known is not None and data.startswith(known[0]):
            entries.update(known[1])
            if len(data) == len(known[0]):
                return
        found: dict[int, int] = {}
        super()._walk(data, found)
        entries.update(found)
        cache[data[:60]] = (data, found)

    def _durable_copies(self, index: int, checksum: int) -> int:
        # The first entry is the birth of the log, the same on all replicas: each knows it to be committed.
        return self._majority if index == 1 else super()._durable_copies(index, checksum)


class Watch:
    """All groups.

    Args:
        on_violation: called with what was broken. Not raised: product code would take it for its own.
    """

    def __init__(
        self, nodes: Mapping[NodeId, SimNode], counts: Counter[str], on_violation: Callable[[str], None]
    ) -> None:
        self._nodes, self._counts, self._on_violation = nodes, counts, on_violation
        self._by_address = {node.host.address: node for node in nodes.values()}
        self._invariants: dict[GroupId, Invariants] = {}
        self._sides: dict[GroupId, dict[NodeId, GroupSide]] = {}
        self._known: dict[NodeId, dict[GroupId, Replica]] = {node_id: {} for node_id in nodes}
        self._images: dict[NodeId, object] = {}
        self._deleted: set[bytes] = set()
        self._dirty: dict[tuple[NodeId, GroupId], None] = {}
        self.messages = False
        """Also check what nodes send to each other (slow)."""

    def wiped(self, node: SimNode) -> None:
        """A node's disk is gone, and with it all that its replicas acknowledged."""
        for sides in self._sides.values():
            if node.node_id in sides:
                sides[node.node_id].wiped = True

    def after_event(self, node: SimNode) -> None:
        """Check what has changed in a node's process."""
        raft = node.raft
        if raft is None:
            self._known[node.node_id] = {}
            return
        if raft.groups != self._known[node.node_id]:
            self._note_groups(node, raft.groups)
        if node.image is not self._images.get(node.node_id):
            self._note_deletions(node)
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            for node_id, group_id in dirty:
                if group_id.topic_id not in self._deleted and self._nodes[node_id].alive:
                    self._check(group_id, node_id)

    def _check(self, group_id: GroupId, node_id: NodeId) -> None:
        try:
            self._invariants[group_id].after_step(self._sides[group_id][node_id])
        except AssertionError as violation:
            self._on_violation(f"{group_id}: {violation}")

    def _note_groups(self, node: SimNode, groups: Mapping[GroupId, Replica]) -> None:
        known = self._known[node.node_id]
        for group_id, replica in groups.items():
            if known.get(group_id) is not replica and isinstance(replica, Group):
                self._begin(group_id, replica)
                mark = partial(self._mark, node.node_id, group_id)
                replica.on_commit.append(mark)
                replica.on_role.append(mark)
                mark()
        self._known[node.node_id] = dict(groups)

    def _begin(self, group_id: GroupId, replica: Group) -> None:
        if group_id in self._invariants:
            return
        sides = {node_id: GroupSide(self._nodes[node_id], group_id) for node_id in replica.voters}
        self._sides[group_id] = sides
        self._invariants[group_id] = _CachedInvariants(sides, self._counts, group_id)

    def _mark(self, node_id: NodeId, group_id: GroupId) -> None:
        self._dirty[node_id, group_id] = None

    def _note_deletions(self, node: SimNode) -> None:
        """What a topic's replicas do while its files are being removed is nobody's concern."""
        before, image = self._images.get(node.node_id), node.image
        self._images[node.node_id] = image
        if before is not None and image is not None:
            self._deleted |= before.topics.keys() - image.topics.keys()  # type: ignore[attr-defined]

    def on_frame(self, source: NodeId, address: str, data: bytes) -> None:
        """A node hands a frame to its stream to another one."""
        target = self._by_address.get(address)
        if not self.messages or target is None:
            return
        for message in peer_pb2.PeerFrame.FromString(data).messages:
            group_id = GroupId(message.topic_id, message.partition)
            invariants = self._invariants.get(group_id)
            if invariants is None or group_id.topic_id in self._deleted or target.node_id not in self._sides[group_id]:
                continue
            try:
                invariants.on_send(source, target.node_id, message)
            except AssertionError as violation:
                self._on_violation(f"{group_id}: {violation}")
