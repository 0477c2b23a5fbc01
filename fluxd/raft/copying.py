"""Copying to a replica that takes no part, because its disk was lost or its log is damaged; and to one that takes part,
but whose leader no longer has what it needs next (`beside`).

One that takes no part: a durable mark precedes the first byte: while it is there the directory is no replica's,
whatever else is in it. What was there before is set aside as it is. Then the leader's snapshot and its committed
entries are asked for piece by piece, one request at a time and no faster than `CopyPace` allows; each piece
is synced before the next is asked for. A request that is not answered is repeated, at whoever leads by then. After a
restart the copy goes on where it was.

When everything is there that the leader had committed, it is asked for the admission (`Leading.admit`), and what was
committed until then is copied too. The vote in the term of the admission is spent and made durable; then the replica's
binding to this directory is committed by the cluster; then the mark goes, durably; only then is the replica opened like
any other.

Why that is safe: from then on the replica is one that was cut off since the admission. All that its predecessor had
acknowledged to that leader or to earlier ones was committed by then, and is here; all that it had promised to
candidates was for terms that ended before; and what it still may have on its way is not counted
(`Progress.admitted_at`, `VoteRequest.nonce`).

Power lost before the mark is durable: what was there before is here or set aside; the copy begins again. Before the
mark is removed durably: a piece of the log or all of it, perhaps the vote, perhaps the binding; the copy goes on, and
asks to be admitted again. After that: a replica that was admitted takes part.

One that is only behind keeps its log, its term and its vote, and goes on voting and answering; nothing has to be
admitted. What it needs is copied beside its log, as far as the leader had it committed when the copy began, and then
takes the log's place (`catching_up.py`, `storage/copies.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fluxd.core import limits
from fluxd.core.entry import Stamp, verify_frame
from fluxd.core.errors import CorruptDataError, InvariantViolation
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import NodeId, RaftIndex, Term
from fluxd.raft.copy_pace import CopyPace
from fluxd.raft.spec import GroupSpec
from fluxd.raft.transport import Transport
from fluxd.storage import copies
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.log import PartitionLog
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2

_AGAIN_AFTER = 5.0
"""After an error of this node's disk."""
_NOTHING_NEW = 0.1
"""Until the next request, when the leader had nothing to send."""


@dataclass(frozen=True, slots=True)
class CopyContext:
    """What the host hands in."""

    reactor: Reactor
    fs: FileSystem
    transport: Transport
    votes: VoteFile
    log_event: Callable[..., None]
    sync_votes: Callable[[], None]
    """Have the votes synced soon; `Copying.on_votes_synced` follows."""
    bind: Callable[[GroupSpec, Callable[[], None]], None] | None
    """Commit that the replica's vote is bound to this node's directory, then call back; None: it never has to be."""
    pace: CopyPace
    """Shared by all replicas of the node."""
    finished: Callable[[], None]
    """The replica can be opened; or, beside: the copy can take the log's place."""
    disk_full: Callable[[], bool] = lambda: False
    """Only the reserve of free space is left: nothing is copied meanwhile."""


class Copying:
    """The copy of one replica. `start` begins, `close` ends it.

    Args:
        beside: the replica takes part; its log stays where it is.

    Attributes:
        first: index and term of the copy's first entry, when it is finished.
    """

    def __init__(self, spec: GroupSpec, context: CopyContext, *, beside: bool = False) -> None:
        self._spec, self._context, self._beside = spec, context, beside
        self.first: tuple[RaftIndex, Term] | None = None
        self._log: PartitionLog | None = None
        self._busy = True
        """A blocking step is under way, or an error is being waited out."""
        self._working = False
        """A blocking step is under way."""
        self._closed = False
        self._when_idle: Callable[[], None] = lambda: None
        self._leader: tuple[int, NodeId] | None = None
        self._nonce = 0
        """Of the request that is not answered; 0: none."""
        self._asked: tuple[bytes, tuple[int, NodeId]] | None = None
        """The last request, but for what differs when it is repeated, and who was asked."""
        self._asked_at = 0.0
        self._patience = limits.COPY_RETRY
        self._timer: Timer | None = None
        self._not_before = 0.0
        self._first_index = 0
        """Of the leader's log; 0: not known yet."""
        self._commit_index = 0
        """The highest that a leader told."""
        self._goal = 0
        """Beside: how far the copy goes at least; 0: not known yet. It falls when another leader knows of less: that
        one may be waiting for this replica."""
        self._snapshot_index = 0
        self._snapshot = bytearray()
        self._admitted: tuple[Term, RaftIndex, NodeId] | None = None
        self._vote_op: int | None = None

    @property
    def progress(self) -> str:
        """For people: "copying, 40 %"."""
        if self._vote_op is not None:
            return "copied, being admitted"
        if self._leader is None:
            return "waiting for a leader to copy from"
        last = self._log.last_index if self._log else 0
        first = max(self._first_index, 1)
        done = 100 * (last - first + 1) // (self._commit_index - first + 1) if self._commit_index >= first else 0
        return f"copying, {min(max(done, 0), 100)} %"

    # ------------------------------------------------------------------ begin and end
    def start(self) -> None:
        """Prepare the directory, then ask; not before somebody leads: what is here may be the last copy."""
        self._busy = True
        if self._leader is None:
            return
        found: list[tuple[PartitionLog | None, RaftIndex]] = []

        def prepare() -> None:
            spec, fs, beside = self._spec, self._context.fs, self._beside
            log = copies.open_or_begin(
                fs, spec.group_id, spec.generation, segment_bytes=spec.segment_bytes, beside=beside
            )
            found.append((log, copies.index_wanted(fs, spec.group_id, beside=beside)))

        def prepared() -> None:
            self._log, self._snapshot_index = found[0]
            self._ask()

        self._blocking([prepare], prepared)

    def close(self, when_idle: Callable[[], None] | None = None) -> None:
        """Stop; what was copied stays for the next time.

        Args:
            when_idle: called when no step is under way any more, perhaps at once.
        """
        self._closed = True
        self._context.pace.ended(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._log is not None:
            self._log.close()
            self._log = None
        if when_idle is not None:
            self._when_idle = when_idle
            if not self._working:
                when_idle()

    def _blocking(self, steps: list[Callable[[], None]], then: Callable[[], None]) -> None:
        """Run steps of the disk; nothing else happens meanwhile. An error begins the copy again, a little later."""
        self._busy = self._working = True

        def unless_closed(step: Callable[[], None]) -> None:  # the files of a deleted partition may be gone by then
            if not self._closed:
                step()

        def done(error: BaseException | None) -> None:
            self._working = False
            if self._closed:
                self._when_idle()
                return
            if error is not None:
                self._begin_again(f"{type(error).__name__}: {error}")
                return
            self._busy = False
            then()

        self._context.reactor.run_blocking([partial(unless_closed, step) for step in steps], done)

    def _begin_again(self, why: str) -> None:
        self._context.log_event("copy_interrupted", group=str(self._spec.group_id), why=why)
        if self._log is not None:
            self._log.close()
        self._log, self._admitted, self._vote_op = None, None, None
        self._busy = True
        self._first_index = self._snapshot_index = self._goal = 0
        self._snapshot.clear()
        self._at(_AGAIN_AFTER, self.start)

    def _from_the_start(self, why: str) -> None:
        """What is here cannot be continued."""
        if self._log is not None:
            self._log.close()
        self._log, self._admitted = None, None
        self._first_index = self._snapshot_index = self._goal = 0
        self._snapshot.clear()
        self._context.log_event("copy_began_anew", group=str(self._spec.group_id), why=why)
        spec = self._spec
        self._blocking([lambda: copies.begin(self._context.fs, spec.group_id, beside=self._beside)], self._ask)

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        reactor = self._context.reactor
        self._timer = reactor.call_at(reactor.now() + seconds, lambda: None if self._closed else action())

    # ------------------------------------------------------------------ asking
    def _ask(self) -> None:
        """Ask for what is missing; again when there is no answer in time."""
        if self._busy or self._closed or self._vote_op is not None:
            return
        reactor = self._context.reactor
        wait = self._not_before - reactor.now()
        if wait > 0:
            self._at(wait, self._ask)
            return
        self._at(self._patience, self._ask)
        if self._leader is None or self._context.disk_full():
            return
        message = peer_pb2.GroupMessage(
            topic_id=self._spec.group_id.topic_id,
            partition=self._spec.group_id.partition,
            generation=self._spec.generation,
        )
        request = message.copy_request
        request.leader_term, request.behind = self._leader[0], self._beside
        if self._log is not None:
            request.next_index = self._log.last_index + 1
            whole = self._log.last_index >= self._commit_index > 0
            request.admit = whole and self._admitted is None and not self._beside
        elif self._first_index:
            request.next_index = self._first_index
        else:
            request.snapshot_index, request.snapshot_position = self._snapshot_index, len(self._snapshot)
        self._note(request, self._leader)
        request.nonce, request.max_bytes = self._nonce, self._context.pace.piece_bytes
        self._context.transport.send(self._leader[1], message)

    def _note(self, request: peer_pb2.CopyRequest, leader: tuple[int, NodeId]) -> None:
        """A request that is repeated keeps its nonce: what is on a slow way counts when it comes. Not one for the
        admission, whose answer holds for what was known when it was asked for.
        """
        asked = (request.SerializeToString(), leader)
        if self._nonce and asked == self._asked and not request.admit:
            return
        self._asked, self._asked_at = asked, self._context.reactor.now()
        self._nonce = int(self._context.reactor.random() * (1 << 53)) + 1

    def receive(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """Anything that a voter sends to this replica."""
        if peer not in self._spec.voters or message.generation != self._spec.generation or self._closed:
            return
        body = message.WhichOneof("body")
        if body == "append_entries":
            self.leader_heard(message.term, peer)
        elif body == "copy_reply" and message.copy_reply.nonce == self._nonce and not self._busy:
            self._nonce = 0
            took = self._context.reactor.now() - self._asked_at  # not repeated before another one would have come
            self._patience = min(max(limits.COPY_RETRY, 2 * took), limits.COPY_RETRY_MAX)
            self._take(peer, message)

    def leader_heard(self, term: int, peer: NodeId) -> None:
        """Whom to ask: the newest leader."""
        known = self._leader
        if known is None or term > known[0]:
            self._leader = (term, peer)
            if known is None:
                self.start()
            else:
                self._ask()

    # ------------------------------------------------------------------ what comes
    def _take(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        reply, size = message.copy_reply, message.ByteSize()
        self._commit_index = max(self._commit_index, reply.commit_index)
        missing = max(0, reply.log_bytes - (self._log.size_bytes if self._log else 0))
        self._not_before = self._context.pace.spend(self, size, missing)
        known = self._goal and self._log is not None
        self._goal = min(self._goal, reply.commit_index) if known else reply.commit_index
        if reply.admitted:
            self._admitted = (Term(message.term), RaftIndex(reply.admitted_index), peer)
            self._go_on()
        elif self._log is None and not self._first_index:
            self._take_snapshot(reply)
        elif reply.first_index > (self._log.last_index + 1 if self._log else self._first_index):
            self._context.pace.overtaken(self)
            self._from_the_start(f"the leader's log begins with entry {reply.first_index} now")
        elif reply.frames:
            self._take_frames(list(reply.frames))
        elif self._beside and self._log is not None and self._log.last_index < self._snapshot_index:
            self._from_the_start("the leader does not know as committed what the snapshot of another one is of")
        else:
            self._not_before = self._context.reactor.now() + _NOTHING_NEW
            self._go_on()

    def _take_snapshot(self, reply: peer_pb2.CopyReply) -> None:
        if reply.snapshot_index != self._snapshot_index:
            self._snapshot_index = reply.snapshot_index
            self._snapshot.clear()
        if len(self._snapshot) < reply.snapshot_bytes:
            self._snapshot += reply.snapshot
        if len(self._snapshot) >= reply.snapshot_bytes:
            self._first_index = reply.first_index
        self._ask()

    def _take_frames(self, frames: list[bytes]) -> None:
        try:
            stamps = [verify_frame(frame) for frame in frames]
        except CorruptDataError as error:
            self._context.log_event("copied_entries_refused", group=str(self._spec.group_id), why=str(error))
            return
        if self._log is not None:
            self._append(frames, stamps)
        elif stamps[0].raft_index == self._first_index:
            self._create(frames, stamps)

    def _create(self, frames: list[bytes], stamps: list[Stamp]) -> None:
        created: list[PartitionLog] = []
        snapshot = (RaftIndex(self._snapshot_index), bytes(self._snapshot)) if self._snapshot_index else None

        def create() -> None:
            created.append(
                copies.create_log(
                    self._context.fs, self._spec.group_id, self._spec.generation, frames[0], snapshot=snapshot,
                    segment_bytes=self._spec.segment_bytes, beside=self._beside,
                )
            )  # fmt: skip

        def go_on() -> None:
            self._log = created[0]
            self._append(frames[1:], stamps[1:])

        self._blocking([create], go_on)

    def _append(self, frames: list[bytes], stamps: list[Stamp]) -> None:
        log = self._log
        assert log is not None
        try:
            for frame, stamp in zip(frames, stamps, strict=True):
                log.append(frame, stamp)
        except InvariantViolation as error:  # another history than the leader's
            self._from_the_start(str(error))
            return
        except OSError as error:
            self._begin_again(str(error))
            return
        job = log.begin_sync()

        def synced() -> None:
            try:
                log.finish_sync(job, log.last_index)
            except OSError as error:
                self._begin_again(str(error))
                return
            self._go_on()

        self._blocking(job.steps, synced)

    # ------------------------------------------------------------------ the end
    def _go_on(self) -> None:
        log = self._log
        if self._beside and log is not None and log.synced_index >= max(self._goal, self._snapshot_index, 1):
            self.first = (log.first_index, log.term_at(log.first_index))
            self.close(self._context.finished)
        elif log is not None and self._admitted is not None and log.synced_index >= self._admitted[1]:
            self._spend_vote()
        else:
            self._ask()

    def _spend_vote(self) -> None:
        assert self._admitted is not None
        spec, votes = self._spec, self._context.votes
        term, _, leader = self._admitted
        known = votes.get(spec.group_id, spec.generation)
        if known is None or known.term < term or (known.term == term and known.voted_for is None):
            self._vote_op = votes.put(spec.group_id, spec.generation, term, leader)
        else:
            self._vote_op = votes.put(spec.group_id, spec.generation, known.term, known.voted_for)
        self._context.sync_votes()
        self.on_votes_synced()

    def on_votes_synced(self) -> None:
        """More of the node's votes is durable."""
        if self._vote_op is None or self._context.votes.synced_op < self._vote_op or self._busy or self._closed:
            return
        assert self._context.bind is not None
        self._busy = True
        self._context.bind(self._spec, self._bound)

    def _bound(self) -> None:
        """The cluster has agreed that this directory has the vote."""
        if self._closed or self._log is None:
            return
        self._context.pace.ended(self)
        self._log.close()
        self._log = None
        self._finish()

    def _finish(self) -> None:
        """The mark goes. Tried again until it has gone durably: nothing else is missing, and what is there would be set
        aside if the copy began again.
        """
        self._busy = self._working = True

        def done(error: BaseException | None) -> None:
            self._working = False
            if self._closed:
                self._when_idle()
            elif error is not None:
                self._context.log_event("copy_not_finished", group=str(self._spec.group_id), why=str(error))
                self._at(_AGAIN_AFTER, self._finish)
            else:
                self._context.finished()

        self._context.reactor.run_blocking([lambda: copies.finish(self._context.fs, self._spec.group_id)], done)
