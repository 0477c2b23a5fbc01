"""What must hold after every step (numbers as in docs/raft.md). A breach raises `Violation`.

Each entry's checksum covers all entries before it, so equal checksums at an index mean equal logs up to there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from random import Random
from typing import Protocol

from fluxd.core.entry import FRAME_TAG, HEADER_BYTES, Stamp, read_stamp, verify_frame
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import GroupId, NodeId, RaftIndex
from fluxd.raft.group import Group
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.spec import Role
from fluxd.storage import votes as vote_file
from fluxd.storage.copies import COPIES, MARK, REPLACES
from fluxd.storage.errors import VotesCorrupt, VotesMissing
from fluxd.storage.snapshot import SUFFIX, decode_snapshot
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2
from tests.simulation.disk import SimDisk
from tests.simulation.node import GROUP, VOTES

_Row = tuple[int, int, int]
"""(generation, term, last index)"""
_LISTS_REMEMBERED = 1_000


class Violation(AssertionError):
    """A promise of the system was broken."""


class Watched(Protocol):
    """One node, as far as one of its groups is concerned."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def disk(self) -> SimDisk: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def directory_id(self) -> bytes: ...
    @property
    def wiped(self) -> bool:
        """What it had on its disk, or acknowledged, is not there any more: the disk is new, or was damaged."""

    @property
    def callback_failed(self) -> str: ...
    @property
    def replica(self) -> Group | OfflineGroup | None: ...
    @property
    def group(self) -> Group | None: ...
    @property
    def step_is_due(self) -> bool:
        """Something happened that the group is stepped for soon."""


class _Seen:
    """What was last seen of one process."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.opened: tuple[Group, int] | None = None
        self.term = 0
        self.commit = 0
        self.high_watermark = 0
        self.last = 0
        self.last_checksum = 0
        self.log_start = 0
        self.head: tuple[Group, int, RaftIndex] | None = None
        self.first_offset = 0
        self.leads_term = 0


class Invariants:
    """Watches all nodes of one group."""

    def __init__(self, nodes: Mapping[NodeId, Watched], counts: Counter[str], group_id: GroupId = GROUP) -> None:
        self._nodes, self.counts, self._group_id = nodes, counts, group_id
        self._directory = f"partitions/{group_id.directory_name}"
        self._beside = f"{COPIES}/{group_id.directory_name}"
        self._majority = len(nodes) // 2 + 1
        self._seen = {node: _Seen() for node in nodes}
        self._leaders: dict[int, NodeId] = {}
        self._pairs: dict[tuple[int, int], int] = {}
        self.ledger: dict[int, tuple[int, int, int]] = {}
        """index -> (term, checksum, term of the first committer)"""
        self.committed = 0
        self._durable_cache: dict[NodeId, tuple[object, dict[int, int]]] = {}
        self._votes_cache: dict[NodeId, tuple[bytes | None, tuple[int, NodeId | None]]] = {}
        self._log_starts: dict[int, int] = {}
        """commit index -> log start offset: a function of the committed entries"""
        self._lists: OrderedDict[tuple[NodeId, NodeId, int, int], dict[int, _Row]] = OrderedDict()
        """(leader, follower, process, round) -> this group's row by its number, of lists that may still be answered"""
        self._confirmed: set[tuple[NodeId, NodeId, _Row]] = set()
        """(leader, follower, row): confirmed at least once"""
        self._durable_terms: dict[tuple[NodeId, bytes], int] = {}
        self._durable_votes: dict[tuple[NodeId, bytes, int], NodeId | None] = {}

    # ------------------------------------------------------------------ after a step of one node
    def after_step(self, node: Watched) -> None:
        """Check everything that this node's step can have changed."""
        self.counts["checks"] += 1
        with node.disk.calm():
            self._after_step(node)

    def _after_step(self, node: Watched) -> None:
        group, replica = node.group, node.replica
        if node.callback_failed:
            raise Violation(f"a client of node {node.node_id}: {node.callback_failed}")
        if replica is not None and replica.role is Role.FAILED and not self._may_fail(node, replica.why):
            raise Violation(f"node {node.node_id} stopped itself: {replica.why}")
        if group is None:
            return
        seen = self._seen[node.node_id]
        if group.role is Role.FAILED:
            if seen.opened == (group, group.openings) and group.high_watermark > seen.high_watermark:
                self._commit(node, group, seen)  # what it answered in the step that failed
            return
        self._terms(node, group, seen)
        self._log(node, group, seen)
        self._remembers(node, group)
        if group.role is Role.LEADER:
            self._leader(node, group, seen)
            self._rests(node, group)
            self._tells(node, group)
        else:
            seen.leads_term = 0
        self._commit(node, group, seen)

    @staticmethod
    def _stamp(node: Watched, group: Group, index: int) -> Stamp | None:
        """Of an entry in the log; None: it was damaged."""
        try:
            return group.log.stamp_at(RaftIndex(index))
        except CorruptDataError:
            if not node.wiped:
                raise
            return None

    @staticmethod
    def _may_fail(node: Watched, why: str) -> bool:
        """Its disk failed: nothing else may stop a replica."""
        return node.disk.errors > 0 and why.startswith(("its disk failed: ", "its files cannot be opened: "))

    def _rests(self, node: Watched, group: Group) -> None:
        for peer, progress in group.guard.leading.progress.items():
            rest = progress.rest
            if rest is None or rest.heard_at < 0:
                continue
            row = (rest.row.generation, rest.row.term, rest.row.last_index)
            if row[1] != group.term or (node.node_id, peer, row) not in self._confirmed:
                raise Violation(f"I14: node {node.node_id} takes {row} for confirmed by node {peer}")

    @staticmethod
    def _remembers(node: Watched, group: Group) -> None:
        """I14: what a replica has confirmed and not compared again since is still so."""
        confirmed, leader = group.guard.confirmed, group.guard.following.leader
        if confirmed is not None and (leader is None or not group.guard.fits(leader, confirmed.row)):
            raise Violation(f"I14: node {node.node_id} takes {confirmed.row} for what it still is")

    @staticmethod
    def _tells(node: Watched, group: Group) -> None:
        """What a leader tells other nodes is kept while nothing can have changed; before a step that is due it may be
        older.
        """
        told, known = peer_pb2.LeaderStatus.FromString(group.encoded_status()), group.leader_status()
        for status in (told, known):
            for follower in status.followers:
                follower.rests = False
                follower.ClearField("last_heard_ms")
        if told != known and not node.step_is_due:
            raise Violation(f"node {node.node_id} tells {told}, but knows {known}")

    def _terms(self, node: Watched, group: Group, seen: _Seen) -> None:
        opened = (group, group.openings)
        if seen.incarnation != node.incarnation:
            seen.incarnation, seen.term, seen.opened = node.incarnation, 0, None
        if seen.opened != opened:
            seen.opened = opened
            self.counts["replicas_reopened"] += group.openings > 1
            if group.commit_index > max(self.durable(node), default=0):
                raise Violation(f"I6: node {node.node_id} restarts with commit {group.commit_index} beyond its disk")
            seen.commit = seen.high_watermark = seen.leads_term = seen.last = seen.log_start = 0
        if group.term < seen.term:
            raise Violation(f"I7: term of node {node.node_id} fell from {seen.term} to {group.term}")
        seen.term = group.term

    def _log(self, node: Watched, group: Group, seen: _Seen) -> None:
        log = group.log
        if (log.last_index, log.last.checksum) == (seen.last, seen.last_checksum):
            return
        first = min(seen.last, log.last_index) if seen.last else max(1, log.last_index - 50)
        if seen.last >= log.first_index:
            last = self._stamp(node, group, seen.last) if seen.last <= log.last_index else None
            self.counts["truncations"] += last is None or last.checksum != seen.last_checksum
        for index in range(max(log.first_index, first), log.last_index + 1):
            stamp = self._stamp(node, group, index)
            if stamp is None:
                continue
            known = self._pairs.setdefault((index, stamp.leader_epoch), stamp.checksum)
            if known != stamp.checksum:
                raise Violation(f"I2: two logs differ at {index}@{stamp.leader_epoch} (node {node.node_id})")
        seen.last, seen.last_checksum = log.last_index, log.last.checksum

    def _leader(self, node: Watched, group: Group, seen: _Seen) -> None:
        term = group.term
        known = self._leaders.setdefault(term, node.node_id)
        if known != node.node_id:
            raise Violation(f"I1: nodes {known} and {node.node_id} both lead term {term}")
        if seen.leads_term == term:
            return
        seen.leads_term = term
        self.counts["leaderships"] += 1
        older = [index for index, (_, _, by) in self.ledger.items() if by < term]
        if older:
            index = max(older)
            stamp = self._stamp(node, group, index) if index <= group.log.last_index else None
            lacks = stamp is None and (index > group.log.last_index or not node.wiped)
            if lacks or (stamp is not None and stamp.checksum != self.ledger[index][1]):
                raise Violation(f"I3: leader {node.node_id} of term {term} lacks the committed entry {index}")

    def _commit(self, node: Watched, group: Group, seen: _Seen) -> None:
        commit, log = group.commit_index, group.log
        if commit < seen.commit or group.high_watermark < seen.high_watermark:
            raise Violation(f"I6: commit of node {node.node_id} fell from {seen.commit} to {commit}")
        if commit > log.last_index:
            raise Violation(f"I6: commit {commit} of node {node.node_id} is beyond its log {log.last_index}")
        if seen.leads_term and seen.commit and commit > seen.commit and commit > max(self.durable(node), default=0):
            raise Violation(f"I9: leader {node.node_id} commits {commit} beyond its own disk")
        for index in range(max(seen.commit, log.first_index), commit + 1):
            stamp = self._stamp(node, group, index)
            if stamp is None:
                continue
            entry = self.ledger.get(index)
            if entry is None:
                copies = self._durable_copies(index, stamp.checksum)
                wiped = sum(other.wiped for other in self._nodes.values())  # may have acknowledged before
                if copies < self._majority - wiped:
                    raise Violation(
                        f"I5: {index}@{stamp.leader_epoch} committed by node {node.node_id} with {copies} copies"
                    )
                self.ledger[index] = (stamp.leader_epoch, stamp.checksum, group.term)
                self.committed = max(self.committed, index)
            elif entry[:2] != (stamp.leader_epoch, stamp.checksum):
                raise Violation(f"I4: node {node.node_id} commits another entry at {index}")
        seen.commit, seen.high_watermark = commit, group.high_watermark
        self._log_start(node, group, seen)

    def _log_start(self, node: Watched, group: Group, seen: _Seen) -> None:
        start = group.log_start_offset
        if start < seen.log_start or start > group.high_watermark:
            why = f"went from {seen.log_start} to {start}, high watermark {group.high_watermark}"
            raise Violation(f"I13: log start of node {node.node_id} {why}")
        if self._log_starts.setdefault(group.commit_index, start) != start:
            raise Violation(f"I13: two log starts at commit {group.commit_index} (node {node.node_id}: {start})")
        head = (group, group.openings, group.log.first_index)
        if head != seen.head:  # it need not be read after every step
            first = self._stamp(node, group, group.log.first_index)
            seen.head, seen.first_offset = head, 0 if first is None else first.base_offset
        if seen.first_offset > start:
            raise Violation(f"I13: node {node.node_id} lacks the record at its log start {start}")
        seen.log_start = start

    # ------------------------------------------------------------------ what is on disk
    def durable(self, node: Watched) -> dict[int, int]:
        """index -> checksum of what a power cut cannot take from a node's log."""
        disk = node.disk
        version = (disk.operations.get("sync"), disk.operations.get("sync_directory"), disk.life, node.directory_id)
        cached = self._durable_cache.get(node.node_id)
        if cached is not None and cached[0] == version:
            return cached[1]
        entries: dict[int, int] = {}
        directory = self._directory
        copying = disk.durable_bytes(f"{directory}/{MARK}") is not None  # may be thrown away again
        if disk.durable_bytes(f"{self._beside}/{REPLACES}") is not None:  # the log, whatever happens
            directory, copying = self._beside, False
        for name in () if copying else disk.names(directory):
            if name.endswith(".seg"):
                self._walk(disk.durable_bytes(f"{directory}/{name}") or b"", entries)
        self._drop_trimmed(disk, directory, entries)
        self._durable_cache[node.node_id] = (version, entries)
        return entries

    def _drop_trimmed(self, disk: SimDisk, directory: str, entries: dict[int, int]) -> None:
        """Segments that one trim could not remove, before a hole that the next one left, are removed at open: the log
        begins with the entries that belong together up to a snapshot's."""
        if not entries or max(entries) - min(entries) < len(entries):
            return
        files = [disk.durable_bytes(f"{directory}/{name}") for name in disk.names(directory) if name.endswith(SUFFIX)]
        snapshots = [decode_snapshot(self._group_id, data) for data in files if data is not None]
        first = max((s.index for s in snapshots if s is not None and s.index in entries), default=0)
        while first - 1 in entries:
            first = RaftIndex(first - 1)
        for index in [index for index in entries if index < first]:
            del entries[index]

    @staticmethod
    def _walk(data: bytes, entries: dict[int, int]) -> None:
        position = 0
        while len(data) - position >= HEADER_BYTES:
            try:
                stamp = read_stamp(data, position)
            except CorruptDataError:
                return
            if position + stamp.frame_bytes > len(data):
                return
            entries[stamp.raft_index] = stamp.checksum
            position += stamp.frame_bytes

    def _durable_copies(self, index: int, checksum: int) -> int:
        return sum(1 for node in self._nodes.values() if self._has(node, index, checksum))

    def _has(self, node: Watched, index: int, checksum: int) -> bool:
        """On its disk, or trimmed there."""
        entries = self.durable(node)
        return entries.get(index) == checksum or index < min(entries, default=0)

    def check_committed_is_durable(self, indexes: list[int], *, needed: int) -> None:
        """I5, later: what was acknowledged is still on `needed` disks."""
        for index in indexes:
            copies = self._durable_copies(index, self.ledger[index][1])
            if copies < needed:
                raise Violation(f"I5: acknowledged entry {index} has {copies} durable copies left, {needed} needed")

    # ------------------------------------------------------------------ what is said
    def on_send(self, source: NodeId, target: NodeId, message: peer_pb2.GroupMessage) -> None:
        """I7, I10, I11: nothing is on the wire before it is durable, and nothing else than frames."""
        node = self._nodes[source]
        with node.disk.calm(), self._nodes[target].disk.calm():
            try:
                self._check_message(node, target, message)
            except CorruptDataError:  # looking it up met damage: nothing that the sender may notice
                if not (node.wiped or self._nodes[target].wiped):
                    raise Violation(
                        f"an entry of node {source} or {target} is damaged, of which nobody knows"
                    ) from None

    def _check_message(self, node: Watched, target: NodeId, message: peer_pb2.GroupMessage) -> None:
        source = node.node_id
        body = message.WhichOneof("body")
        if message.term > 0:
            term, voted_for = self._vote_on_disk(node)
            if self._term_on_disk(node) < message.term:
                raise Violation(f"I7: node {source} sends {body} of term {message.term}, its votes know {term}")
            # a vote of an earlier term may have waited in a link's queue: it was durable, and cannot be given again
            if body == "vote_reply" and term <= message.term and (term, voted_for) != (message.term, target):
                raise Violation(
                    f"I7: node {source} sends a vote for {target}@{message.term}, its disk has {voted_for}@{term}"
                )
        if body == "append_entries":
            for frame in message.append_entries.frames:
                if frame[0] != FRAME_TAG:
                    raise Violation("I11: an entry whose first byte is not a frame's")
                verify_frame(frame)
        elif body == "append_reply" and message.append_reply.success:
            self._check_acknowledgement(node, target, message)
        elif body == "heartbeat_list":
            self._check_list(node, target, message.heartbeat_list)
        elif body == "heartbeat_list_reply":
            self._check_list_reply(node, target, message.heartbeat_list_reply)

    def _check_list(self, node: Watched, target: NodeId, heartbeat: peer_pb2.HeartbeatList) -> None:
        """I14: a row names a term that its sender leads durably, and an entry that is committed."""
        rows: dict[int, _Row] = {}
        columns = zip(
            heartbeat.topics, heartbeat.partitions, heartbeat.generations, heartbeat.terms, heartbeat.last_indexes,
            strict=True,
        )  # fmt: skip
        for number, (topic, partition, *row) in enumerate(columns):
            if GroupId(heartbeat.topic_ids[topic], partition) != self._group_id:
                continue
            generation, term, last_index = rows[number] = (row[0], row[1], row[2])
            if self._leaders.get(term) != node.node_id or last_index not in self.ledger:
                raise Violation(f"I14: node {node.node_id} lists {last_index}@{term}.{generation}")
            if self._term_on_disk(node) < term:
                raise Violation(f"I7: node {node.node_id} lists term {term}, which its votes do not know")
        self._lists[(node.node_id, target, heartbeat.process_nonce, heartbeat.round)] = rows
        if len(self._lists) > _LISTS_REMEMBERED:
            self._lists.popitem(last=False)

    def _check_list_reply(self, node: Watched, target: NodeId, reply: peer_pb2.HeartbeatListReply) -> None:
        """I14: who confirms a row is in that term, durably, with everything committed up to that entry on disk."""
        rows = self._lists.get((target, node.node_id, reply.process_nonce, reply.round), {})
        for number, (generation, term, last_index) in rows.items():
            self.counts["rows_listed"] += 1
            if number in reply.exceptions:
                self.counts["rows_refused"] += 1
                continue
            group = node.group
            if group is None or (group.generation, group.term) != (generation, term):
                raise Violation(f"I14: node {node.node_id} confirms term {term}.{generation}, in which it is not")
            if self._term_on_disk(node) < term:
                raise Violation(f"I7: node {node.node_id} confirms term {term}, which its votes do not know")
            if self.durable(node).get(last_index) != self.ledger[last_index][1]:
                raise Violation(f"I14: node {node.node_id} confirms entry {last_index}, which is not on its disk")
            self._confirmed.add((target, node.node_id, (generation, term, last_index)))

    def _term_on_disk(self, node: Watched) -> int:
        """The highest that its votes have had: where they are damaged later, the process has them written anew."""
        directory = (node.node_id, node.directory_id)
        term = self._durable_terms[directory] = max(self._durable_terms.get(directory, 0), self._vote_on_disk(node)[0])
        return term

    def _vote_on_disk(self, node: Watched) -> tuple[int, NodeId | None]:
        data = node.disk.durable_bytes(VOTES)
        cached = self._votes_cache.get(node.node_id)
        if cached is not None and cached[0] == data:
            return cached[1]
        result = self._parse_votes(data, holes=VOTES in node.disk.lossy_files())
        self._votes_cache[node.node_id] = (data, result)
        term, voted_for = result
        voter = (node.node_id, node.directory_id, term)  # a lost disk's vote is not known to the next one
        if voted_for is not None and self._durable_votes.setdefault(voter, voted_for) != voted_for:
            raise Violation(f"I7: node {node.node_id} voted twice in term {term}")
        return result

    def _parse_votes(self, data: bytes | None, *, holes: bool) -> tuple[int, NodeId | None]:
        """A failed sync leaves holes in what it was to sync: what was durable before stands in front of them, and the
        file counts as damaged for a process that begins then."""
        disk = SimDisk(Random(0))
        disk.set_bytes(VOTES, data or b"")
        try:
            vote = VoteFile.open(disk, VOTES).get(self._group_id, 0)
        except VotesMissing:
            return 0, None
        except VotesCorrupt:
            if not holes or data is None or len(data) <= vote_file.HEADER_BYTES:
                return 0, None
            return self._parse_votes(data[: -vote_file.RECORD_BYTES], holes=True)
        return (vote.term, vote.voted_for) if vote else (0, None)

    def _check_acknowledgement(self, node: Watched, target: NodeId, message: peer_pb2.GroupMessage) -> None:
        durable = message.append_reply.durable_index
        entries = self.durable(node)
        if durable and durable not in entries and durable > min(entries, default=0) and not node.wiped:
            raise Violation(f"I7: node {node.node_id} acknowledges {durable}, which is not on its disk")
        leader = self._nodes[target].group
        if leader is not None and leader.role is Role.LEADER and leader.term == message.term and durable:
            received = message.append_reply.received_index
            own = node.group
            if own is None:
                return  # it has failed since it said so
            for index in (durable, received):
                if index < max(leader.log.first_index, own.log.first_index):
                    continue  # trimmed
                theirs = leader.log.stamp_at(RaftIndex(index)).checksum
                if own.log.stamp_at(RaftIndex(index)).checksum != theirs:
                    raise Violation(f"I10: node {node.node_id} acknowledges {index}, which differs from the leader's")
