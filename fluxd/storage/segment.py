"""One segment file: `{first_index:020d}.seg`, frames one after another and nothing else.

The active (last) segment and closed ones that are not yet synced keep their file open, as one that may rest. A closed
segment is opened for each read and closed again: a node may have many thousands of them, and no descriptor is then
shared between a read in a thread and the loop.
"""

from __future__ import annotations

import threading
from contextlib import closing

from fluxd.core.entry import Stamp
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import Offset, RaftIndex, Term
from fluxd.storage.filesystem import File, FileSystem
from fluxd.storage.frames import breach, walk_headers
from fluxd.storage.index import SegmentIndex

SUFFIX = ".seg"
_NAME_DIGITS = 20
_PUBLISHING = threading.Lock()
"""Held for a moment only, so that the loop may wait for it."""


def segment_name(first_index: int) -> str:
    """File name of the segment that begins at an index."""
    return f"{first_index:0{_NAME_DIGITS}d}{SUFFIX}"


def parse_segment_name(name: str) -> RaftIndex | None:
    """First index of a segment file; None: not the name of one."""
    digits = name.removesuffix(SUFFIX)
    if not name.endswith(SUFFIX) or len(digits) != _NAME_DIGITS or not digits.isdecimal():
        return None
    return RaftIndex(int(digits))


class Segment:
    """A segment in memory. The loop alone changes it; other threads read what is committed, also while the loop appends
    behind that or cuts it off.

    Args:
        path: of the file.
        first: stamp of the first entry.
        size: end of the last whole frame, bytes.
        index: None for a closed segment: built when needed.
        file: open for the active segment, and as long as `dirty`.

    Attributes:
        dirty: written since the last sync of it began.
        began_ms: append time of the first entry that has one, which the birth entry has not; 0: none was seen yet.
        last_append_time_ms: None for a segment that was closed when the log was opened.
    """

    __slots__ = (
        "_building", "base_offset", "began_ms", "dirty", "file", "first", "first_index", "index",
        "last_append_time_ms", "path", "size",
    )  # fmt: skip

    def __init__(
        self, path: str, first: Stamp, size: int, *, index: SegmentIndex | None = None, file: File | None = None
    ) -> None:
        self.path = path
        self.first = first
        self.first_index: RaftIndex = first.raft_index
        self.base_offset: Offset = first.base_offset
        self.size = size
        self.index = index
        self.file = file
        self.dirty = False
        self.began_ms = first.append_time_ms
        self.last_append_time_ms: int | None = None
        self._building = threading.Lock()

    def append(self, frame: bytes, stamp: Stamp) -> None:
        """Write a frame at the end of the active segment.

        Raises:
            OSError: nothing was written.
        """
        assert self.file is not None
        assert self.index is not None
        position = self.file.append(frame)
        assert position == self.size, (position, self.size, self.path)
        self.index.add(stamp, position)
        self.size = position + stamp.frame_bytes
        self.began_ms = self.began_ms or stamp.append_time_ms
        self.last_append_time_ms = stamp.append_time_ms

    def load_index(self, fs: FileSystem, following: Stamp | None) -> SegmentIndex:
        """The index, built from the headers when it is not there yet. Blocks then; safe in any thread.

        Whoever has built one first gives it to all: the loop adds to that one and cuts it from then on, before anything
        in the file changes.

        Args:
            following: first entry of the next segment, None for the last one; checked to follow this one's last.

        Raises:
            CorruptDataError: a header is bad, or the chain is broken.
        """
        index = self.index
        if index is not None:
            return index
        try:
            built = self._build_index(fs, following)
        except CorruptDataError:
            index = self.index
            if index is None:
                raise
            return index  # what was being read here has been cut off
        with _PUBLISHING:
            if self.index is None:
                self.index = built
            return self.index

    def wait_for_index(self, fs: FileSystem, following: Stamp | None) -> SegmentIndex:
        """As `load_index`, for threads of the pool: while one of them builds it the others wait, instead of walking the
        same headers. The loop waits for none of them.
        """
        index = self.index
        if index is not None:
            return index
        with self._building:
            return self.load_index(fs, following)

    def _build_index(self, fs: FileSystem, following: Stamp | None) -> SegmentIndex:
        index, previous = SegmentIndex(), None
        with closing(fs.open(self.path)) as file:
            try:
                for position, stamp in walk_headers(file, 0, self.size):
                    why = breach(previous, stamp) if previous else None
                    if stamp.raft_index == self.first_index and stamp != self.first:
                        why = "another first entry than when the log was opened"
                    if why:
                        raise CorruptDataError(f"position {position}: {why}")
                    index.add(stamp, position)
                    previous = stamp
                why = breach(previous, following) if previous and following else None
                if why:
                    raise CorruptDataError(f"the next segment does not follow: {why}")
            except CorruptDataError as error:
                raise CorruptDataError(f"{self.path}: {error}") from error
        return index

    def term_if_uniform(self, following: Stamp | None) -> Term | None:
        """The term of all entries, when the segments' first entries tell it."""
        if following is not None and following.leader_epoch == self.first.leader_epoch:
            return self.first.leader_epoch
        return None

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.file is not None:
            self.file.close()
            self.file = None
