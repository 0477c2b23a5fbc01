"""The leader's side of the guard: what the library wants to send, and what the followers' replies are worth.

Closes (numbers of docs/raft.md): replies of an old leadership are dropped (C1, H7); a rewind is honoured once (C1, H2);
nextIndex is put back after each
acknowledgement (C2, H29); a match counts no further than the leader's own disk (C5, H10); bytes in flight per
follower are bounded by hiding it
from the library (C11). Reads that must be current use the read index: no leases (C7 as amended).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fluxd.core import limits
from fluxd.core.errors import FluxError, InvariantViolation, Reason
from fluxd.core.runtime import NEVER, NEVER_DUE
from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.heartbeats import Row
from fluxd.raft.journal import ENTRY_WEIGHT, EntryRange
from fluxd.raft.progress import InFlight, Progress
from fluxlog.v1 import peer_pb2

if TYPE_CHECKING:
    from fluxd.raft.guard import Guard

DISK_PEER = NodeId(0)
"""The second voter that the library sees in a group of one: this node's own disk. It votes and acknowledges when the
disk has it, so a group of one counts nothing before its sync (H10)."""

_ALL = 1 << 62

ReadDone = Callable[[FluxError | None], None]


@dataclass(slots=True)
class _Transfer:
    """A handover that was asked for."""

    to: NodeId | None
    deadline: float
    urgent: bool
    """Do not wait for what is in flight: it cannot be committed here."""
    sent: bool = False


class Leading:
    """State of one replica while it leads. `term_start` is the index of the leader's own entry."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.progress: dict[NodeId, Progress] = {}
        self.term_start = RaftIndex(0)
        self._reads: list[tuple[dict[NodeId, int], ReadDone]] = []
        self._admissions: dict[NodeId, tuple[dict[NodeId, int], Callable[[RaftIndex], None]]] = {}
        self._transfer: _Transfer | None = None

    # ------------------------------------------------------------------ begin and end
    def begin(self) -> None:
        """The library became leader; its own entry comes next."""
        log = self._guard.journal.log
        self.term_start = RaftIndex(log.last_index + 1)
        now = self._guard.now()
        self.progress = {
            peer: Progress(log.last_index + 1, replied_at=now, told_at=now) for peer in self._guard.library_peers
        }
        if DISK_PEER in self.progress:
            self.progress[DISK_PEER].match = self.progress[DISK_PEER].received = _ALL
        self._transfer = None

    def end(self) -> None:
        """Leadership is over."""
        for progress in self.progress.values():
            progress.roused()
        self.progress.clear()
        self._admissions.clear()
        self._transfer = None
        reads, self._reads = self._reads, []
        for _, done in reads:
            done(FluxError(Reason.NOT_LEADER, "leadership was lost while the read was being confirmed"))

    # ------------------------------------------------------------------ sending
    def send_append(self, peer: NodeId, message: dict[str, Any]) -> None:
        """The library's append_entries for one follower."""
        if message.get("prevLogIdx") is None or "transmission" in message:
            raise InvariantViolation("the library wants to send a snapshot or a transmission")
        previous, entries = int(message["prevLogIdx"]), message["entries"]
        progress = self.progress[peer]
        progress.next_index = previous + len(entries) + 1
        if peer == DISK_PEER:
            return
        if entries:
            assert isinstance(entries, EntryRange)
            self._send_entries(peer, progress, previous, entries.indexes)
        else:
            self._send_heartbeat(peer, progress, previous)

    def _send_entries(self, peer: NodeId, progress: Progress, previous: int, indexes: range) -> None:
        log, frames, size = self._guard.journal.log, list[bytes](), 0
        first = indexes[0]
        for index in indexes:
            frame = log.frame_at(RaftIndex(index))
            frames.append(frame)
            size += len(frame) + ENTRY_WEIGHT
            if size < limits.ENTRY_BYTES_TARGET and index != indexes[-1]:
                continue
            if not self._send(peer, progress, first - 1, frames):
                progress.lost_from(first)
                self._guard.hide(peer)
                return
            progress.sent(InFlight(first, index, size), self._guard.now())
            frames, size, first = [], 0, index + 1
        if progress.window_full:
            self._guard.hide(peer)

    def _send_heartbeat(self, peer: NodeId, progress: Progress, previous: int) -> None:
        if progress.in_flight or progress.rewind_to:
            # entries are on the way on the other stream: do not overtake them with a claim that they arrived
            previous = max(progress.received, self._guard.journal.log.first_index)
        if progress.probe or (progress.rest is None and self._guard.now() >= progress.heartbeat_at):
            self._send(peer, progress, previous)

    def tell_commit(self) -> None:
        """At the end of a step: followers who have an entry and were not told with a later one that it is committed.

        Not earlier: the next entry of a busy group tells it too, and those who wait for the commit are answered first.
        """
        commit_index = self._guard.journal.commit_index
        for peer, progress in self.progress.items():
            if peer != DISK_PEER and min(commit_index, progress.received) > progress.commit_sent:
                previous = max(progress.received, self._guard.journal.log.first_index)
                self._send(peer, progress, previous, may_wait=not progress.probe)

    def _send(
        self, peer: NodeId, progress: Progress, previous: int, frames: Sequence[bytes] = (), *, may_wait: bool = False
    ) -> bool:
        guard = self._guard
        progress.roused()
        progress.sequence += 1
        message = guard.outbox.message()
        append = message.append_entries
        append.sequence = progress.sequence
        append.previous_index = previous
        append.previous_term = guard.journal.log.term_at(RaftIndex(previous))
        append.commit_index = guard.journal.commit_index
        append.at_log_start = previous == guard.journal.log.first_index > 1
        append.may_wait = may_wait
        progress.heartbeat_at = guard.now() + guard.heartbeats.timeouts.heartbeat_interval(peer)
        progress.probe = False
        progress.commit_sent = max(progress.commit_sent, min(append.commit_index, previous + len(frames)))
        return guard.outbox.send(peer, message, frames)

    def tick(self) -> None:
        """Before the library's tick: notice what was lost, keep hidden followers alive, tell what lists have told."""
        guard, now = self._guard, self._guard.now()
        for peer, progress in self.progress.items():
            if peer == DISK_PEER:
                guard.inject_neutral(peer)
                continue
            heard_at = progress.heard_at
            if heard_at > progress.told_at:
                progress.told_at = heard_at
                guard.inject_neutral_of(peer, heard_at)
            progress.lose_what_is_overdue(now, guard.election_timeout)
            if not guard.is_exposed(peer):
                self._send_heartbeat(peer, progress, max(progress.received, guard.journal.log.first_index))

    def log_trimmed(self) -> None:
        """The log's head is gone: the library must not ask for it."""
        first_index = self._guard.journal.log.first_index
        for peer, progress in self.progress.items():
            if progress.next_index <= first_index:
                self._rewind(peer, progress, first_index + 1)

    def _rewind(self, peer: NodeId, progress: Progress, next_index: int) -> None:
        next_index = max(next_index, self._guard.journal.log.first_index + 1)  # the library asks for a snapshot else
        progress.rewind(next_index)
        self._guard.inject_reset(peer, next_index)
        self._guard.expose(peer)

    def peer_lost(self, peer: NodeId) -> None:
        """The link broke: what was on it is gone."""
        if peer in self.progress:
            self.progress[peer].roused()
            self.progress[peer].gone()

    # ------------------------------------------------------------------ resting
    def settle(self) -> None:
        """At the end of a step: the group rests towards followers with whom nothing is under way (`heartbeats.py`).
        What a leader has read back for those who lagged is let go of when none does any more."""
        guard, journal = self._guard, self._guard.journal
        now, last_index = guard.now(), journal.log.last_index
        at_rest = (
            journal.commit_index == last_index == journal.log.synced_index
            and last_index >= self.term_start
            and not (self._reads or self._admissions or self._transfer)
            and guard.votes_durable()
        )
        lags = not at_rest
        for peer, progress in self.progress.items():
            if peer == DISK_PEER:
                continue
            if not at_rest or progress.is_under_way(last_index, now):
                progress.roused()
                lags = True
            elif progress.rest is None and guard.is_exposed(peer) and guard.transport.is_connected(peer):
                row = Row(guard.group, guard.generation, guard.term, last_index)
                progress.rest = guard.heartbeats.rest(
                    peer, row, roused=partial(self._roused, progress), silent=self._silent
                )
        if not lags:
            journal.log.forget_window()

    def _silent(self) -> None:
        if not self.in_contact():
            self._guard.rouse()  # the library looks, and steps down

    def _roused(self, progress: Progress) -> None:
        progress.roused()
        self._guard.rouse()

    @property
    def deadline(self) -> float:
        """When a heartbeat is due.

        To a node that cannot be reached none is, while lists tell of a majority: hundreds of groups with a replica on
        a node that is gone would else be stepped all the time. When the link stands again they all are stepped.
        """
        if DISK_PEER in self.progress:
            return self._guard.now() + limits.HEARTBEAT_INTERVAL
        roused = {peer: progress for peer, progress in self.progress.items() if progress.rest is None}
        if 2 * (len(self.progress) - len(roused) + 1) > len(self.progress) + 1:
            roused = {peer: progress for peer, progress in roused.items() if self._guard.transport.is_connected(peer)}
        return min((progress.heartbeat_at for progress in roused.values()), default=NEVER_DUE)

    # ------------------------------------------------------------------ replies
    def on_reply(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """An AppendReply of this leadership (the guard has checked the terms)."""
        reply, progress, now = message.append_reply, self.progress[peer], self._guard.now()
        log = self._guard.journal.log
        if progress.admitted_at and reply.echoed_sequence <= progress.admitted_at:
            self._guard.count("reply_of_a_lost_disk")
            return
        if now < progress.leaving_until:
            self._guard.count("reply_of_a_leaving_replica")
            return
        progress.replied_at = progress.told_at = now
        progress.acked_sequence = max(progress.acked_sequence, reply.echoed_sequence)
        if reply.success:
            if reply.received_index > log.last_index:
                raise InvariantViolation(
                    f"node {peer} acknowledges {reply.received_index}, the log ends at {log.last_index}"
                )
            progress.acknowledged(reply.received_index, reply.durable_index, log_end_index=log.last_index, now=now)
            self._guard.inject_neutral(peer)
            if progress.is_behind:  # no more: it has a copy, up to about there
                progress.is_behind = False
                progress.rewind_to = min(reply.last_index, log.last_index) + 1
            if progress.rewind_to:
                # Only now, since the library takes any of these messages for a sign of life:
                # rewinding a follower that does not
                # answer would keep a cut-off leader in office.
                self._rewind(peer, progress, max(progress.rewind_to, progress.received + 1))
            elif not progress.window_full:
                self._guard.expose(peer)
            self.give(peer)
        elif reply.echoed_sequence < progress.fence:
            self._guard.count("fenced_reset")
            self._guard.inject_neutral(peer)
        else:
            self._rewind(peer, progress, min(max(reply.next_index, progress.match + 1), log.last_index + 1))
            progress.is_behind = reply.behind
            if reply.behind:
                self._guard.hide(peer)  # entries would be refused; heartbeats go on
        self._finish_reads()

    def give(self, peer: NodeId) -> None:
        """Hand a verified match to the library, no further than this node's own disk: the leader counts itself."""
        progress = self.progress[peer]
        match = min(progress.match, self._guard.journal.log.synced_index)
        if match <= progress.given:
            return
        progress.given = match
        self._guard.inject_match(peer, match)
        if progress.next_index != match + 1:  # a success winds nextIndex back; a "reset" sets it to any value
            self._guard.inject_reset(peer, progress.next_index)

    def on_synced(self) -> None:
        """This node's disk has more."""
        for peer in self.progress:
            self.give(peer)

    def copies_on_disk(self, index: RaftIndex) -> int:
        """Replicas that have a committed entry on disk, as far as this leader knows: at least a majority."""
        others = sum(1 for peer, p in self.progress.items() if peer != DISK_PEER and p.match >= index)
        known = others + (self._guard.journal.log.synced_index >= index)
        return max(known, (len(self._guard.peers) + 1) // 2 + 1)

    def in_sync_until(self, peer: NodeId) -> float:
        """When a follower is no longer a member of the ISR, unless it is heard until then."""
        return self.progress[peer].in_sync_until(self._guard.heartbeats.timeouts.in_sync(peer))

    def in_contact(self) -> bool:
        """A majority, this replica included, was heard from within the minimum election timeout."""
        now, timeout = self._guard.now(), self._guard.election_timeout
        heard = sum(1 for peer, p in self.progress.items() if peer == DISK_PEER or now - p.heard_at < timeout)
        return heard + 1 > (len(self.progress) + 1) / 2

    # ------------------------------------------------------------------ reads that must be current
    def read_index(self, done: ReadDone) -> None:
        """Call back when a majority has answered something sent after now, and the leader's own entry is committed.

        Source: Raft dissertation §6.4.
        """
        if len(self._reads) >= limits.WAITING_READS_MAX:
            done(
                FluxError(
                    Reason.OVERLOADED,
                    "too many reads wait for their leader's confirmation",
                    retry_after_ms=limits.OVERLOADED_RETRY_MS,
                )
            )
            return
        self._reads.append(({peer: p.sequence for peer, p in self.progress.items()}, done))
        for progress in self.progress.values():
            progress.probe = True
        self._finish_reads()

    def admit(self, newcomer: NodeId, admitted: Callable[[RaftIndex], None]) -> None:
        """Call back with an index when a replica whose disk was lost may take part once it has everything up to there;
        never, when this leader cannot say so. A later call for the same replica takes the place of an earlier one.

        All other voters that take part must have answered something that was sent after now, and they are a majority
        without it. What the lost disk acknowledged in this leadership is committed by then, and what it still may have
        on the way counts no more. That all others must answer is more than a majority, where there are five: one that
        did not answer might be campaigning with the vote of the lost disk.

        Two that this leader admitted before, and that ask once more, would wait for each other's answers. It cannot
        tell their requests from late ones of replicas that take part; another leader knows of no earlier admission.
        """
        others = {peer: p.sequence for peer, p in self.progress.items() if peer != newcomer and not p.is_copying}
        if 2 * (len(others) + 1) <= len(self.progress) + 1:
            return
        if self._transfer is None and any(peer in self._admissions for peer in others):
            self.transfer(None)
        self._admissions[newcomer] = (others, admitted)
        for progress in self.progress.values():
            progress.probe = True

    def may_leave(self, leaver: NodeId) -> bool:
        """Whether the group can do without a follower that found its log damaged: the others that are in sync are a
        majority, and nothing waits for a commit that counts it. Two that ask are let go one after the other.
        """
        now, progress = self._guard.now(), self.progress[leaver]
        connected = self._guard.transport.is_connected
        staying = [
            peer
            for peer, p in self.progress.items()
            if peer != leaver and self.in_sync_until(peer) >= now and connected(peer) and now >= p.leaving_until
        ]
        if 2 * (len(staying) + 1) <= len(self.progress) + 1 or progress.match > self._guard.journal.commit_index:
            return False
        progress.leaving_until = now + 2 * self._guard.heartbeats.timeouts.in_sync(leaver)
        progress.roused()
        return True

    def _finish_admissions(self) -> None:
        commit_index = self._guard.journal.commit_index
        for newcomer, (asked_at, admitted) in tuple(self._admissions.items()):
            progress = self.progress[newcomer]
            confirmed = all(self.progress[peer].acked_sequence > sequence for peer, sequence in asked_at.items())
            if not confirmed or progress.match > commit_index:
                continue
            del self._admissions[newcomer]
            progress.admitted_at, progress.is_copying, progress.leaving_until = progress.sequence, False, NEVER
            self._rewind(newcomer, progress, commit_index + 1)
            admitted(RaftIndex(commit_index))

    def _finish_reads(self) -> None:
        if self._guard.journal.commit_index < self.term_start:
            return
        self._finish_admissions()
        while self._reads:
            asked_at, done = self._reads[0]
            newer = sum(
                1 for peer, p in self.progress.items() if peer == DISK_PEER or p.acked_sequence > asked_at[peer]
            )
            if newer + 1 <= (len(self.progress) + 1) / 2:
                return
            del self._reads[0]
            done(None)

    def on_commit(self) -> None:
        """The commit index moved."""
        self._finish_reads()

    # ------------------------------------------------------------------ handing over
    @property
    def handing_over(self) -> bool:
        """A transfer is under way: no new proposals."""
        return self._transfer is not None

    def transfer(self, to: NodeId | None, *, urgent: bool = False) -> None:
        """Hand leadership to a follower (None: any) as soon as it has everything on its disk; given up after
        an election timeout.
        """
        self._transfer = _Transfer(to, self._guard.now() + self._guard.election_timeout, urgent)

    def caught_up_peer(self, wanted: NodeId | None) -> NodeId | None:
        """A follower in contact whose disk has the whole log."""
        now, last, timeout = self._guard.now(), self._guard.journal.log.last_index, self._guard.election_timeout
        fit = [
            (p.heard_at, peer)
            for peer, p in self.progress.items()
            if peer != DISK_PEER
            and wanted in (None, peer)
            and p.match == last
            and now - p.heard_at < timeout
            and self._guard.transport.is_connected(peer)
        ]
        return max(fit)[1] if fit else None

    def advance_transfer(self) -> None:
        """At the end of a step: hand over when it is time. No proposal may follow in that step."""
        transfer, journal = self._transfer, self._guard.journal
        if transfer is None:
            return
        if self._guard.now() >= transfer.deadline:
            self._transfer = None
            return
        if transfer.sent or (journal.commit_index < journal.log.last_index and not transfer.urgent):
            return
        target = self.caught_up_peer(transfer.to)
        if target is not None:
            message = self._guard.outbox.message()
            message.timeout_now.SetInParent()
            transfer.sent = self._guard.outbox.send(target, message)
