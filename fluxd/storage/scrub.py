"""Reading a log again, to find what has changed on the disk since it was written.

Every frame is verified as a whole, and that it follows the one before it, across the ends of segments too. One piece
after another, so that whoever asks decides how fast it goes; a piece may be read in any thread while the log goes on:
only what is committed is looked at, and that is neither truncated nor written again. What was trimmed meanwhile is no
damage: `LogScrub.is_gone` says so.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from fluxd.core.entry import Stamp
from fluxd.core.types import Offset, RaftIndex
from fluxd.storage.beside import BesideLog
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.frames import BadFrame, breach, faults_of, walk_frames
from fluxd.storage.segment import SUFFIX, parse_segment_name
from fluxd.storage.segments import Segments


@dataclass(frozen=True, slots=True)
class Verified:
    """Everything before a position is sound.

    Args:
        segment: first index of the segment that is being read; 0: none yet.
        position: in it, where the next frame begins.
        last: the entry before that position; None: nothing was read yet.
        size: bytes that this piece had.
        is_end: nothing is left of the segment, as it was when this piece was asked for.
    """

    segment: int = 0
    position: int = 0
    last: Stamp | None = None
    size: int = 0
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Some frames of one segment.

    Args:
        segment: its first index.
        read: for another thread; raises CorruptDataError (the message names file and position) or OSError.
    """

    segment: RaftIndex
    read: Callable[[], Verified]


class LogScrub:
    """Of one log; on the loop, but for the callables that it gives out, and for `beside`."""

    def __init__(self, fs: FileSystem, segments: Segments, beside: BesideLog) -> None:
        self._fs, self._segments, self.beside = fs, segments, beside

    def next_piece(
        self, after: Verified, *, end_index: RaftIndex, max_bytes: int, closed_only: bool = False
    ) -> Piece | None:
        """What to read next.

        Args:
            after: what the piece before returned; `Verified()` to begin.
            end_index: last entry to verify (inclusive), committed.
            max_bytes: of a piece, but it has at least one frame.
            closed_only: leave out the segment that is being written.

        Returns:
            None: everything is verified.
        """
        segments = self._segments.all
        number = bisect_left(segments, after.segment, key=lambda segment: segment.first_index)
        if number == len(segments):
            return None
        if segments[number].first_index != after.segment:  # to begin with; or what was being read has been trimmed
            after = Verified(segments[number].first_index)
        elif after.position >= segments[number].size:
            number += 1
            if number == len(segments):
                return None
            after = Verified(segments[number].first_index, last=after.last)
        segment, following = segments[number], self._segments.following(number)
        if after.last is not None and after.last.raft_index >= end_index:
            return None
        if segment.first_index > end_index or (closed_only and (following is None or segment.file is not None)):
            return None
        if closed_only and following is not None and following.raft_index - 1 > end_index:
            return None
        read = partial(
            _read, self._fs, segment.path, segment.first, segment.size, following, after, end_index, max_bytes
        )
        return Piece(segment.first_index, read)

    def is_gone(self, segment: RaftIndex) -> bool:
        """What could not be read is no more part of the log: nothing is wrong.

        Args:
            segment: its first index.
        """
        return all(there.first_index != segment for there in self._segments.all)

    def segment_of(self, error: BaseException) -> RaftIndex | None:
        """First index of the segment that an error names; None: it names none of this log's."""
        return next((index for index in self._named(error) if not self.is_gone(index)), None)

    def was_trimmed(self, error: BaseException) -> bool:
        """A read failed since the segment that it names is no more part of the log: nothing is wrong."""
        return any(map(self.is_gone, self._named(error)))

    def _named(self, error: BaseException) -> list[RaftIndex]:
        """Segments of this log's directory, there or not: every error of a file says of which one it is."""
        directory = self._segments.all[0].path.rpartition("/")[0]
        names = re.findall(rf"{re.escape(directory)}/([^/'\"]+{re.escape(SUFFIX)})", str(error))
        return [index for name in names if (index := parse_segment_name(name)) is not None]

    def segment_ends(self, end_index: RaftIndex) -> dict[RaftIndex, tuple[Offset, int]]:
        """Last entries of the segments that end at or before an entry, ascending: (offset behind it, checksum), as the
        first entries of the next segments say."""
        return {
            RaftIndex(segment.first_index - 1): (segment.base_offset, segment.first.previous_checksum)
            for segment in self._segments.all[1:]
            if segment.first_index - 1 <= end_index
        }

    def behind(self, index: RaftIndex) -> Verified:
        """Where reading goes on behind an entry that is in the log. Blocks; raises as `verified_stamp`."""
        segment, position = self._segments.position_of(index)
        stamp = self.verified_stamp(index)
        return Verified(segment.first_index, position + stamp.frame_bytes, stamp)

    def verified_stamp(self, index: RaftIndex) -> Stamp:
        """Stamp of an entry that is in the log, read from its file and verified. Blocks; for another thread.

        Raises:
            CorruptDataError: it is damaged.
            OSError: see `errors.is_damage`.
        """
        segment, position = self._segments.position_of(index)
        with closing(self._fs.open(segment.path)) as file, faults_of(segment.path):
            return next(walk_frames(file, position, segment.size))[1]


def _read(
    fs: FileSystem,
    path: str,
    first: Stamp,
    size: int,
    following: Stamp | None,
    after: Verified,
    end_index: RaftIndex,
    max_bytes: int,
) -> Verified:
    position, last = after.position, after.last
    with closing(fs.open(path)) as file, faults_of(path):
        if position == 0:
            file.forget(size)  # what the disk has is asked for, not what the machine remembers of it
        for at, stamp, _ in walk_frames(file, position, size):
            why = breach(last, stamp) if last is not None else None
            if at == 0 and stamp != first:
                why = "another first entry than when the log was opened"
            if why:
                raise BadFrame(at, why)
            position, last = at + stamp.frame_bytes, stamp
            if position - after.position >= max_bytes or stamp.raft_index >= end_index:
                break
        why = breach(last, following) if last and following and position == size else None
        if why:
            raise BadFrame(position, f"the next segment does not follow: {why}")
        if position == size:
            file.forget(size)
    return Verified(after.segment, position, last, position - after.position, is_end=position == size)
