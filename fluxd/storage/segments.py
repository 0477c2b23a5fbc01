"""The segments of one log, in order: which one holds an index, an offset, a time; terms; frames read back from
files."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import closing

from fluxd.core import limits
from fluxd.core.entry import Stamp
from fluxd.core.errors import CorruptDataError
from fluxd.core.retention import SegmentSummary
from fluxd.core.types import Offset, RaftIndex, Term
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.frames import faults_of, walk_frames, walk_headers
from fluxd.storage.segment import Segment, segment_name

_WINDOW_BYTES = 256 * limits.KIB


class Segments:
    """At least one segment; the last is the active one.

    Attributes:
        all: another list whenever the head goes, so that another thread that has taken it once may count in it.
    """

    def __init__(self, fs: FileSystem, segments: list[Segment]) -> None:
        self.fs = fs
        self.all = segments
        self.let_go_paths: list[str] = []
        """Of files that are no more part of the log, and are not known to be removed durably."""
        self._window: dict[int, tuple[Stamp, bytes]] = {}

    @property
    def active(self) -> Segment:
        """The one that is written."""
        return self.all[-1]

    def number_by_index(self, index: int) -> int:
        """Place in `all` of the segment that holds an index at or above the first one."""
        if index >= self.all[-1].first_index:
            return len(self.all) - 1
        return bisect_right(self.all, index, key=lambda segment: segment.first_index) - 1

    def holder(self, index: RaftIndex) -> tuple[Segment, Stamp | None]:
        """The segment that holds an entry, and the first stamp of the next one. Safe in any thread.

        Raises:
            FileNotFoundError: it was trimmed.
        """
        segments = self.all
        number = bisect_right(segments, index, key=lambda segment: segment.first_index)
        if number == 0:
            directory = segments[0].path.rpartition("/")[0]
            raise FileNotFoundError(errno.ENOENT, f"entry {index} was trimmed", f"{directory}/{segment_name(index)}")
        return segments[number - 1], segments[number].first if number < len(segments) else None

    def by_offset(self, offset: Offset) -> tuple[Segment, Stamp | None]:
        """The segment that holds a record's entry, and the first stamp of the next one."""
        number = bisect_right(self.all, offset, key=lambda segment: segment.base_offset) - 1
        return self.all[number], self.following(number)

    def following(self, number: int) -> Stamp | None:
        """First entry of the segment after that place; None: there is none."""
        return self.all[number + 1].first if number + 1 < len(self.all) else None

    def summaries(self, last: Stamp) -> list[SegmentSummary]:
        """All segments, as retention looks at them.

        Args:
            last: stamp of the last entry.
        """
        ends = [(following.base_offset, following.first.append_time_ms) for following in self.all[1:]]
        ends.append((last.next_offset, last.append_time_ms))
        return [
            SegmentSummary(segment.base_offset, end, segment.size, segment.last_append_time_ms or time_ms)
            for segment, (end, time_ms) in zip(self.all, ends, strict=True)
        ]

    def let_go(self, count: int) -> int:
        """Take so many off the head; their bytes."""
        removed, self.all = self.all[:count], self.all[count:]
        self.let_go_paths = [*self.let_go_paths, *(segment.path for segment in removed)]
        self.forget_window()
        return sum(segment.size for segment in removed)

    # ---- terms

    def term_at(self, index: RaftIndex) -> Term:
        """Term of an entry in the log. Reads headers only where a closed segment has several terms."""
        number = self.number_by_index(index)
        segment, following = self.all[number], self.following(number)
        uniform = segment.term_if_uniform(following)
        return segment.load_index(self.fs, following).term_at(index) if uniform is None else uniform

    def run_start(self, index: RaftIndex, lower_limit: RaftIndex) -> RaftIndex:
        """First index of the run of equal terms that holds an index, or the limit where that is higher."""
        number, term = self.number_by_index(index), self.term_at(index)
        while True:
            segment = self.all[number]
            if segment.first.leader_epoch != term:
                start = segment.load_index(self.fs, self.following(number)).run_start(index)
                return max(lower_limit, start)
            start = segment.first_index
            if number == 0 or start <= lower_limit or self.term_at(RaftIndex(start - 1)) != term:
                return max(lower_limit, start)
            index, number = RaftIndex(start - 1), number - 1

    # ---- entries from files

    def position_of(self, index: RaftIndex) -> tuple[Segment, int]:
        """Segment and position of an entry. Blocks; safe in any thread."""
        segment, following = self.holder(index)
        start = segment.load_index(self.fs, following).position_by_index(index)
        with closing(self.fs.open(segment.path)) as file, faults_of(segment.path):
            for position, stamp in walk_headers(file, start, segment.size):
                if stamp.raft_index == index:
                    return segment, position
        raise CorruptDataError(f"{segment.path}: no entry {index}")

    def entry(self, index: RaftIndex) -> tuple[Stamp, bytes]:
        """Stamp and frame of an entry, from the file. Blocks.

        Some entries behind it are kept in memory, so that reading one after another costs a read now and then.
        """
        hit = self._window.get(index)
        if hit is not None:
            return hit
        segment, start = self.position_of(index)
        window: dict[int, tuple[Stamp, bytes]] = {}
        window_bytes = 0
        with closing(self.fs.open(segment.path)) as file, faults_of(segment.path):
            for _, stamp, frame in walk_frames(file, start, segment.size):
                window[stamp.raft_index] = (stamp, frame)
                window_bytes += stamp.frame_bytes
                if window_bytes >= _WINDOW_BYTES:
                    break
        self._window = window
        return window[index]

    def forget_window(self) -> None:
        """What was read ahead may have been cut off."""
        self._window = {}

    def walk(self, index: RaftIndex) -> Iterator[tuple[Stamp, bytes]]:
        """Stamps and frames from an entry to the end, read from the files and verified. Blocks.

        Raises:
            CorruptDataError: the disk no longer has what was written.
        """
        for number in range(self.number_by_index(index), len(self.all)):
            segment = self.all[number]
            start = segment.load_index(self.fs, self.following(number)).position_by_index(index)
            with closing(self.fs.open(segment.path)) as file, faults_of(segment.path):
                for _, stamp, frame in walk_frames(file, start, segment.size):
                    if stamp.raft_index >= index:
                        yield stamp, frame

    def find_time(self, time_ms: int, end_index: RaftIndex, log_start_offset: Offset) -> tuple[Offset, int] | None:
        """First record at or after a time, at or behind the log start, whose entry is at or below an index: (offset,
        append time). Blocks."""
        segments = list(self.all)
        first = max(0, bisect_left(segments, time_ms, key=lambda segment: segment.first.append_time_ms) - 1)
        for number in range(first, len(segments)):
            segment = segments[number]
            if segment.first_index > end_index:
                return None
            following = segments[number + 1].first if number + 1 < len(segments) else None
            index = segment.wait_for_index(self.fs, following)
            # Nothing behind the last entry is read, nor where it stands: that may be cut off meanwhile.
            start = min(index.position_by_time(time_ms), index.position_by_index(end_index))
            with closing(self.fs.open(segment.path)) as file, faults_of(segment.path):
                for _, stamp in walk_headers(file, start, segment.size):
                    found = stamp.append_time_ms >= time_ms and stamp.record_count
                    if found and stamp.next_offset > log_start_offset:
                        return max(stamp.base_offset, log_start_offset), stamp.append_time_ms
                    if stamp.raft_index >= end_index:
                        return None
        return None
