"""Opening a log: what is there, what of it holds, and whether what does not is a torn tail or corruption.

Read are the directory, the first header of each segment, and of the segment that the sync mark names and later ones:
headers up to the mark, whole frames behind it. Closed segments are checked when they are first read.

* Below the mark everything was durable: a bad header, a bad last entry, a broken chain, a shorter or a missing file is
  corruption.
* Above the mark: bad bytes with a sound frame behind them in the same file are corruption; bad bytes at the very end
  are a torn tail: cut.
* A later segment that does not continue what is before it is removed: no sync that covered it has finished, as that
  would have made the mark at the end of the previous segment durable first (`sync.py`).

Where the log may begin is judged in `head.py`.

What is kept is synced before `recover` returns, and the mark moved behind it: nothing is acknowledged that a second
power cut could take. What stands behind the mark is written once more before: a process before this one may have met a
failed sync, after which another one returns although the disk lacks what can be read.

After an error of a file in this process (`after`) it is known how far the log was synced, and nothing behind that has
been acknowledged: it is removed unread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.entry import HEADER_BYTES, Stamp
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import GroupId, RaftIndex
from fluxd.storage.checkpoint import STATE_NAME, Mark, State, StateFile
from fluxd.storage.errors import LogCorrupt, LogMissing
from fluxd.storage.filesystem import TEMPORARY_SUFFIX, File, FileSystem
from fluxd.storage.frames import BadFrame, breach, find_frame, stamp_at_position, walk_frames, walk_headers
from fluxd.storage.head import check_head, find_snapshot, removable
from fluxd.storage.index import SegmentIndex
from fluxd.storage.segment import Segment, parse_segment_name, segment_name
from fluxd.storage.segments import Segments
from fluxd.storage.snapshot import Snapshot
from fluxd.storage.sync import Synced

_COPY_BYTES = limits.MIB


@dataclass(slots=True)
class Recovered:
    """What a log consists of. The last segment's file is open."""

    segments: list[Segment]
    last: Stamp
    state: StateFile
    snapshot: Snapshot | None = None
    """The newest one that is tied to the log."""


def recover(
    fs: FileSystem, directory: str, group: GroupId, after: Synced | None = None, *, unfinished: bool = False
) -> Recovered:
    """Open a log's files. Blocks.

    Args:
        after: how far the log is durable, where this process knows it.
        unfinished: it is being copied: the entry that its snapshot is tied to may be yet to come.

    Raises:
        LogMissing: there is none; nothing was written.
        LogCorrupt: nothing was written.
        OSError: retriable.
    """
    names = fs.list(directory)
    first_indexes = sorted(index for name in names if (index := parse_segment_name(name)) is not None)
    path = f"{directory}/{STATE_NAME}"
    state = StateFile.open(fs, path) if after is None else after.state.reopen(fs, path)
    if state is None:
        raise _without_state(fs, directory, first_indexes)
    recovery = _Recovery(fs, directory, group, state, unfinished=unfinished)
    try:
        recovered = recovery.run(first_indexes, after.mark if after else None)
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX):
                fs.remove(f"{directory}/{name}")
        fs.sync_directory(directory)  # a kill between creating a file and syncing its name left that undone
        return recovered
    except BaseException:
        recovery.close()
        raise


def _without_state(fs: FileSystem, directory: str, first_indexes: list[RaftIndex]) -> LogMissing | LogCorrupt:
    """The state file is the last thing that creation makes: without it there is at most a birth entry."""
    if not first_indexes:
        return LogMissing(f"{directory}: no segment")
    path = f"{directory}/{segment_name(first_indexes[0])}"
    if first_indexes == [1]:
        file = fs.open(path)
        size = file.size()
        file.close()
        if size <= HEADER_BYTES:
            return LogMissing(f"{directory}: its creation was cut off")
    return LogCorrupt(f"{directory}: {STATE_NAME} is missing or unreadable, but the log from {path} on is there")


def _write_again(file: File, position: int, end: int) -> None:
    while position < end:
        data = file.read(position, min(_COPY_BYTES, end - position))
        file.write_at(position, data)
        position += len(data)


class _Recovery:
    def __init__(self, fs: FileSystem, directory: str, group: GroupId, state: StateFile, *, unfinished: bool) -> None:
        self._fs = fs
        self._unfinished = unfinished
        self._directory = directory
        self._group = group
        self._state = state
        self._segments: list[Segment] = []
        self._files: list[File] = []
        self._previous: Stamp | None = None

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._state.close()

    def run(self, first_indexes: list[RaftIndex], synced: Mark | None) -> Recovered:
        assert self._state.state is not None
        mark = synced or self._state.state.mark
        if mark.segment not in first_indexes:
            raise LogCorrupt(
                f"{self._directory}/{segment_name(mark.segment)} is missing; "
                f"it was synced up to {mark.position}, index {mark.index}"
            )
        place = first_indexes.index(mark.segment)
        for first_index in first_indexes[: place + 1]:
            self._add_segment(first_index)
        marked = self._segments[-1]
        self._walk_to_mark(marked, mark)
        cut_at = mark.position if synced else self._verify(marked)
        kept = 0
        for first_index in first_indexes[place + 1 :]:
            if cut_at is not None or not self._continue_with(first_index):
                break
            kept += 1
            cut_at = self._verify(self._segments[-1])
        dropped = first_indexes[place + 1 + kept :]
        last = self._previous
        assert last is not None
        snapshot = self._check_head()
        self._make_durable(mark, dropped, cut_at)
        self._remove_head(snapshot)
        for segment in self._segments[:-1]:
            segment.close()
        return Recovered(self._segments, last, self._state, snapshot)

    # ---- below the mark

    def _add_segment(self, first_index: RaftIndex) -> None:
        """Read a segment's first header; its file is open until the next one is added."""
        path = f"{self._directory}/{segment_name(first_index)}"
        if self._segments:
            self._segments[-1].close()
        file = self._fs.open(path, rests=True)
        self._files.append(file)
        try:
            first = stamp_at_position(file, 0)
        except BadFrame as error:
            raise LogCorrupt(f"{path}: {error}, where entry {first_index} begins") from error
        if first.raft_index != first_index:
            raise LogCorrupt(f"{path}: begins with entry {first.raft_index}")
        before = self._segments[-1].first if self._segments else None
        if before is not None and (
            first.leader_epoch < before.leader_epoch
            or first.base_offset < before.base_offset
            or first.append_time_ms < before.append_time_ms
        ):
            raise LogCorrupt(f"{path}: entry {first_index} cannot stand behind entry {before.raft_index}")
        self._segments.append(Segment(path, first, file.size(), file=file))

    def _walk_to_mark(self, segment: Segment, mark: Mark) -> None:
        file = segment.file
        assert file is not None
        if file.size() < mark.position:
            raise LogCorrupt(
                f"{segment.path}: {file.size()} bytes, but it was synced up to {mark.position}, index {mark.index}"
            )
        index, start = SegmentIndex(), 0
        try:
            for position, stamp in walk_headers(file, 0, mark.position):
                why = breach(self._previous, stamp) if self._previous else None
                if why:
                    raise LogCorrupt(f"{segment.path}: position {position}: {why}; it was synced up to {mark.position}")
                index.add(stamp, position)
                self._previous, start = stamp, position
            # the last entry is what this replica is judged by in elections: verified as a whole
            deque(walk_frames(file, start, mark.position), maxlen=0)
        except BadFrame as error:
            raise LogCorrupt(
                f"{segment.path}: {error}; behind entry {self._previous.raft_index if self._previous else 0}, "
                f"but it was synced up to {mark.position}, index {mark.index}"
            ) from error
        if self._previous is None or self._previous.raft_index != mark.index:
            raise LogCorrupt(f"{segment.path}: position {mark.position} is not behind entry {mark.index}")
        segment.index = index
        segment.size = mark.position

    # ---- above the mark

    def _verify(self, segment: Segment) -> int | None:
        """Take over what is whole behind the segment's size; returns where the torn tail begins, None without one."""
        file, previous = segment.file, self._previous
        assert file is not None
        assert previous is not None
        assert segment.index is not None
        try:
            for position, stamp, _ in walk_frames(file, segment.size, file.size()):
                why = breach(previous, stamp)
                if why:
                    raise LogCorrupt(f"{segment.path}: position {position}: {why}")
                segment.index.add(stamp, position)
                segment.size = position + stamp.frame_bytes
                self._previous = previous = stamp
        except BadFrame as error:
            behind = find_frame(file, error.position, file.size(), previous)
            if behind is not None:
                raise LogCorrupt(
                    f"{segment.path}: {error}, behind entry {previous.raft_index}; "
                    f"not a torn tail: entry {behind[1].raft_index} stands behind it at {behind[0]}"
                ) from error
            return error.position
        return None

    def _continue_with(self, first_index: RaftIndex) -> bool:
        """Open the next segment, when it goes on where the log ends."""
        assert self._previous is not None
        if first_index != self._previous.raft_index + 1:
            return False
        path = f"{self._directory}/{segment_name(first_index)}"
        file = self._fs.open(path, rests=True)
        self._files.append(file)
        try:
            first = stamp_at_position(file, 0)
        except BadFrame:
            behind = find_frame(file, 0, file.size(), self._previous)
            if behind is not None:
                raise LogCorrupt(
                    f"{path}: position 0: no entry {first_index}; "
                    f"not a torn tail: entry {behind[1].raft_index} stands behind it at {behind[0]}"
                ) from None
            file.close()
            return False
        self._segments.append(Segment(path, first, 0, index=SegmentIndex(), file=file))
        return True

    def _check_head(self) -> Snapshot | None:
        """Whether the log may begin where it does: from the newest snapshot that is tied to it."""
        there = [segment for segment in self._segments if segment.size]
        try:
            snapshot = find_snapshot(
                self._fs, self._directory, self._group, Segments(self._fs, there), self._last_index()
            )
        except CorruptDataError as error:
            raise LogCorrupt(str(error)) from error
        if snapshot is not None or not self._unfinished:
            check_head(self._fs, self._group, there[0], snapshot)
        return snapshot

    def _remove_head(self, snapshot: Snapshot | None) -> None:
        """Remove what a trim did not get to remove; the mark is at the log's end, in a segment that stays."""
        count = removable(self._segments, snapshot.log_start_offset, snapshot.index) if snapshot else 0
        if count:
            self._fs.sync_directory(self._directory)  # the snapshot's name; its bytes were synced before it got it
            for segment in self._segments[:count]:
                segment.close()  # one behind the mark is still open: its space would stay taken
                self._fs.remove(segment.path)
            del self._segments[:count]

    def _make_durable(self, mark: Mark, dropped: list[RaftIndex], cut_at: int | None) -> None:
        """Cut, then sync what stays, then say so. Begun again from the start when it is interrupted."""
        last = self._segments[-1]
        if last.size == 0:  # nothing but torn bytes
            last.close()
            self._fs.remove(last.path)
            self._segments.pop()
            dropped = [last.first_index, *dropped]
            last, cut_at = self._segments[-1], None
        for first_index in reversed(dropped):
            self._fs.remove(f"{self._directory}/{segment_name(first_index)}")
        if dropped:
            self._fs.sync_directory(self._directory)
        assert last.file is not None
        if cut_at is not None:
            last.file.truncate(cut_at)
        end = Mark(last.first_index, last.size, self._last_index())
        if end == mark and not dropped and cut_at is None:
            return
        for segment in self._segments:
            if segment.file is not None and segment.first_index >= mark.segment:
                _write_again(segment.file, mark.position if segment.first_index == mark.segment else 0, segment.size)
                segment.file.sync()
        self._fs.sync_directory(self._directory)
        assert self._state.state is not None
        self._state.write_synced(State(end, self._state.state.checkpoint))

    def _last_index(self) -> RaftIndex:
        assert self._previous is not None
        return self._previous.raft_index
