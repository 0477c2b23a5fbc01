"""One replica of one partition's Raft group: proposals and their one answer each, roles, reads that must be current.

One Raft round is in flight: while an entry is being committed, what arrives waits in a bounded queue and becomes the
next entry. Answers (C8 in docs/raft.md): no callback is given to the library; a proposal is appended in the very call
that makes it, remembered with its term, COMMITTED when the commit index reaches it in the same leadership, UNKNOWN when
leadership ends first; what still waited in the queue is REJECTED.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from fluxd.core import limits
from fluxd.core.entry import EntryKind, Stamp, build_frame
from fluxd.core.errors import FluxError, InvariantViolation, Reason
from fluxd.core.log_start import LogStart
from fluxd.core.producers import DuplicateCommitted, DuplicatePending, ProducerTable, items_of_frame
from fluxd.core.runtime import NEVER
from fluxd.core.types import METADATA_GROUP, NodeId, Offset, RaftIndex, Term
from fluxd.raft import library
from fluxd.raft.context import GroupContext
from fluxd.raft.copying import Copying
from fluxd.raft.guard import Guard
from fluxd.raft.journal import RaftJournal
from fluxd.raft.proposal import Append, AppendResult, Committed, Waiting
from fluxd.raft.serving import CopyServing
from fluxd.raft.spec import GroupSpec
from fluxd.raft.standing import Standing
from fluxd.raft.trimming import Trimming
from fluxd.storage.log import PartitionLog
from fluxlog.v1 import peer_pb2


class Group(Standing):
    """A replica that takes part. For one that does not, see `OfflineGroup`."""

    # A node has thousands: with more than 30 attributes a dictionary for each would take 1.6 KB.
    __slots__ = (
        "_context", "_encoded_status", "_encoded_until", "_failed", "_in_flight", "_known_leader", "_late", "_node_id",
        "_proposing", "_queue", "_queue_bytes", "_queue_records", "_raft", "_transport", "_why", "commit_index",
        "copying", "generation", "group_id", "guard", "high_watermark", "journal", "log", "on_commit", "on_role",
        "openings", "producers", "spec", "trimming", "voters",
    )  # fmt: skip

    def __init__(
        self, spec: GroupSpec, log: PartitionLog, producers: ProducerTable, log_start: LogStart, context: GroupContext
    ) -> None:
        self.spec, self._context = spec, context
        self._node_id, self._transport = context.node_id, context.transport
        self.group_id, self.generation, self.voters = spec.group_id, spec.generation, spec.voters
        self.copying: Copying | None = None
        """What is done when the leader no longer has what this replica needs next (`catching_up.py`)."""
        self._why = ""
        self.on_commit: list[Callable[[], None]] = []
        self.on_role: list[Callable[[], None]] = []
        self.openings = 0
        """How often its log was opened: each time what is known to be committed is what the disk says."""
        self.why, self._failed = "", True
        self._take_over(log, producers, log_start)

    def _take_over(self, log: PartitionLog, producers: ProducerTable, log_start: LogStart) -> None:
        """Begin with what the disk has."""
        spec, context = self.spec, self._context
        self.openings += 1
        self.log, self.producers = log, producers
        self.trimming = Trimming(log, log_start)
        self._queue: deque[Waiting] = deque()
        self._queue_bytes = 0
        self._queue_records = 0
        self._in_flight: list[Waiting] = []
        self._late: list[tuple[RaftIndex, Append, DuplicatePending]] = []
        """Duplicates of entries that an earlier leader appended: (index that decides, who waits, what was found)."""
        self._proposing: list[Waiting] | None = None
        self.journal = RaftJournal(
            log, context.votes, spec.group_id, spec.generation,
            wall_ms=context.reactor.wall_ms, on_append=self._appended, on_truncate=self._truncated,
        )  # fmt: skip
        self.guard = Guard(
            spec.group_id, spec.generation, context.node_id, spec.voters, journal=self.journal, votes=context.votes,
            reactor=context.reactor, transport=context.transport, heartbeats=context.heartbeats,
            campaigns=context.campaigns, log_event=self._log_event, on_state=self._state_changed,
        )  # fmt: skip
        context.enter()
        self._raft = library.build(
            context.node_id, self.guard.library_peers, self.journal, self.guard, self.guard.state_changed
        )
        self.guard.attach(self._raft)
        self.guard.rouse = lambda: context.wake(self)
        serving = CopyServing(
            self.guard, log, context.reactor, wake=lambda: context.wake(self),
            read_failed=lambda error: self.read_failed(error, log),
        )  # fmt: skip
        self.guard.on_copy_request = serving.on_request
        self.commit_index = self.guard.commit_index
        self.high_watermark = log.next_offset_at(self.commit_index)
        self.producers.commit(self.commit_index)
        self.trimming.commit(self.commit_index, self.high_watermark)
        self._known_leader: tuple[int, NodeId | None] = (0, None)
        self.guard.elections.arm_first()
        self.why, self._failed = "", False
        self._encoded_status, self._encoded_until = b"", NEVER

    # ------------------------------------------------------------------ proposals
    def submit(self, append: Append) -> None:
        """Append a batch; `append.done` is called exactly once.

        REJECTED at once: not the leader, no quorum, queue full, wrong expected offset, sequence out of order. After
        that: COMMITTED, or REJECTED if leadership ends while it still waits, or UNKNOWN if leadership ends once it is
        in the log.
        """
        refusal = self._refusal(len(append.batch))
        if refusal is not None:
            append.done(refusal)
            return
        try:
            verdict = (
                self.producers.check(append.producer_id, append.base_sequence, append.record_count)
                if append.producer_id
                else None
            )
            if isinstance(verdict, DuplicateCommitted):
                append.done(
                    self._committed(
                        verdict.base_offset, append, verdict.leader_epoch, verdict.raft_index, duplicate=True
                    )
                )
                return
            if isinstance(verdict, DuplicatePending):
                self._await_duplicate(verdict, append)
                return
            self._check_expected_offset(append)
        except FluxError as error:
            append.done(error)
            return
        self._enqueue(append)

    def _refusal(self, size: int) -> FluxError | None:
        if not self.guard.is_leader or self._failed:
            return self.not_leader()
        if self.guard.leading.handing_over:
            return FluxError(Reason.NOT_LEADER, f"the leadership of {self.group_id} is being handed over")
        missing = self.quorum_missing()
        if missing is not None:
            return self.no_quorum(missing)
        if size and self.group_id != METADATA_GROUP and self._context.disk_full():
            return FluxError(
                Reason.DISK_FULL,
                f"the disk of node {self._node_id}, which leads {self.group_id}, has less than "
                f"{limits.DISK_RESERVE_BYTES // limits.MIB} MiB left",
                retry_after_ms=limits.DISK_FULL_RETRY_MS,
            )
        if self._queue_bytes + size > limits.PARTITION_QUEUE_BYTES_MAX:
            return FluxError(
                Reason.OVERLOADED,
                f"{self._queue_bytes} bytes wait to be appended to {self.group_id}, "
                f"the bound is {limits.PARTITION_QUEUE_BYTES_MAX}",
                retry_after_ms=limits.OVERLOADED_RETRY_MS,
            )
        return None

    def _check_expected_offset(self, append: Append) -> None:
        end = self.log_end_offset + self._queue_records
        if append.expected_offset is not None and append.expected_offset != end:
            raise FluxError(
                Reason.WRONG_EXPECTED_OFFSET,
                f"expected_offset {append.expected_offset}, but {self.group_id} ends at {end}",
                metadata={"log_end_offset": str(end)},
            )

    def _enqueue(self, append: Append) -> None:
        waiting = Waiting(append, Offset(self.log_end_offset + self._queue_records), RaftIndex(0), [])
        self._queue.append(waiting)
        self._queue_bytes += len(append.batch)
        self._queue_records += append.record_count
        if append.producer_id:
            self.producers.enqueue(append.producer_id, append.base_sequence, append.record_count, waiting)
        if not self._in_flight:
            self._context.wake(self)

    def _await_duplicate(self, verdict: DuplicatePending, append: Append) -> None:
        if isinstance(verdict.ticket, Waiting):
            verdict.ticket.duplicates.append(append)
        else:  # appended by an earlier leader, seen here as a follower: its index tells when it is committed
            assert verdict.raft_index is not None
            self._late.append((verdict.raft_index, append, verdict))

    def _propose(self) -> None:
        batch = self._in_flight = list[Waiting]()  # now, so that a failure below answers them
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].append.batch) <= limits.ENTRY_BYTES_TARGET):
            waiting = self._queue.popleft()
            size += len(waiting.append.batch)
            batch.append(waiting)
        self._queue_bytes -= size
        log, index = self.log, RaftIndex(self.log.last_index + 1)
        offset = log.log_end_offset
        for waiting in batch:
            if waiting.base_offset != offset:
                raise InvariantViolation(
                    f"{self.group_id}: a batch promised offset {waiting.base_offset} gets {offset}"
                )
            waiting.index = index
            offset = Offset(offset + waiting.append.record_count)
        self._queue_records -= offset - log.log_end_offset
        frame = build_frame(
            kind=EntryKind.RECORDS, base_offset=log.log_end_offset, raft_index=index, leader_epoch=self.guard.term,
            append_time_ms=max(log.last.append_time_ms, self._context.reactor.wall_ms()),
            record_count=offset - log.log_end_offset, previous_checksum=log.last.checksum,
            batches=[waiting.append.batch for waiting in batch],
        )  # fmt: skip
        self._proposing = batch
        self._apply(frame, index)
        self._proposing = None

    def trim(self, log_start_offset: Offset, done: Callable[[FluxError | None], None]) -> None:
        """Move the log start; `done` is called exactly once, with None when that is committed.

        REJECTED: not the leader, no quorum, an offset behind the high watermark. A replica that lacks what goes is not
        waited for: it copies what is left.
        """
        error = self._refusal(0)
        if error is None and log_start_offset > self.high_watermark:
            error = FluxError(
                Reason.OFFSET_OUT_OF_RANGE,
                f"offset {log_start_offset} is behind the high watermark {self.high_watermark} of {self.group_id}",
                metadata={"high_watermark": str(self.high_watermark)},
            )
        if error is not None:
            done(error)
            return
        self.trimming.ask(log_start_offset, lambda error: self._call(done, error))
        self._context.wake(self)

    def _propose_trim(self, log_start_offset: Offset) -> None:
        log = self.log
        frame = build_frame(
            kind=EntryKind.TRIM, base_offset=log.log_end_offset, raft_index=log.last_index + 1,
            leader_epoch=self.guard.term, append_time_ms=max(log.last.append_time_ms, self._context.reactor.wall_ms()),
            record_count=0, previous_checksum=log.last.checksum, log_start_offset=log_start_offset,
        )  # fmt: skip
        self._apply(frame, RaftIndex(log.last_index + 1))
        self.trimming.proposed(log_start_offset)

    def _apply(self, frame: bytes, index: RaftIndex) -> None:
        self._raft._applyCommand(frame, None)
        self._raft._checkCommandsToApply()
        if self.log.last_index != index:
            raise InvariantViolation(f"{self.group_id}: a proposal was not appended in the call that made it")

    def _truncated(self, first_removed: RaftIndex) -> None:
        self.producers.truncate(first_removed)
        self.trimming.truncate(first_removed)

    def _appended(self, frame: bytes, stamp: Stamp) -> None:
        if stamp.kind is not EntryKind.RECORDS:
            self.trimming.appended(frame, stamp)
            return
        if self._proposing is None:
            items = items_of_frame(frame, stamp)
        else:
            items = [
                (
                    w.append.producer_id,
                    w.append.base_sequence,
                    w.append.record_count,
                    w.base_offset,
                    stamp.leader_epoch,
                    w,
                )
                for w in self._proposing
                if w.append.producer_id
            ]
        self.producers.append(stamp.raft_index, items, stamp.append_time_ms)

    # ------------------------------------------------------------------ answers
    def _committed(
        self, base_offset: Offset, append: Append, epoch: Term, index: RaftIndex, *, duplicate: bool
    ) -> AppendResult:
        return Committed(
            base_offset, append.record_count, epoch, self.guard.leading.copies_on_disk(index), duplicate=duplicate
        )

    def _settle(self) -> None:
        """Answer what the commit index has reached."""
        commit = self.guard.commit_index
        if commit == self.commit_index:
            return
        self.commit_index = commit
        self.high_watermark = self.log.next_offset_at(commit)
        self.producers.commit(commit)
        for trimmed in self.trimming.commit(commit, self.high_watermark):
            trimmed(None)
        if self._in_flight and self._in_flight[0].index <= commit:
            epoch = self.log.term_at(self._in_flight[0].index)
            done, self._in_flight = self._in_flight, []
            for waiting in done:
                self._answer(waiting, epoch)
        reached = [late for late in self._late if late[0] <= commit]
        self._late = [late for late in self._late if late[0] > commit]
        for index, append, verdict in reached:
            assert verdict.base_offset is not None and verdict.leader_epoch is not None
            result = self._committed(verdict.base_offset, append, verdict.leader_epoch, index, duplicate=True)
            self._call(append.done, result)
        if self.guard.is_leader:
            self.guard.leading.on_commit()
        for listener in tuple(self.on_commit):
            self._call(listener)

    def _answer(self, waiting: Waiting, epoch: Term) -> None:
        offset, index = waiting.base_offset, waiting.index
        self._call(waiting.append.done, self._committed(offset, waiting.append, epoch, index, duplicate=False))
        for append in waiting.duplicates:
            self._call(append.done, self._committed(offset, append, epoch, index, duplicate=True))

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        """Tell a caller something. Its bug must neither stop the replica nor keep others from their answers."""
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - not ours
            self._log_event("callback_failed", why=f"{type(error).__name__}: {error}")

    def _leadership_ended(self, why: str) -> None:
        in_flight, self._in_flight = self._in_flight, []
        queue, self._queue = self._queue, deque()
        late, self._late = self._late, []
        self._queue_bytes = self._queue_records = 0
        self.producers.drop_queue()
        for trimmed, ended in self.trimming.leadership_ended(why):
            trimmed(ended)
        for waiting in in_flight:
            for append in (waiting.append, *waiting.duplicates):
                error = FluxError(Reason.OUTCOME_UNKNOWN, f"{why} while the entry was being replicated")
                self._call(append.done, error)
        for _, append, _ in late:
            error = FluxError(Reason.OUTCOME_UNKNOWN, f"{why} while the first copy was being replicated")
            self._call(append.done, error)
        for waiting in queue:
            for append in (waiting.append, *waiting.duplicates):
                self._call(append.done, FluxError(Reason.NOT_LEADER, f"{why} before the batch was appended"))

    # ------------------------------------------------------------------ roles
    def _state_changed(self, old: int, new: int) -> None:
        if old == library.LEADER:
            self._leadership_ended(f"leadership of {self.group_id} was lost")

    def _notice_leader(self) -> None:
        known = (self.guard.term, self.leader_id)
        if known == self._known_leader:
            return
        changed = known[1] is not None and known != self._known_leader
        self._known_leader = known
        if changed:
            self._log_event("partition_leader_known", leader=known[1], leader_epoch=known[0])
        for listener in tuple(self.on_role):
            self._call(listener)

    def read_index(self, done: Callable[[FluxError | None], None]) -> None:
        """Call back when this replica is confirmed to lead, its own entry committed: what it then knows is current."""
        if not self.guard.is_leader or self._failed:
            done(self.not_leader())
            return
        self.guard.leading.read_index(lambda error: self._call(done, error))
        self._context.wake(self)

    def transfer(self, to: NodeId | None) -> FluxError | None:
        """Begin to hand leadership to a replica (None: to any that is caught up). Returns why not, or None."""
        if not self.guard.is_leader or self._failed:
            return self.not_leader()
        if to == self._context.node_id:
            return None
        if to is not None and to not in self.guard.peers:
            return FluxError(Reason.UNKNOWN_NODE, f"node {to} has no replica of {self.group_id}")
        if not self.guard.peers:
            return FluxError(Reason.NO_QUORUM, f"{self.group_id} has one replica")
        if to is not None and not self._context.transport.is_connected(to):
            return FluxError(Reason.REPLICA_OFFLINE, f"the replica of {self.group_id} on node {to} cannot be reached")
        self.guard.leading.transfer(to)
        self._context.wake(self)
        return None

    # ------------------------------------------------------------------ the host speaks
    def _enter(self) -> None:
        """Whatever is done with this replica begins here: nothing that was confirmed holds any more."""
        self.guard.stir()
        self._context.enter()

    def receive(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """One message; `step` follows."""
        self._enter()
        self.guard.receive(peer, message)

    def step(self) -> None:
        """Timers, the library's tick, the next proposal, answers."""
        self._encoded_until = NEVER
        self._enter()
        self.guard.tick()
        if self.guard.is_leader or self.guard.commit_index != self.commit_index:
            self._raft.doTick()  # a follower's does nothing but take for applied what is committed
        self._settle()
        start = self.trimming.wanted
        if start is not None and self.guard.is_leader and not self.guard.leading.handing_over:
            self._propose_trim(start)
        if self._queue and not self._in_flight and self.guard.is_leader:
            self._propose()
            self._enter()
            self._raft.doTick()
            self._settle()
        self.guard.leading.advance_transfer()
        self.guard.leading.tell_commit()
        self.guard.leading.settle()
        self._notice_leader()

    def on_trimmed(self) -> None:
        """The log's head is gone; `step` follows."""
        self._enter()
        self.guard.leading.log_trimmed()

    def configure(self, *, segment_bytes: int, segment_ms: int) -> None:
        """Other bounds of a segment, from the next one on."""
        if (self.spec.segment_bytes, self.spec.segment_ms) == (segment_bytes, segment_ms):
            return
        self.spec = replace(self.spec, segment_bytes=segment_bytes, segment_ms=segment_ms)
        self.log.configure(segment_bytes=segment_bytes, segment_ms=segment_ms)

    def on_log_synced(self) -> None:
        """More of the log is durable; `step` follows."""
        self._enter()
        self.guard.on_log_synced()

    def on_votes_synced(self) -> None:
        """More of the votes is durable; `step` follows."""
        self._enter()
        self.guard.on_votes_synced()

    def peer_up(self, peer: NodeId) -> None:
        """A link stands; `step` follows."""
        self._enter()
        self.guard.peer_up(peer)

    def peer_down(self, peer: NodeId, *, gone: bool) -> None:
        """A link broke; `deadline` may be another one."""
        self._enter()
        self.guard.peer_down(peer, gone=gone)
        self._encoded_until = NEVER

    def read_failed(self, error: BaseException, log: object = None) -> None:
        """Committed entries could not be read: if they are damaged, this replica is to be copied anew.

        Args:
            log: what was read, where that took longer than this step: it may have been cut and opened again meanwhile.
        """
        if not self._failed and (log is None or log is self.log):
            self._context.read_failed(self, error)

    def read_again(self, segment: RaftIndex) -> None:
        """A segment (its first index) was read from end to end, and is sound."""
        self._context.read_again(self, segment)

    def disk_hangs(self) -> None:
        """The log's sync has not returned for an election timeout: a leader hands over to a peer whose disk has all."""
        if self.guard.is_leader and not self.guard.leading.handing_over and self.guard.leading.caught_up_peer(None):
            self._log_event("leader_disk_hung")
            self.guard.leading.transfer(None, urgent=True)
            self._context.wake(self)

    def fail(self, why: str) -> None:
        """Take this replica out (fail-stop): it answers what waits and then nothing any more."""
        if not self._failed:
            self._end(why, f"the replica of {self.group_id} stopped itself")
            self._log_event("replica_failed", why=why)  # last: whatever becomes of a line, the replica is out

    def reopen(self, log: PartitionLog, producers: ProducerTable, log_start: LogStart) -> None:
        """Take part again, after `fail`, with the log as it was opened again; `step` follows."""
        assert self._failed
        self._take_over(log, producers, log_start)
        self._log_event("replica_reopened", last_index=log.last_index)
        for listener in (*self.on_role, *self.on_commit):
            self._call(listener)

    def close(self) -> None:
        """The node stops, or the partition is deleted."""
        if not self._failed:
            self._end("closed", f"the replica of {self.group_id} was closed")
        self.log.close()

    def _end(self, why: str, answer: str) -> None:
        self._enter()
        self._failed, self._why = True, why
        self._leadership_ended(answer)
        self.guard.leading.end()
        self.guard.elections.end()
        for listener in tuple(self.on_role):
            self._call(listener)

    def _log_event(self, event: str, **fields: object) -> None:
        self._context.log_event(
            event, group=str(self.group_id), node=self._context.node_id, term=self.guard.term, **fields
        )
