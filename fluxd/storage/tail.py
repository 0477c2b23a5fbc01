"""The last frames of a log, in memory: what followers, waiting readers and the Raft library ask for."""

from __future__ import annotations

from collections import OrderedDict

from fluxd.core import limits
from fluxd.core.entry import Stamp
from fluxd.core.types import Offset, RaftIndex

_ENTRY_OVERHEAD_BYTES = 512
"""Of the objects around a frame: a cache of tiny frames would hold a multiple of its bound otherwise."""


class TailBudget:
    """What all tails of a node may hold together: beyond it the logs that were not written to for the longest time
    keep their last frame only."""

    def __init__(self, bytes_max: int = limits.TAIL_CACHES_BYTES) -> None:
        self.bytes_max, self.bytes_held = bytes_max, 0
        self._tails: OrderedDict[TailCache, None] = OrderedDict()
        """Those with more than a frame, least recently written first."""

    def changed(self, tail: TailCache, more: int) -> None:
        """A tail has grown (or shrunk, below 0) by so many bytes."""
        self.bytes_held += more
        if more > 0:
            self._tails[tail] = None
            self._tails.move_to_end(tail)
            while self.bytes_held > self.bytes_max and len(self._tails) > 1:
                self._tails.popitem(last=False)[0].shrink()

    def left(self, tail: TailCache, held: int) -> None:
        """Its log was closed."""
        self._tails.pop(tail, None)
        self.bytes_held -= held


class TailCache:
    """Contiguous frames up to the last entry, at most limits.TAIL_CACHE_BYTES (but at least the last frame)."""

    def __init__(self) -> None:
        self._budget: TailBudget | None = None
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
        before = self._bytes
        self._bytes += stamp.frame_bytes + _ENTRY_OVERHEAD_BYTES
        self._shrink(limits.TAIL_CACHE_BYTES)
        if self._budget is not None:
            self._budget.changed(self, self._bytes - before)

    def _shrink(self, bytes_max: int) -> None:
        while self._bytes > bytes_max and self._first < self._last:
            oldest, _ = self._entries.pop(self._first)
            self._first += 1
            self._bytes -= oldest.frame_bytes + _ENTRY_OVERHEAD_BYTES

    def share(self, budget: TailBudget) -> None:
        """Count in a node's budget from now on, until `release`."""
        assert self._budget is None
        self._budget = budget
        budget.changed(self, self._bytes)

    def shrink(self) -> None:
        """Keep the last frame only."""
        before = self._bytes
        self._shrink(0)
        if self._budget is not None:
            self._budget.changed(self, self._bytes - before)

    def release(self) -> None:
        """Count no more: the log was closed."""
        if self._budget is not None:
            self._budget.left(self, self._bytes)
            self._budget = None

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
        before = self._bytes
        while self._last >= first_removed and self._entries:
            stamp, _ = self._entries.pop(self._last)
            self._last -= 1
            self._bytes -= stamp.frame_bytes + _ENTRY_OVERHEAD_BYTES
        if self._budget is not None:
            self._budget.changed(self, self._bytes - before)

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
