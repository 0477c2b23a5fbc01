"""Follows the metadata log: applies committed commands in order and tells who listens.

The log is read from its start at each start of the node, from this node's own replica or, on a node that has none that
takes part, from records that are fetched from another node (`feed`). Where its first records were trimmed, the state
that stands for them is found in it first (`state_chunks`): so at a start, and when the log start overtakes a follower
that was away. Listeners are told when all
that is known to be committed is applied, not at each command: what was created and deleted long ago is not built up and
torn down at every start.

A command that is not understood, or bytes that are no command, end the node (`on_fatal`): an image with a hole would
differ from everybody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fluxd.core import limits
from fluxd.core.batch import records_from_frames
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxd.core.metadata import Image, UnknownCommand, apply, decode_command
from fluxd.core.metadata_snapshot import restore
from fluxd.core.runtime import Reactor
from fluxd.core.state_chunks import StateSearch
from fluxd.core.types import Offset, RaftIndex
from fluxlog.v1 import metadata_pb2, record_pb2

_READ_AGAIN = 0.5
"""Seconds after an error of the disk."""


class ReadableLog(Protocol):
    """The read side of a partition log."""

    def plan_read(self, offset: Offset, *, max_bytes: int, end_index: RaftIndex) -> bytes | Callable[[], bytes]:
        """Whole frames from the one that holds `offset`; a callable has to be run off the loop."""


class CommittedLog(Protocol):
    """This node's replica of the metadata group, as far as it is read here."""

    on_commit: list[Callable[[], None]]

    @property
    def log(self) -> ReadableLog: ...
    @property
    def commit_index(self) -> RaftIndex: ...
    @property
    def log_start_offset(self) -> Offset: ...
    @property
    def high_watermark(self) -> Offset: ...
    def read_failed(self, error: BaseException, log: object = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Change:
    """From one image to a later one."""

    old: Image
    new: Image
    deleted_topics: frozenset[bytes]
    """Topic ids that a command in between deleted; also those that are in neither image."""


class MetadataFollower:
    """See the module.

    Args:
        image: of the founding.
        on_fatal: the node must stop; called at most once.
    """

    def __init__(self, reactor: Reactor, image: Image, *, on_fatal: Callable[[Exception], None]) -> None:
        self.image = image
        self.applied_offset = Offset(0)
        """First offset of the metadata log that is not applied: exclusive."""
        self.bytes_behind_state = 0
        """Of commands applied since the last chunk of a state, or since the log's beginning."""
        self.listeners: list[Callable[[Change], None]] = []
        """Called on the loop, in order, with each change."""
        self._reactor = reactor
        self._on_fatal = on_fatal
        self._group: CommittedLog | None = None
        self._search: StateSearch | None = None
        """The log's first records are gone: the state is found in it first."""
        self._turn = 0
        """Of following a replica: what was being read in an earlier one does not count."""
        self._told = image
        self._deleted: set[bytes] = set()
        self._busy = False
        self._stopped = False
        self._waiting: list[tuple[Offset, asyncio.Future[None]]] = []

    def follow(self, group: CommittedLog) -> None:
        """Apply what this node's own replica knows to be committed, now and from now on."""
        self._group = group
        self._turn += 1
        self._busy = False
        group.on_commit.append(self._wake)
        self._wake()

    def leave_replica(self) -> None:
        """This node's own replica has stopped itself: from now on records are fed, until it is followed again."""
        group, self._group = self._group, None
        self._turn += 1
        if group is not None:
            group.on_commit.remove(self._wake)

    @property
    def position(self) -> Offset:
        """Of the record to be read next."""
        return self.applied_offset if self._search is None else self._search.position

    def begin_behind(self, log_start_offset: Offset) -> None:
        """The log's records before this offset are gone."""
        if self.position < log_start_offset:
            self._search = StateSearch(log_start_offset)

    def feed(self, records: Sequence[record_pb2.Record]) -> None:
        """Apply committed records that were fetched from another node, beginning at `position`.

        Only where no replica is followed.
        """
        if not self._stopped and self._group is None:
            self._apply(records)
            self._tell()

    async def wait_applied(self, offset: Offset) -> None:
        """Wait until everything below an offset is applied and the listeners know. The caller bounds the time.

        Raises:
            FluxError: STOPPING.
        """
        if self.applied_offset >= offset and self.image is self._told:
            return
        if self._stopped:
            raise FluxError(Reason.STOPPING, "this node is shutting down")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((offset, future))
        await future

    def stop(self) -> None:
        """Apply nothing more."""
        self._stopped = True
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(FluxError(Reason.STOPPING, "this node is shutting down"))

    # ---- reading, one bounded piece per turn of the loop

    def _wake(self) -> None:
        if not self._busy and not self._stopped:
            self._busy = True
            self._step_soon()

    def _step_soon(self) -> None:
        turn = self._turn
        self._reactor.call_soon(lambda: self._step() if turn == self._turn else None)

    def _step(self) -> None:
        group = self._group
        if self._stopped or group is None:
            self._busy = False
            return
        self.begin_behind(group.log_start_offset)
        if self.position >= group.high_watermark:
            self._busy = False
            self._tell()
            return
        try:
            plan = group.log.plan_read(
                self.position, max_bytes=limits.METADATA_READ_BYTES, end_index=group.commit_index
            )
        except (OSError, CorruptDataError) as error:
            self._read_failed(error)
            return
        if callable(plan):
            self._read_off_the_loop(plan)
        else:
            self._take(plan)

    def _read_off_the_loop(self, plan: Callable[[], bytes]) -> None:
        out: list[bytes] = []
        turn = self._turn
        log = self._group.log if self._group is not None else None

        def done(error: BaseException | None) -> None:
            if turn != self._turn:
                return  # the replica was left while it was being read
            if isinstance(error, Exception) and self._group and self.position < self._group.log_start_offset:
                self._step_soon()  # it was trimmed while it was being read
            elif isinstance(error, Exception):
                self._read_failed(error, log)
            elif error is not None:
                raise error
            else:
                self._take(out[0])

        self._reactor.run_blocking([lambda: out.append(plan())], done)

    def _read_failed(self, error: Exception, log: ReadableLog | None = None) -> None:
        """An error of the disk may pass, and a damaged replica is copied; until then the image stays as it is."""
        if self._group is None or not isinstance(error, (OSError, CorruptDataError)):
            self._fatal(error)
            return
        self._group.read_failed(error, log)
        turn = self._turn
        again = self._reactor.now() + _READ_AGAIN
        self._reactor.call_at(again, lambda: self._step() if turn == self._turn else None)

    def _take(self, frames: bytes) -> None:
        position = self.position
        try:
            records = records_from_frames(frames, position)
            if not records:
                raise CorruptDataError(f"no records at offset {position} of the metadata log, below its high watermark")
        except CorruptDataError as error:
            self._fatal(error)
            return
        self._apply(records)
        if not self._stopped:
            self._step_soon()

    # ---- applying

    def _apply(self, records: Sequence[record_pb2.Record]) -> None:
        try:
            for record in records:
                command = decode_command(record.value)
                chunk = command.state_chunk if command.HasField("state_chunk") else None
                if self._search is None:
                    self._apply_one(record, command)
                elif (found := self._search.look(chunk)) is not None:
                    self._restore(found)
                    return  # what follows the state was not applied yet: it is read again
        except (UnknownCommand, CorruptDataError) as error:
            self._fatal(error)

    def _apply_one(self, record: record_pb2.Record, command: metadata_pb2.MetadataCommand) -> None:
        self.image, result = apply(self.image, command)
        self.applied_offset = Offset(record.offset + 1)
        self.bytes_behind_state = 0 if command.HasField("state_chunk") else self.bytes_behind_state + len(record.value)
        if result.deleted_topic:
            self._deleted.add(result.deleted_topic)

    def _restore(self, state: bytes) -> None:
        """A topic that is there no more was deleted by one of the commands that this node has not seen."""
        image, self.applied_offset = restore(state)
        self._deleted.update(image.deleted_topics, self.image.topics.keys() - image.topics.keys())
        self.image, self._search, self.bytes_behind_state = image, None, 0

    def _tell(self) -> None:
        if self.image is not self._told:
            change = Change(self._told, self.image, frozenset(self._deleted))
            self._told = self.image
            self._deleted.clear()
            for listener in tuple(self.listeners):
                listener(change)
        ready = [future for offset, future in self._waiting if offset <= self.applied_offset]
        self._waiting = [(offset, future) for offset, future in self._waiting if offset > self.applied_offset]
        for future in ready:
            if not future.done():
                future.set_result(None)

    def _fatal(self, error: Exception) -> None:
        if not self._stopped:
            self.stop()
            self._on_fatal(error)
