"""The follower's side of the guard: an AppendEntries is compared with the own log *before* the library sees it.

The library truncates everything behind the previous index, whether it conflicts or not, and commits whatever then lies
below the leader's commit index. So it is shown only what is new or conflicts (C3 in docs/raft.md; H1, H3, H24), and a
commit index clamped to what this message verified (C4; H4).

Liveness and durability are apart (C5 as amended): an AppendEntries that brings nothing new is answered at once; one
with new entries when a sync has covered them, or after REPLY_DELAY_MAX with what is durable by then, and again when a
sync has advanced that. A slow disk never looks like a dead node. One that only tells a commit index is answered with
what comes next, or after REPLY_DELAY_MAX: of the messages that a lone record takes between nodes, these were a quarter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxd.core.entry import EntryKind, Stamp, read_trim, verify_frame
from fluxd.core.errors import CorruptDataError, InvariantViolation
from fluxd.core.runtime import NEVER_DUE
from fluxd.core.types import NodeId, RaftIndex, Term
from fluxlog.v1 import peer_pb2

if TYPE_CHECKING:
    from fluxd.raft.guard import Guard
    from fluxd.raft.heartbeats import Row

REPLY_DELAY_MAX = 0.05
"""Seconds. Most syncs are faster, and one reply then says what two would have."""


class Following:
    """What a replica has verified of the current leader's log."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._leader: tuple[int, NodeId | None] = (0, None)
        self._last_sequence = {False: 0, True: 0}
        """Per stream (with entries or without): anything not newer is stale."""
        self._sequence = 0
        self.verified = 0
        """Highest index known to equal the log of the leader of `_leader[0]`."""
        self._reported = 0
        self.reply_by = NEVER_DUE
        """When the leader is owed a reply that is held back until a sync has something to say."""
        self.is_behind = False
        """A leader's log began behind this one when it was heard last, or perhaps before the start."""

    def on_append(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """An AppendEntries of a current or newer term (the guard has checked)."""
        append = message.append_entries
        try:
            entries = self._checked_entries(message.term, append)
        except CorruptDataError as error:
            self._guard.count("corrupt_append")
            self._guard.log_event("append_entries_refused", peer=peer, why=str(error))
            return
        if not self._is_new(peer, message.term, append):
            return
        self._guard.elections.leader_heard()
        previous = append.previous_index
        log = self._guard.journal.log
        # what was trimmed was committed, so the leader had the same there
        matches = previous < log.first_index or (
            previous <= log.last_index and log.term_at(RaftIndex(previous)) == append.previous_term
        )
        if matches:
            self._accept(peer, message, entries)
        else:
            self._refuse(peer, message)

    def fits(self, peer: NodeId, row: Row) -> bool:
        """A row of the leader's heartbeat for all its groups (the guard has checked generation and term)."""
        journal = self._guard.journal
        log, last_index = journal.log, row.last_index
        if self._leader != (row.term, peer) or self._guard.is_leader:
            return False
        return self.verified == journal.commit_index == log.last_index == log.synced_index == last_index

    def _checked_entries(self, term: int, append: peer_pb2.AppendEntries) -> list[tuple[bytes, Stamp]]:
        entries, index, entry_term = [], append.previous_index, append.previous_term
        for frame in append.frames:
            stamp = verify_frame(frame)
            index += 1
            if (
                stamp.raft_index != index
                or not entry_term <= stamp.leader_epoch <= term
                or stamp.kind is EntryKind.BIRTH
            ):
                found = f"{stamp.raft_index}@{stamp.leader_epoch}"
                raise CorruptDataError(f"entry {found} where {index} of a term in {entry_term}..{term} belongs")
            if stamp.kind is EntryKind.TRIM:
                read_trim(frame)
            entry_term = stamp.leader_epoch
            entries.append((frame, stamp))
        return entries

    def _is_new(self, peer: NodeId, term: int, append: peer_pb2.AppendEntries) -> bool:
        known_term, leader = self._leader
        if term != known_term:
            self._leader, self.verified, self._reported = (term, peer), 0, 0
            self._last_sequence, self._sequence = {False: 0, True: 0}, 0
        elif peer != leader:
            raise InvariantViolation(f"two leaders in term {term}: nodes {leader} and {peer}")
        stream = bool(append.frames)
        if append.sequence <= self._last_sequence[stream]:
            self._guard.count("stale_append")
            return False
        self._last_sequence[stream] = append.sequence
        self._sequence = max(self._sequence, append.sequence)
        return True

    def _accept(self, peer: NodeId, message: peer_pb2.GroupMessage, entries: list[tuple[bytes, Stamp]]) -> None:
        append, guard = message.append_entries, self._guard
        log = guard.journal.log
        if self.is_behind:
            self.is_behind = False
            guard.on_connected()
        verified = append.previous_index + len(entries)
        known = 0
        while known < len(entries):
            stamp = entries[known][1]
            if stamp.raft_index >= log.first_index and (
                stamp.raft_index > log.last_index or log.term_at(stamp.raft_index) != stamp.leader_epoch
            ):
                break
            known += 1
        new = entries[known:]
        if new:
            at = new[0][1].raft_index - 1
            if at < log.last_index and at < guard.journal.commit_index:
                raise InvariantViolation(
                    f"entry {at + 1} of the leader conflicts at or below commit index {guard.journal.commit_index}"
                )
        else:
            at = log.last_index  # nothing new: show the library its own end, so that it truncates nothing
        guard.inject(
            peer,
            {
                "type": "append_entries",
                "term": message.term,
                "prevLogIdx": at,
                "prevLogTerm": log.term_at(RaftIndex(at)),
                "entries": [(frame, stamp.raft_index, stamp.leader_epoch) for frame, stamp in new],
                "commit_index": min(append.commit_index, verified),
            },
        )
        if log.last_index < verified:
            raise InvariantViolation(f"the library holds {log.last_index} entries of {verified} that it was given")
        self.verified = max(self.verified, verified)
        if new or append.may_wait:
            self.reply_by = min(self.reply_by, guard.now() + REPLY_DELAY_MAX)
        else:
            self._report(peer)

    def _refuse(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        append, guard = message.append_entries, self._guard
        log, commit = guard.journal.log, guard.journal.commit_index
        previous = append.previous_index
        if log.first_index <= previous <= commit:
            raise InvariantViolation(f"previous entry {previous} of the leader conflicts below commit index {commit}")
        # the library adopts the term and the leader; its own reply is not sent
        guard.inject(
            peer,
            {
                "type": "append_entries",
                "term": message.term,
                "prevLogIdx": previous,
                "prevLogTerm": append.previous_term,
                "entries": [],
                "commit_index": 0,
            },
        )
        if previous > log.last_index:
            next_index = log.last_index + 1
        else:  # skip the whole conflicting term, never below what is committed (thesis §5.3: one round trip per term)
            next_index = max(log.epoch_first_index(RaftIndex(previous), RaftIndex(commit + 1)), commit + 1)
        reply = guard.outbox.message()
        reply.append_reply.echoed_term = message.term
        reply.append_reply.echoed_sequence = append.sequence
        reply.append_reply.success = False
        reply.append_reply.next_index = next_index
        reply.append_reply.last_index = log.last_index
        reply.append_reply.behind = append.at_log_start
        guard.outbox.send(peer, reply)
        if append.at_log_start:
            self.is_behind = True
            guard.on_behind(message.term, peer)

    def _report(self, peer: NodeId) -> None:
        guard = self._guard
        log, term = guard.journal.log, self._leader[0]
        if term != guard.term:
            return
        self.reply_by = NEVER_DUE
        self._reported = min(self.verified, log.synced_index)
        reply = guard.outbox.message()
        reply.append_reply.echoed_term = term
        reply.append_reply.echoed_sequence = self._sequence
        reply.append_reply.success = True
        reply.append_reply.durable_index = self._reported
        reply.append_reply.received_index = self.verified
        reply.append_reply.last_index = log.last_index
        guard.outbox.send(peer, reply)

    def on_synced(self) -> None:
        """The disk has more: tell the leader, if it is news."""
        term, leader = self._leader
        if leader is None or self._guard.is_leader or term != self._guard.term:
            return
        if min(self.verified, self._guard.journal.log.synced_index) > self._reported:
            self._report(leader)

    def tick(self) -> None:
        """The disk is slow: the leader hears what has arrived."""
        if self._guard.now() >= self.reply_by:
            self.reply_by = NEVER_DUE
            if self._leader[1] is not None:
                self._report(self._leader[1])

    @property
    def leader(self) -> NodeId | None:
        """Leader of the current term, if it was heard in it."""
        term, leader = self._leader
        return leader if term == self._guard.term else None

    @property
    def leader_term(self) -> Term:
        """Term of the last leader heard."""
        return Term(self._leader[0])
