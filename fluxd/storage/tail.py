"""The last frames of a log, in memory: what followers, waiting readers and the Raft library ask for."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.entry import Stamp
from fluxd.core.types import Offset, RaftIndex

_ENTRY_OVERHEAD_BYTES = 512
"""Of the objects around a frame: a cache of tiny frames would hold a multiple of its bound otherwise."""


class TailCache:
    """Contiguous frames up to the last entry, at most limits.TAIL_CACHE_BYTES (but at least the last frame)."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Stamp, bytes]] = {}
        self._first = 1
        self._last = 0
        self._bytes = 0

    def append(self, stamp: Stamp, frame: bytes) -> None:
        """Add the next entry; the first one may have any index."""
        index = stamp.raft_index
        if not self._entries:
            self._first = index
        self._entries[index] = (stamp, frame)
        self._last = index
        self._bytes += stamp.frame_bytes + _ENTRY_OVERHEAD_BYTES
        while self._bytes > limits.TAIL_CACHE_BYTES and self._first < index:
            oldest, _ = self._entries.pop(self._first)
            self._first += 1
            self._bytes -= oldest.frame_bytes + _ENTRY_OVERHEAD_BYTES

    def get(self, index: int) -> tuple[Stamp, bytes] | None:
        """Stamp and frame of an entry, when it is here."""
        return self._entries.get(index)

    def frames(self, index: int, max_bytes: int, end_index: RaftIndex) -> list[bytes]:
        """Frames from an entry on, at least one when it is here."""
        frames: list[bytes] = []
        while index <= end_index and (found := self._entries.get(index)) is not None:
            max_bytes -= len(found[1])
            if frames and max_bytes < 0:
                break
            frames.append(found[1])
            index += 1
        return frames

    def truncate(self, first_removed: RaftIndex) -> None:
        """Forget that index and all above."""
        while self._last >= first_removed and self._entries:
            stamp, _ = self._entries.pop(self._last)
            self._last -= 1
            self._bytes -= stamp.frame_bytes + _ENTRY_OVERHEAD_BYTES

    def read(self, offset: Offset, max_bytes: int, end_index: RaftIndex) -> bytes | None:
        """Whole frames from the one that holds a record; None: it is not here.

        A single frame is not copied.
        """
        low = self._first
        if not self._entries or self._entries[low][0].base_offset > offset or low > end_index:
            return None
        high = min(self._last, end_index)
        while low < high:
            middle = (low + high) // 2
            if self._entries[middle][0].next_offset > offset:
                high = middle
            else:
                low = middle + 1
        stamp, first = self._entries[low]
        if stamp.next_offset <= offset:
            return None
        frames, total = [first], stamp.frame_bytes
        for index in range(low + 1, min(self._last, end_index) + 1):
            stamp, frame = self._entries[index]
            total += stamp.frame_bytes
            if total > max_bytes:
                break
            frames.append(frame)
        return first if len(frames) == 1 else b"".join(frames)
