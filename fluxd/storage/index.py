"""The index of one segment, in memory: where its entries are, and which terms they have.

Nothing of it is on disk: the active segment's is kept while it is written, a closed segment's is rebuilt from the
headers when it is first needed. Sparse: one point per limits.INDEX_INTERVAL_BYTES, 32 bytes each. Positions are those
of frames, so a walk may begin at each of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

from fluxd.core import limits
from fluxd.core.entry import Stamp
from fluxd.core.types import Offset, RaftIndex, Term


class SegmentIndex:
    """Sparse points and runs of equal terms. Lookups of committed entries may come from any thread while the loop adds
    or truncates: what changes is behind the points and runs that they find.
    """

    def __init__(self) -> None:
        self._indexes = array("Q")
        self._offsets = array("Q")
        self._times = array("q")
        self._positions = array("Q")
        self._next_point = 0
        self._run_starts: list[int] = []
        self._run_terms: list[Term] = []
        self._term = -1

    def add(self, stamp: Stamp, position: int) -> None:
        """Note the entry that follows the last one added."""
        if position >= self._next_point:
            self._indexes.append(stamp.raft_index)
            self._offsets.append(stamp.base_offset)
            self._times.append(stamp.append_time_ms)
            self._positions.append(position)
            self._next_point = position + limits.INDEX_INTERVAL_BYTES
        if stamp.leader_epoch != self._term:
            self._term = stamp.leader_epoch
            self._run_starts.append(stamp.raft_index)
            self._run_terms.append(stamp.leader_epoch)

    def truncate(self, first_removed: RaftIndex) -> None:
        """Forget that index and all above; at least one entry stays."""
        points = bisect_left(self._indexes, first_removed)
        for column in (self._indexes, self._offsets, self._times, self._positions):
            del column[points:]
        self._next_point = self._positions[-1] + limits.INDEX_INTERVAL_BYTES
        runs = bisect_left(self._run_starts, first_removed)
        del self._run_starts[runs:], self._run_terms[runs:]
        self._term = self._run_terms[-1]

    def position_by_index(self, index: RaftIndex) -> int:
        """Where a walk that looks for an index begins."""
        return self._positions[max(0, bisect_right(self._indexes, index) - 1)]

    def position_by_offset(self, offset: Offset) -> int:
        """Where a walk that looks for the entry with a record begins.

        What stands before the last point at or below the offset ends at or below it too.
        """
        return self._positions[max(0, bisect_right(self._offsets, offset) - 1)]

    def end_of_run(self, start: int, max_bytes: int, size: int) -> int:
        """Where to end a read of whole frames.

        Args:
            start: a point.
            max_bytes: of the frames, but the end is at least at the next point.
            size: where the last frame ends.
        """
        if size - start <= max_bytes:
            return size
        number = bisect_right(self._positions, start + max_bytes)
        # A slice, since points of what is not committed may go meanwhile.
        ends = [position for position in self._positions[max(0, number - 1) : number + 1] if position > start]
        return min(ends[0], size) if ends else size

    def position_by_time(self, time_ms: int) -> int:
        """Where a walk that looks for the first entry at or after a time begins; perhaps behind what is committed."""
        number = bisect_left(self._times, time_ms)
        # Slices, since points of what is not committed may go meanwhile: then nothing that is committed is as late.
        return (self._positions[max(0, number - 1) : max(1, number)] or self._positions[-1:])[0]

    def term_at(self, index: RaftIndex) -> Term:
        """Term of an entry of this segment."""
        return self._run_terms[bisect_right(self._run_starts, index) - 1]

    def run_start(self, index: RaftIndex) -> RaftIndex:
        """First index of this segment's run of equal terms that holds the index."""
        return RaftIndex(self._run_starts[bisect_right(self._run_starts, index) - 1])
