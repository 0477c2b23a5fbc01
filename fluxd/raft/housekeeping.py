"""Snapshots of the groups' states, and letting go of what was trimmed, beside everything else.

A group's state is written now and then, so that opening its log replays the tail only; and before whole segments go
that lie below the log start; and when the scrub found what stands beside the log damaged. One of these at a time for
each group. An error of the disk is waited out: nothing is lost by it but time, since nothing goes before the snapshot
that replaces it is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.runtime import Reactor
from fluxd.core.types import GroupId, Offset, RaftIndex
from fluxd.raft.group import Group
from fluxd.raft.healing import Backoff
from fluxd.raft.opening import Opened
from fluxd.storage.beside import Faults
from fluxd.storage.errors import being_mended

Steps = Sequence[Callable[[], None]]


class Housekeeping:
    """Of all groups of a node.

    Args:
        is_open: this very group takes part.
        trimmed: the log's head is gone.
    """

    def __init__(
        self, reactor: Reactor, log_event: Callable[..., None], *, is_open: Callable[[Group], bool],
        trimmed: Callable[[Group], None],
    ) -> None:  # fmt: skip
        self._reactor, self._log_event, self._is_open, self._trimmed = reactor, log_event, is_open, trimmed
        self._busy: set[GroupId] = set()
        self._snapshot_at: dict[GroupId, int] = {}
        """Bytes that had been written to the log when its last snapshot was begun."""
        self._snapshots: dict[GroupId, tuple[RaftIndex, Offset]] = {}
        """The last durable snapshot: (index, log start offset)."""
        self._backoffs: dict[GroupId, Backoff] = {}
        self._not_before: dict[GroupId, float] = {}
        self._faults: dict[GroupId, Faults] = {}
        """Of what stands beside a log, as the scrub found it: being written anew."""

    def opened(self, group_id: GroupId, opened: Opened) -> None:
        """A log was opened."""
        log = opened.log
        self._faults.pop(group_id, None)
        self._snapshots[group_id] = (opened.snapshot_index, log.log_start_offset)
        self._snapshot_at[group_id] = 0 if opened.snapshot_index == log.first_index else log.written_bytes

    def forget(self, group_id: GroupId) -> None:
        """It is closed."""
        self._snapshot_at.pop(group_id, None)
        self._snapshots.pop(group_id, None)
        self._backoffs.pop(group_id, None)
        self._not_before.pop(group_id, None)
        self._faults.pop(group_id, None)

    def is_busy(self, group_id: GroupId) -> bool:
        """A step that uses the group's files is under way."""
        return group_id in self._busy

    def keep(self, group: Group) -> None:
        """See whether there is something to do."""
        log, group_id = group.log, group.group_id
        if group_id in self._busy or not self._is_open(group) or log.synced_index < group.commit_index:
            return
        if self._reactor.now() < self._not_before.get(group_id, 0.0):
            return
        index, log_start_offset = self._snapshots[group_id]
        if group_id in self._faults:
            self._mend(group)
        elif log.removable(log_start_offset, index):
            self._trim(group, log_start_offset, index)
        elif (
            log.removable(log.log_start_offset, group.commit_index)
            or log.written_bytes - self._snapshot_at[group_id] >= group.spec.segment_bytes
            or group.commit_index - index >= limits.SNAPSHOT_ENTRIES
        ):
            self._snapshot(group)

    def check(self, group: Group) -> Callable[[], Faults] | None:
        """For another thread: read what stands beside a log again; raises OSError that may pass. None: not now."""
        if group.group_id in self._faults or not self._is_open(group):
            return None
        index = self._snapshots[group.group_id][0]
        return partial(group.log.scrub.beside.faults, index if index > 1 else RaftIndex(0))

    def mend(self, group: Group, faults: Faults) -> None:
        """Have what is damaged written anew; until that is done the replica says what is wrong."""
        self._log_event("file_damaged", group=str(group.group_id), why=str(faults))
        self._faults[group.group_id] = faults
        group.why = group.why or _told(faults)
        self.keep(group)

    def _mend(self, group: Group) -> None:
        faults, beside = self._faults[group.group_id], group.log.scrub.beside
        steps = [beside.write_state_anew] if faults.state else []
        if not faults.snapshots:
            self._in_background(group, steps, "file_not_mended", lambda error: self._mended(group, error))
            return
        index = group.commit_index
        remove = beside.steps_to_remove(faults.snapshots.keys() - {index})
        self._snapshot(group, first=steps, then=remove, ended=lambda error: self._mended(group, error))

    def _mended(self, group: Group, error: BaseException | None) -> None:
        if error is None:
            faults = self._faults.pop(group.group_id)
            group.why = "" if group.why == _told(faults) else group.why
            self._log_event("file_mended", group=str(group.group_id), why=str(faults))

    def _snapshot(
        self, group: Group, *, first: Steps = (), then: Steps = (),
        ended: Callable[[BaseException | None], None] = lambda error: None,
    ) -> None:  # fmt: skip
        """Write one; and what is to be done before and after that."""
        log, index, before = group.log, group.commit_index, self._snapshot_at[group.group_id]
        try:
            steps = [*first, *log.write_snapshot(index, group.producers.snapshot()), *then]
        except (OSError, CorruptDataError) as error:  # of reading the entry that it is tied to
            self._try_later(group)
            group.read_failed(error)
            return
        self._snapshot_at[group.group_id] = log.written_bytes
        saved = (index, log.log_start_offset)

        def written(error: BaseException | None) -> None:
            if error is None:
                self._snapshots[group.group_id] = saved
            else:
                self._snapshot_at[group.group_id] = before
            ended(error)

        self._in_background(group, steps, "snapshot_failed", written)

    def _trim(self, group: Group, log_start_offset: Offset, snapshot_index: RaftIndex) -> None:
        steps = group.log.trim_prefix(log_start_offset, snapshot_index)
        if not steps:
            return
        first_index = group.log.first_index

        def trimmed(error: BaseException | None) -> None:
            if error is None:
                self._log_event(
                    "log_trimmed", group=str(group.group_id), first_index=first_index, log_start_offset=log_start_offset
                )

        self._in_background(group, steps, "trim_failed", trimmed)
        self._trimmed(group)

    def _try_later(self, group: Group) -> None:
        now = self._reactor.now()
        wait = self._backoffs.setdefault(group.group_id, Backoff()).next(now)
        self._not_before[group.group_id] = now + wait
        self._reactor.call_at(now + wait, lambda: self.keep(group))

    def _in_background(
        self, group: Group, steps: list[Callable[[], None]], failure: str,
        ended: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        group_id, log = group.group_id, group.log
        self._busy.add(group_id)

        def done(error: BaseException | None) -> None:
            self._busy.discard(group_id)
            if not self._is_open(group) or group.log is not log:
                return  # closed, perhaps opened again, meanwhile
            if error is not None:
                self._log_event(failure, group=str(group_id), why=str(error))
                self._try_later(group)
            ended(error)
            self.keep(group)

        self._reactor.run_blocking(steps, done)


def _told(faults: Faults) -> str:
    return being_mended(str(faults))
