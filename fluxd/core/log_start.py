"""Where a partition's records begin, as its TRIM entries say: the same on every replica that committed the same.

A TRIM entry takes effect when it is committed, as a producer's batch does; until then it may be truncated.
"""

from __future__ import annotations

from fluxd.core.errors import InvariantViolation
from fluxd.core.types import Offset, RaftIndex

_BEGINNING = Offset(0)


class LogStart:
    """The log start offset of one replica.

    Args:
        committed: what the entries before those that will be appended say.
    """

    __slots__ = ("_pending", "committed")

    def __init__(self, committed: Offset = _BEGINNING) -> None:
        self.committed = committed
        self._pending: list[tuple[RaftIndex, Offset]] = []

    def append(self, raft_index: RaftIndex, log_start_offset: Offset) -> None:
        """A TRIM entry was appended to the log."""
        self._pending.append((raft_index, log_start_offset))

    def truncate(self, first_removed: RaftIndex) -> None:
        """The log was cut: entries from this index on are gone."""
        while self._pending and self._pending[-1][0] >= first_removed:
            self._pending.pop()

    def commit(self, raft_index: RaftIndex, high_watermark: Offset) -> None:
        """Entries up to an index are committed. The start never falls.

        Args:
            high_watermark: after that entry.

        Raises:
            InvariantViolation: an entry moves the start behind what is committed.
        """
        while self._pending and self._pending[0][0] <= raft_index:
            index, offset = self._pending.pop(0)
            if offset > high_watermark:
                raise InvariantViolation(f"entry {index} moves the log start to {offset}, behind {high_watermark}")
            self.committed = max(self.committed, offset)
