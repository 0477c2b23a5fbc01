"""One partition of __consumer_offsets on this node: its groups, kept up to date from the log, and the way to change
them.

Every replica applies what is committed as it comes, so that the next coordinator has little to catch up with. Only the
leader proposes. One append is on its way at a time; what is proposed meanwhile goes into the next one. A proposal is
answered when its command has been applied, and so never before it is committed.

A command that is not understood, or bytes that cannot be read, take this replica out: state with a hole would differ
from everybody else's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fluxd.broker.answer import answer_of
from fluxd.broker.metadata import ReadableLog
from fluxd.core import limits
from fluxd.core.batch import batch_from_records, records_from_frames
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxd.core.group_snapshot import restore
from fluxd.core.groups import (
    GroupResult,
    GroupsState,
    UnknownGroupCommand,
    apply_group_command,
    decode_group_command,
)
from fluxd.core.runtime import Reactor
from fluxd.core.state_chunks import StateSearch
from fluxd.core.types import GroupId as PartitionId
from fluxd.core.types import Offset, RaftIndex, Term
from fluxd.raft.proposal import Append, AppendResult
from fluxd.raft.spec import Role
from fluxlog.v1 import group_log_pb2, record_pb2, state_pb2

_READ_AGAIN = 0.5
"""Seconds after an error of the disk."""
_STOPPED = "this node has stopped to serve the group's partition"


class OffsetsReplica(Protocol):
    """This node's replica of a partition of __consumer_offsets."""

    on_commit: list[Callable[[], None]]
    on_role: list[Callable[[], None]]

    @property
    def group_id(self) -> PartitionId: ...
    @property
    def role(self) -> Role: ...
    @property
    def term(self) -> Term: ...
    @property
    def log(self) -> ReadableLog: ...
    @property
    def commit_index(self) -> RaftIndex: ...
    @property
    def log_start_offset(self) -> Offset: ...
    @property
    def high_watermark(self) -> Offset: ...
    def submit(self, append: Append) -> None: ...
    def read_index(self, done: Callable[[FluxError | None], None]) -> None: ...
    def trim(self, log_start_offset: Offset, done: Callable[[FluxError | None], None]) -> None: ...
    def fail(self, why: str) -> None: ...
    def read_failed(self, error: BaseException, log: object = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Applied:
    """One command that was applied."""

    command: group_log_pb2.GroupCommand
    result: GroupResult
    changed: tuple[str, ...]
    """Names of groups."""


Answer = Callable[[GroupResult | FluxError], None]
Confirmed = Callable[[FluxError | None], None]


@dataclass(frozen=True, slots=True)
class _Proposal:
    command_id: bytes
    value: bytes
    done: Answer


class CoordinatorLog:
    """See the module.

    Args:
        on_applied: called on the loop after each command, before whoever proposed it is answered.
    """

    def __init__(self, reactor: Reactor, replica: OffsetsReplica, on_applied: Callable[[Applied], None]) -> None:
        self.state = GroupsState()
        self.replica = replica
        self._reactor = reactor
        self._on_applied = on_applied
        self._queue: deque[_Proposal] = deque()
        self._appending = False
        self._awaiting: dict[bytes, _Proposal] = {}
        """Appended, or being appended, and not applied."""
        self._waiting: list[tuple[Offset, Confirmed]] = []
        self._reading = False
        self._search: StateSearch | None = None
        """The log's first records are gone: the state is found in it first."""
        self._stopped = False
        replica.on_commit.append(self._wake)
        self._wake()

    def stop(self) -> None:
        """Apply and propose nothing more; whoever waits is answered."""
        if self._stopped:
            return
        self._stopped = True
        if self._wake in self.replica.on_commit:
            self.replica.on_commit.remove(self._wake)
        proposals = [*self._awaiting.values(), *self._queue]
        self._awaiting.clear()
        self._queue.clear()
        waiting, self._waiting = self._waiting, []
        for proposal in proposals:
            proposal.done(FluxError(Reason.OUTCOME_UNKNOWN, _STOPPED))
        for _, done in waiting:
            done(FluxError(Reason.NOT_LEADER, _STOPPED))

    # ---- changes

    def propose(self, command: group_log_pb2.GroupCommand, done: Answer) -> None:
        """Append a command; `done` is called once, on the loop, when it is applied, or is REJECTED or UNKNOWN."""
        value = command.SerializeToString()
        if len(value) > limits.GROUP_COMMAND_BYTES_MAX:
            error = FluxError(
                Reason.INVALID_ARGUMENT,
                f"the change takes {len(value)} bytes, at most {limits.GROUP_COMMAND_BYTES_MAX} are allowed",
            )
            done(error)
        elif self._stopped or len(self._queue) >= limits.GROUP_COMMANDS_QUEUED_MAX:
            why = f"{len(self._queue)} changes of groups wait"
            done(FluxError(Reason.OVERLOADED, why, retry_after_ms=limits.OVERLOADED_RETRY_MS))
        else:
            self._queue.append(_Proposal(command.command_id, value, done))
            self._reactor.call_soon(self._append)

    async def ask(self, command: group_log_pb2.GroupCommand) -> GroupResult:
        """As `propose`.

        Raises:
            FluxError: REJECTED or UNKNOWN.
        """
        answer: GroupResult | FluxError = await answer_of(lambda done: self.propose(command, done))
        if isinstance(answer, FluxError):
            raise answer
        return answer

    def _append(self) -> None:
        if self._appending or self._stopped or not self._queue:
            return
        proposals, size = list[_Proposal](), 0
        while self._queue and size + len(self._queue[0].value) <= limits.GROUP_COMMAND_BYTES_MAX:
            proposals.append(self._queue.popleft())
            size += len(proposals[-1].value) + 16  # lengths and the like
        records = [record_pb2.Record(value=proposal.value) for proposal in proposals]
        batch = batch_from_records(records, b"", 0, self._reactor.wall_ms())
        self._awaiting.update((proposal.command_id, proposal) for proposal in proposals)
        self._appending = True
        self.replica.submit(Append(batch, len(records), partial(self._appended, proposals)))

    def _appended(self, proposals: list[_Proposal], result: AppendResult) -> None:
        self._appending = False
        if isinstance(result, FluxError):
            for proposal in proposals:
                if self._awaiting.pop(proposal.command_id, None) is not None:
                    proposal.done(result)
        self._reactor.call_soon(self._append)

    # ---- being current

    def confirm(self, done: Confirmed) -> None:
        """Call back when the state holds all that was committed before the call, as a leader with a majority."""

        def confirmed(error: FluxError | None) -> None:
            if error is not None:
                done(error)
            else:
                self._when_applied(self.replica.high_watermark, done)

        self.replica.read_index(confirmed)

    async def current(self) -> GroupsState:
        """The state, with all that was committed before the call.

        Raises:
            FluxError: this node does not lead, lacks a majority, or stops to serve the partition.
        """
        error = await answer_of(self.confirm)
        if error is not None:
            raise error
        return self.state

    def _when_applied(self, offset: Offset, done: Confirmed) -> None:
        if self.state.applied_offset >= offset:
            done(None)
        elif self._stopped:
            done(FluxError(Reason.NOT_LEADER, _STOPPED))
        else:
            self._waiting.append((offset, done))

    # ---- reading, one bounded piece per turn of the loop

    def _wake(self) -> None:
        if not self._reading and not self._stopped:
            self._reading = True
            self._reactor.call_soon(self._step)

    def _step(self) -> None:
        replica = self.replica
        if self._position < replica.log_start_offset:
            self._search = StateSearch(replica.log_start_offset)
        offset = self._position
        if self._stopped or offset >= replica.high_watermark:
            self._reading = False
            return
        try:
            plan = replica.log.plan_read(offset, max_bytes=limits.GROUPS_READ_BYTES, end_index=replica.commit_index)
        except (OSError, ValueError, CorruptDataError) as error:
            self._read_failed(error)
            return
        if callable(plan):
            self._read_off_the_loop(plan)
        else:
            self._take(plan)

    def _read_off_the_loop(self, plan: Callable[[], bytes]) -> None:
        out: list[bytes] = []
        log = self.replica.log

        def done(error: BaseException | None) -> None:
            if isinstance(error, Exception) and self._position < self.replica.log_start_offset:
                self._reactor.call_soon(self._step)  # it was trimmed while it was being read
            elif isinstance(error, Exception):
                self._read_failed(error, log)
            elif error is not None:
                raise error
            else:
                self._take(out[0])

        self._reactor.run_blocking([lambda: out.append(plan())], done)

    def _read_failed(self, error: Exception, log: ReadableLog | None = None) -> None:
        """An error of the disk may pass, and a damaged replica is copied; meanwhile nothing more is applied."""
        if isinstance(error, (OSError, CorruptDataError)):
            self.replica.read_failed(error, log)
            self._reactor.call_at(self._reactor.now() + _READ_AGAIN, self._step)
        else:
            self._fail(error)

    @property
    def _position(self) -> Offset:
        """Of the record to be read next."""
        return self.state.applied_offset if self._search is None else self._search.position

    def _take(self, frames: bytes) -> None:
        try:
            records = records_from_frames(frames, self._position)
            if not records and not self._stopped:
                raise CorruptDataError(f"no records at offset {self._position}, below the high watermark")
            for record in records:
                if self._search is None:
                    self._apply(record)
                elif (found := self._search.look(_chunk_of(record))) is not None:
                    self.state, self._search = restore(found), None  # what follows it was not applied yet: read again
                    break
        except (CorruptDataError, UnknownGroupCommand) as error:
            self._fail(error)
            return
        self._tell_waiting()
        self._reactor.call_soon(self._step)

    def _tell_waiting(self) -> None:
        ready = [done for offset, done in self._waiting if offset <= self.state.applied_offset]
        self._waiting = [each for each in self._waiting if each[0] > self.state.applied_offset]
        for done in ready:
            done(None)

    def _apply(self, record: record_pb2.Record) -> None:
        command = decode_group_command(record.value)
        self.state, result, changed = apply_group_command(self.state, command)
        self._on_applied(Applied(command, result, changed))
        proposal = self._awaiting.pop(command.command_id, None)
        if proposal is not None:
            proposal.done(result)

    def _fail(self, error: Exception) -> None:
        if not self._stopped:
            self.stop()
            self.replica.fail(f"the groups' log cannot be applied: {error}")


def _chunk_of(record: record_pb2.Record) -> state_pb2.StateChunk | None:
    command = decode_group_command(record.value)
    return command.state_chunk if command.HasField("state_chunk") else None
