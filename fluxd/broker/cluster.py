"""What this node knows of the cluster at this moment: the metadata, who is up, who leads what.

Three sources, each with its own truth: the metadata image (agreed by all), this node's own replicas (first-hand, at
once), and what other nodes last told of theirs (`NodeStatus`, twice a second and on change). Who leads a partition is
decided by its group; of two tales the one with the higher term is newer. A leader on a node that is not heard from is
no answer.

Deliberately absent: any decision. All calls are on the loop; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

from google.protobuf.message import DecodeError

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import COMMAND_VERSION, Image, Topic
from fluxd.core.runtime import Reactor
from fluxd.core.types import METADATA_GROUP, GroupId, NodeId, Offset, Term
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2

_OUT = (Role.UNADMITTED, Role.FAILED)
_DISK_FULL = (
    f"its disk has less than {limits.DISK_RESERVE_BYTES // limits.MIB} MiB left; what it leads takes no records"
)


class Replica(Protocol):
    """This node's replica of one group, as far as the cluster view reads it."""

    on_role: list[Callable[[], None]]

    @property
    def group_id(self) -> GroupId: ...
    @property
    def role(self) -> Role: ...
    @property
    def why(self) -> str: ...
    @property
    def term(self) -> Term: ...
    @property
    def leader_id(self) -> NodeId | None: ...
    @property
    def log_start_offset(self) -> Offset: ...
    @property
    def high_watermark(self) -> Offset: ...
    @property
    def log_end_offset(self) -> Offset: ...
    def quorum_missing(self) -> tuple[NodeId, ...] | None: ...


class LeadingReplica(Replica, Protocol):
    """A replica while its role is LEADER."""

    def leader_status(self) -> peer_pb2.LeaderStatus: ...
    def encoded_status(self) -> bytes: ...


def leader_status(replica: Replica) -> peer_pb2.LeaderStatus | None:
    """What this node's replica knows as the leader; None when it is not."""
    return cast(LeadingReplica, replica).leader_status() if replica.role is Role.LEADER else None


def _leader_status(encoded: bytes) -> peer_pb2.LeaderStatus:
    try:
        return peer_pb2.LeaderStatus.FromString(encoded)
    except DecodeError as error:
        raise FluxError(Reason.INVALID_ARGUMENT, f"{len(encoded)} bytes are not a LeaderStatus") from error


def _with_answers(leading: peer_pb2.LeaderStatus, answered: Iterable[peer_pb2.Answered]) -> peer_pb2.LeaderStatus:
    """With the times when followers towards whom the group rests were heard."""
    ms_ago = {answer.node_id: answer.ms_ago for answer in answered}
    out = peer_pb2.LeaderStatus()
    out.CopyFrom(leading)
    for follower in out.followers:
        if follower.rests and follower.node_id in ms_ago:
            follower.last_heard_ms = ms_ago[follower.node_id]
    return out


@dataclass(frozen=True, slots=True)
class LocalNode:
    """What this node tells of itself."""

    node_id: NodeId
    directory_id: bytes
    address: str
    """host:port for clients."""
    process_id: int
    version: str
    allows_remote_stop: bool = False


@dataclass(frozen=True, slots=True)
class LeaderHint:
    """Where a partition's leader is."""

    node_id: NodeId
    address: str
    epoch: Term


@dataclass(slots=True)
class _Peer:
    seen_at: float | None = None
    """Reactor's clock; None: never, or its process is gone."""
    last_seen_at: float | None = None
    joined_at: float | None = None
    status: peer_pb2.NodeStatus | None = None
    status_at: float = 0.0
    rows: dict[bytes, GroupId] = field(default_factory=dict)
    """`status.leading`, and the partition that each is of."""
    leading: dict[GroupId, peer_pb2.LeaderStatus] = field(default_factory=dict)
    troubles: dict[GroupId, peer_pb2.ReplicaTrouble] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToldStatus:
    """What another node told, and how long ago."""

    status: peer_pb2.NodeStatus
    age_s: float


class ClusterView:
    """See the module.

    Args:
        groups: this node's replicas by group; the host's table, read live.
        answered: when each node last answered a list of heartbeats.
        disk_full: only the reserve of free space is left here.
        files_why: what is wrong with files of this node, its votes or meta.json; empty strings: nothing.
    """

    def __init__(
        self,
        reactor: Reactor,
        local: LocalNode,
        groups: Mapping[GroupId, Replica],
        *,
        answered: Callable[[], Mapping[NodeId, float]] = dict,
        disk_full: Callable[[], bool] = lambda: False,
        files_why: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.local = local
        self.cluster_id = ""
        """Empty until the cluster is founded or joined."""
        self.image = Image()
        self.copied: set[GroupId] = set()
        """Replicas of this node that were admitted after a copy and wait to be bound to its directory."""
        self._reactor = reactor
        self._groups, self._answered, self._disk_full, self._files_why = groups, answered, disk_full, files_why
        self._peers: dict[NodeId, _Peer] = {}
        self._told: dict[GroupId, tuple[Term, NodeId]] = {}
        self._watchers: list[Callable[[GroupId], None]] = []
        self._watchers_of: dict[GroupId, list[Callable[[], None]]] = {}
        self._status_listeners: list[Callable[[peer_pb2.NodeStatus], None]] = []

    # ---- metadata

    def topic(self, name: str) -> Topic | None:
        """The topic of that name, internal ones included."""
        return self.image.topic(name)

    def topic_by_id(self, topic_id: bytes) -> Topic | None:
        """The topic, unless it was deleted."""
        return self.image.topics.get(topic_id)

    def group_name(self, group_id: GroupId) -> str:
        """A partition as people call it: "orders-3"."""
        topic = self.topic_by_id(group_id.topic_id)
        return f"{topic.name}-{group_id.partition}" if topic else str(group_id)

    def address(self, node_id: NodeId) -> str:
        """host:port for clients, as the node told it last, else as it registered; empty: unknown."""
        if node_id == self.local.node_id:
            return self.local.address
        peer = self._peers.get(node_id)
        if peer is not None and peer.status is not None and peer.status.advertised_address:
            return peer.status.advertised_address
        node = self.image.nodes.get(node_id)
        return node.address if node else ""

    # ---- who is up

    def peer_seen(self, node_id: NodeId) -> None:
        """Something was received from a node."""
        peer = self._peer(node_id)
        peer.seen_at = peer.last_seen_at = self._reactor.now()

    def peer_joined(self, node_id: NodeId) -> None:
        """A link to a node stands again: it may have been started anew."""
        self.peer_seen(node_id)
        self._peer(node_id).joined_at = self._reactor.now()

    def joined_since(self, node_id: NodeId, moment: float) -> bool:
        """A link to the node was made after a moment of the reactor's clock."""
        peer = self._peers.get(node_id)
        return peer is not None and peer.joined_at is not None and peer.joined_at > moment

    def peer_lost(self, node_id: NodeId) -> None:
        """A node's process is gone (its connection is refused): do not wait for NODE_DOWN_AFTER."""
        peer = self._peer(node_id)
        if peer.seen_at is None:
            return
        peer.seen_at = None
        for group_id in peer.leading:
            self._changed(group_id)

    def is_up(self, node_id: NodeId) -> bool:
        """The node was heard from within NODE_DOWN_AFTER; this node itself always is."""
        if node_id == self.local.node_id:
            return True
        peer = self._peers.get(node_id)
        return (
            peer is not None
            and peer.seen_at is not None
            and self._reactor.now() - peer.seen_at < limits.NODE_DOWN_AFTER
        )

    def silence_s(self, node_id: NodeId) -> float | None:
        """Seconds since a node was last heard; None: never in the life of this process."""
        if node_id == self.local.node_id:
            return 0.0
        peer = self._peers.get(node_id)
        return None if peer is None or peer.last_seen_at is None else self._reactor.now() - peer.last_seen_at

    # ---- what nodes tell

    def observe_status(self, status: peer_pb2.NodeStatus) -> None:
        """Take what another node tells of itself. The link has made sure that it is the sender's own.

        Raises:
            FluxError: it holds something that is no LeaderStatus; nothing of it was taken.
        """
        node_id = NodeId(status.node_id)
        if node_id == self.local.node_id:
            return
        self.peer_seen(node_id)
        peer = self._peer(node_id)
        changed = self._take_rows(node_id, peer, status.leading)
        peer.status, peer.status_at = status, self._reactor.now()
        peer.troubles = {GroupId(trouble.topic_id, trouble.partition): trouble for trouble in status.troubles}
        for group_id in changed:
            self._changed(group_id)
        for listener in tuple(self._status_listeners):
            listener(status)

    def _take_rows(self, node_id: NodeId, peer: _Peer, encoded: Iterable[bytes]) -> list[GroupId]:
        """What a node leads; of what it told last time, only the differences are looked at. Partitions whose leader
        that changes."""
        rows = set(encoded)
        new = {row: _leader_status(row) for row in rows - peer.rows.keys()}
        gone = {peer.rows.pop(row) for row in peer.rows.keys() - rows}
        changed = []
        for row, leader in new.items():
            group_id = peer.rows[row] = GroupId(leader.topic_id, leader.partition)
            peer.leading[group_id] = leader
            gone.discard(group_id)
            told = self._told.get(group_id)
            if told is None or told[0] < leader.leader_epoch:
                self._told[group_id] = (Term(leader.leader_epoch), node_id)
                changed.append(group_id)
        for group_id in gone:
            del peer.leading[group_id]
            if self._told.get(group_id, (0, None))[1] == node_id:
                self._untold(group_id)
                changed.append(group_id)
        return changed

    def _untold(self, group_id: GroupId) -> None:
        """The newest leader told of no longer says so: the next one, if another node says that it leads."""
        others = [
            (Term(peer.leading[group_id].leader_epoch), node_id)
            for node_id, peer in self._peers.items()
            if group_id in peer.leading
        ]
        if others:
            self._told[group_id] = max(others)
        else:
            del self._told[group_id]

    def heard_own(self, status: peer_pb2.NodeStatus) -> None:
        """What this node tells the others it hears itself: it may be the controller, who looks after all of them."""
        for listener in tuple(self._status_listeners):
            listener(status)

    def told(self, node_id: NodeId) -> ToldStatus | None:
        """What another node told last, however old."""
        peer = self._peers.get(node_id)
        if peer is None or peer.status is None:
            return None
        return ToldStatus(peer.status, self._reactor.now() - peer.status_at)

    def told_leading(self, group_id: GroupId) -> tuple[peer_pb2.LeaderStatus, float] | None:
        """What the newest leader that was told of tells of a partition, and the age of that in seconds."""
        _, node_id = self._told.get(group_id, (0, None))
        peer = self._peers.get(node_id) if node_id is not None else None
        leading = peer.leading.get(group_id) if peer else None
        if peer is None or peer.status is None or leading is None:
            return None
        return _with_answers(leading, peer.status.answered), self._reactor.now() - peer.status_at

    def trouble(self, group_id: GroupId, node_id: NodeId) -> tuple[Role, str] | None:
        """UNADMITTED or FAILED, and why, of a replica that takes no part; None: nothing of that kind is known."""
        if node_id == self.local.node_id:
            own = self._groups.get(group_id)
            return (own.role, own.why) if own is not None and own.role in _OUT else None
        peer = self._peers.get(node_id)
        trouble = peer.troubles.get(group_id) if peer else None
        if trouble is None or trouble.takes_part:
            return None
        return (Role.FAILED if trouble.failed else Role.UNADMITTED), trouble.why

    def damage(self, group_id: GroupId, node_id: NodeId) -> str:
        """What is wrong with a replica that takes part all the same; empty: nothing is known."""
        if node_id == self.local.node_id:
            own = self._groups.get(group_id)
            return own.why if own is not None and own.role not in _OUT else ""
        peer = self._peers.get(node_id)
        trouble = peer.troubles.get(group_id) if peer else None
        return trouble.why if trouble is not None and trouble.takes_part else ""

    def node_why(self, node_id: NodeId) -> str:
        """What is wrong with a node as a whole although it is up; empty: nothing is known."""
        if node_id == self.local.node_id:
            return "; ".join(filter(None, (_DISK_FULL if self._disk_full() else "", *self._files_why())))
        peer = self._peers.get(node_id)
        return peer.status.why if peer is not None and peer.status is not None else ""

    def on_status(self, listener: Callable[[peer_pb2.NodeStatus], None]) -> Callable[[], None]:
        """Call after each status of a node, this one included. Returns how to end that."""
        self._status_listeners.append(listener)
        return lambda: self._status_listeners.remove(listener)

    def local_status(self) -> peer_pb2.NodeStatus:
        """What this node tells the others."""
        local = self.local
        status = peer_pb2.NodeStatus(
            node_id=local.node_id,
            directory_id=local.directory_id,
            advertised_address=local.address,
            process_id=local.process_id,
            version=local.version,
            allows_remote_stop=local.allows_remote_stop,
            why=self.node_why(local.node_id),
            metadata_version=COMMAND_VERSION,
        )
        now = self._reactor.now()
        for node_id, moment in self._answered().items():
            status.answered.add(node_id=node_id, ms_ago=round((now - moment) * 1000))
        leading = []
        for group_id, group in self._groups.items():
            role, why = group.role, group.why
            if role is Role.LEADER:
                leading.append(cast(LeadingReplica, group).encoded_status())
            if why or role in _OUT:
                status.troubles.add(
                    topic_id=group_id.topic_id,
                    partition=group_id.partition,
                    failed=role is Role.FAILED,
                    why=why,
                    copied=group_id in self.copied,
                    takes_part=role not in _OUT,
                )
        status.leading.extend(leading)
        return status

    # ---- who leads

    def replica(self, group_id: GroupId) -> Replica | None:
        """This node's own replica."""
        return self._groups.get(group_id)

    def leads(self, group_id: GroupId) -> bool:
        """This node leads the partition, as far as it knows."""
        group = self._groups.get(group_id)
        return group is not None and group.role is Role.LEADER

    def leader(self, group_id: GroupId) -> LeaderHint | None:
        """The newest leader known, if its node is up."""
        epoch, node_id = self._told.get(group_id, (Term(-1), None))
        own = self._groups.get(group_id)
        if own is not None and own.role not in _OUT:
            if own.leader_id is not None and own.term >= epoch:
                epoch, node_id = own.term, own.leader_id
            elif own.term > epoch:
                node_id = None  # an election newer than what was told
        if node_id is None or not self.is_up(node_id):
            return None
        return LeaderHint(node_id, self.address(node_id), epoch)

    def controller(self) -> LeaderHint | None:
        """The leader of the metadata group."""
        return self.leader(METADATA_GROUP)

    def attach(self, group: Replica) -> None:
        """Tell the watchers when the leader of one of this node's groups changes: from now on, and that it has."""
        group_id = group.group_id
        group.on_role.append(lambda: self._changed(group_id))
        self._changed(group_id)

    def watch_leaders(self, callback: Callable[[GroupId], None]) -> Callable[[], None]:
        """Call whenever what is known of a partition's leader may have changed. Returns how to end that."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    def watch_leader(self, group_id: GroupId, callback: Callable[[], None]) -> Callable[[], None]:
        """As `watch_leaders`, of one partition: hundreds may wait while hundreds change."""
        watchers = self._watchers_of.setdefault(group_id, [])
        watchers.append(callback)

        def unwatch() -> None:
            watchers.remove(callback)
            if not watchers and self._watchers_of.get(group_id) is watchers:
                del self._watchers_of[group_id]

        return unwatch

    def _changed(self, group_id: GroupId) -> None:
        for watcher in tuple(self._watchers):
            watcher(group_id)
        for watcher_of_group in tuple(self._watchers_of.get(group_id, ())):
            watcher_of_group()

    def _peer(self, node_id: NodeId) -> _Peer:
        return self._peers.setdefault(node_id, _Peer())
