"""What others see of a replica that takes part: its role, where its log stands, and why it refuses."""

from __future__ import annotations

from fluxd.core.errors import FluxError, InvariantViolation, Reason
from fluxd.core.runtime import NEVER, NEVER_DUE
from fluxd.core.types import GroupId, NodeId, Offset, RaftIndex, Term
from fluxd.raft import library
from fluxd.raft.copying import Copying
from fluxd.raft.guard import Guard
from fluxd.raft.heartbeats import Confirmed, Row
from fluxd.raft.spec import Role
from fluxd.raft.transport import Transport
from fluxd.storage.log import PartitionLog
from fluxlog.v1 import peer_pb2

_ROLES = {library.FOLLOWER: Role.FOLLOWER, library.CANDIDATE: Role.CANDIDATE, library.LEADER: Role.LEADER}


class Standing:
    """The read side of `Group`, which sets the attributes."""

    group_id: GroupId
    voters: tuple[NodeId, ...]
    guard: Guard
    log: PartitionLog
    copying: Copying | None
    commit_index: RaftIndex
    high_watermark: Offset
    _failed: bool
    _why: str
    _encoded_status: bytes
    _encoded_until: float
    """When `_encoded_status` is no longer sure to be true; NEVER since the last step."""
    _node_id: NodeId
    _transport: Transport

    @property
    def role(self) -> Role:
        """At the moment."""
        return Role.FAILED if self._failed else _ROLES[self.guard.state]

    @property
    def why(self) -> str:
        """For people: why this replica stopped itself, or what is wrong although it takes part; empty: it is well."""
        if self._why or self.copying is None:
            return self._why
        return f"the leader no longer has what it needs next; {self.copying.progress}"

    @why.setter
    def why(self, why: str) -> None:
        self._why = why

    @property
    def term(self) -> Term:
        """Current term: the leader epoch, where there is a leader."""
        return Term(self.guard.term)

    @property
    def leader_id(self) -> NodeId | None:
        """Leader of the current term, as far as known here."""
        if self._failed:
            return None
        return self._node_id if self.guard.is_leader else self.guard.following.leader

    @property
    def log_start_offset(self) -> Offset:
        """First offset kept."""
        return self.log.log_start_offset

    @property
    def log_end_offset(self) -> Offset:
        """Offset after the last record in the log, committed or not: exclusive."""
        return self.log.log_end_offset

    @property
    def was_handed_over(self) -> bool:
        """While leading: the leader before asked this replica to take over."""
        return self.guard.is_leader and self.guard.elections.by_transfer

    @property
    def deadline(self) -> float:
        """When `step` has something to do without an event."""
        return self.guard.deadline

    def quorum_missing(self) -> tuple[NodeId, ...] | None:
        """Nodes that are missing when too few voters can be reached for a majority; None when enough can."""
        guard, now, leads = self.guard, self.guard.now(), self.role is Role.LEADER
        missing = []
        for peer in guard.peers:
            progress = guard.leading.progress[peer] if leads else None
            # one that is behind votes, but acknowledges nothing before it has copied
            silent = progress and (progress.is_behind or now - progress.heard_at >= guard.election_timeout)
            if silent or not self._transport.is_connected(peer):
                missing.append(peer)
        return tuple(sorted(missing)) if 2 * (len(self.voters) - len(missing)) <= len(self.voters) else None

    def confirm(self, peer: NodeId, row: Row, confirmed: Confirmed) -> bool:
        """Whether this replica is exactly what a row of a node's heartbeat says. No `step` follows."""
        return not self._failed and self.guard.confirm(peer, row, confirmed)

    def lacks(self, index: RaftIndex, term: Term) -> bool:
        """A committed entry is neither in this log nor trimmed from it: then no entry from there on in it is committed,
        nor can be.
        """
        log = self.log
        if index < log.first_index or (index <= log.last_index and log.term_at(index) == term):
            return False
        if index <= self.guard.commit_index:
            raise InvariantViolation(f"{self.group_id}: entry {index}@{term} of a copy conflicts with a committed one")
        return True

    def leader_status(self) -> peer_pb2.LeaderStatus:
        """What only the leader knows; call while leading."""
        now = self.guard.now()
        status = peer_pb2.LeaderStatus(
            topic_id=self.group_id.topic_id, partition=self.group_id.partition, leader_epoch=self.term,
            log_start_offset=self.log_start_offset, high_watermark=self.high_watermark,
            log_end_offset=self.log_end_offset, last_index=self.log.last_index, size_bytes=self.log.size_bytes,
        )  # fmt: skip
        for peer in self.guard.peers:
            progress = self.guard.leading.progress[peer]
            on_disk = 0 if progress.is_copying else progress.match  # that was another disk, or is set aside
            in_sync = self.guard.leading.in_sync_until(peer) >= now
            follower = status.followers.add(node_id=peer, durable_index=on_disk, in_sync=in_sync)
            if progress.acked_sequence and not progress.is_copying:
                follower.last_heard_ms = round((now - progress.heard_at) * 1000)
        return status

    def encoded_status(self) -> bytes:
        """`leader_status` for other nodes: as it was last time, while nothing can have changed. Of followers towards
        whom the group rests it says only that; when they were last heard, the answers to lists say for all groups.
        """
        if self.guard.now() >= self._encoded_until:
            status, until = self.leader_status(), NEVER_DUE
            for follower in status.followers:
                peer = NodeId(follower.node_id)
                progress = self.guard.leading.progress[peer]
                follower.rests = progress.rest is not None and progress.rest.heard_at != NEVER
                if follower.rests:
                    follower.ClearField("last_heard_ms")
                until = min(until, self.guard.leading.in_sync_until(peer) if follower.rests else NEVER)
            self._encoded_status, self._encoded_until = status.SerializeToString(), until
        return self._encoded_status

    def not_leader(self) -> FluxError:
        """REJECTED, with what is known of the leader."""
        if self._failed:
            return FluxError(
                Reason.REPLICA_OFFLINE, f"the replica of {self.group_id} on this node stopped itself: {self.why}"
            )
        leader = self.leader_id
        if leader is None:
            missing = self.quorum_missing()
            if missing is not None:
                return self.no_quorum(missing)
            return FluxError(Reason.NO_LEADER, f"{self.group_id} has no leader: an election is under way")
        return FluxError(
            Reason.NOT_LEADER, f"node {self._node_id} does not lead {self.group_id}, node {leader} does",
            metadata={"leader_node": str(leader)},
        )  # fmt: skip

    def no_quorum(self, missing: tuple[NodeId, ...]) -> FluxError:
        """REJECTED: too few replicas."""
        needed, names = len(self.voters) // 2 + 1, ",".join(map(str, missing))
        return FluxError(
            Reason.NO_QUORUM,
            f"{self.group_id} has {len(self.voters)} replicas and needs {needed}; nodes missing: {names}",
            metadata={"replicas": str(len(self.voters)), "needed": str(needed), "missing_nodes": names},
        )
