"""What of a log is durable: the sync mark, what was written since, and the one sync in flight.

The order of a sync's steps carries the meaning of the mark at recovery:

1. new names are synced (directory), so that the mark never names a file that a power cut takes;
2. each finished segment is synced, and its end becomes the durable mark, before the next one is synced; so a segment
   that does not continue the one before it was covered by no finished sync, and recovery may remove it;
3. the active segment is synced. The mark behind it is written when that has succeeded, itself unsynced.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from fluxd.core.errors import InvariantViolation
from fluxd.core.types import RaftIndex
from fluxd.storage.checkpoint import Checkpoint, Mark, State, StateFile
from fluxd.storage.filesystem import File, FileSystem
from fluxd.storage.segment import Segment
from fluxd.storage.segments import Segments


@dataclass(eq=False, slots=True)
class SyncJob:
    """One group commit.

    Args:
        mark: end of the log when it began: what it makes durable.
        segments: that it syncs, in order.
        steps: blocking calls, to be run in order in another thread; if one raises, the log must be closed.
        void: the log was truncated since: its success says nothing; its failure what any other's does.
    """

    mark: Mark
    segments: list[Segment]
    steps: list[Callable[[], None]] = field(default_factory=list)
    void: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """How far a log is durable, as the process knows that has its files open: to open them again after an error.

    What stands behind the mark counts as never written, even where it can be read: the disk may not have it, and after
    a sync that failed another one may return all the same.
    """

    mark: Mark
    state: StateFile


class LogSync:
    """Of one log; on the loop.

    Attributes:
        mark: end of what is known to be durable.
    """

    def __init__(self, fs: FileSystem, directory: str, segments: Segments, state: StateFile) -> None:
        assert state.state is not None
        self.mark = state.state.mark
        self._fs = fs
        self._directory = directory
        self._segments = segments
        self._state = state
        self._unsynced: list[Segment] = []
        self._names_dirty = False
        self._job: SyncJob | None = None

    @property
    def synced(self) -> Synced:
        """No sync is in flight. A job that failed may have got as far as the end of a finished segment."""
        assert self._state.state is not None
        return Synced(max(self.mark, self._state.state.mark, key=lambda mark: mark.index), self._state)

    def wrote(self, segment: Segment) -> None:
        """Bytes were added to it."""
        if not segment.dirty:
            segment.dirty = True
            self._unsynced.append(segment)

    def rolled(self, finished: Segment) -> None:
        """Another segment was begun: its name is not durable, and the finished one's end must become the mark."""
        self.wrote(finished)
        self._names_dirty = True

    def begin(self, last_index: RaftIndex, *, keep_cached: bool) -> SyncJob:
        """A job for all that is written now. One at a time.

        Args:
            keep_cached: else the machine need not keep in memory what it synced.
        """
        if self._job is not None:
            raise InvariantViolation(f"{self._directory}: a sync is in flight")
        active = self._segments.active
        job = self._job = SyncJob(Mark(active.first_index, active.size, last_index), self._unsynced)
        self._unsynced = []
        if self._names_dirty:
            job.steps.append(partial(self._fs.sync_directory, self._directory))
            self._names_dirty = False
        for segment in job.segments:
            segment.dirty = False
            assert segment.file is not None
            job.steps.append(partial(_sync_file, segment.file, job, forget=0 if keep_cached else segment.size))
            if segment is not active:
                following = self._segments.following(self._segments.number_by_index(segment.first_index))
                assert following is not None
                end = Mark(segment.first_index, segment.size, RaftIndex(following.raft_index - 1))
                job.steps.append(partial(self._state.raise_mark, end, unless=partial(_is_void, job)))
        return job

    def finish(self, job: SyncJob) -> bool:
        """All steps returned. False: the log was truncated since, so the mark stays and the next job covers it all."""
        if job is not self._job:
            raise InvariantViolation(f"{self._directory}: another sync is in flight")
        self._job = None
        if job.void:
            again = [s for s in job.segments if s in self._segments.all and not s.dirty]
            for segment in again:
                segment.dirty = True
            self._unsynced = again + self._unsynced
            return False
        self.mark = job.mark
        for segment in job.segments:
            if segment is not self._segments.active and not segment.dirty:
                segment.close()
        return True

    def record(self, checkpoint: Checkpoint) -> None:
        """Write mark and checkpoint, not synced."""
        self._state.write(State(self.mark, checkpoint))

    def fall(self, end: Mark) -> None:
        """The log is about to be cut behind an entry: the durable mark is at or below it when this returns. Blocks.

        Written even where the mark is lower: a job in flight may have raised the one on disk.
        """
        if self._job is not None:
            self._job.void = True
        mark = end if self.mark.index > end.index else self.mark
        assert self._state.state is not None
        self._state.write_synced(State(mark, self._state.state.checkpoint))
        self.mark = mark  # not before: whoever opens the log again after an error cuts it behind this mark

    def removed(self, segment: Segment) -> None:
        """It is no more part of the log."""
        if segment.dirty:
            self._unsynced.remove(segment)

    def names_synced(self) -> None:
        """The directory was synced."""
        self._names_dirty = False


def _sync_file(file: File, job: SyncJob, forget: int) -> None:
    try:
        file.sync()
        file.forget(forget)
    except OSError as error:
        # A truncation closes what it removes. Any other error counts, also when the job is void: the system tells of
        # a write that was lost only once, so the next sync of this file would return as if all of it were there.
        if not (job.void and error.errno == errno.EBADF):
            raise


def _is_void(job: SyncJob) -> bool:
    return job.void
