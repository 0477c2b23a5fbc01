"""The log start of one replica, and the leader's part in moving it.

A leader proposes a TRIM entry; it is in force on every replica when it is committed there. What lies before the start
is then let go of by each replica for itself (`housekeeping.py`), when a snapshot says so durably.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxd.core.entry import EntryKind, Stamp, read_trim
from fluxd.core.errors import FluxError, Reason
from fluxd.core.log_start import LogStart
from fluxd.core.types import Offset, RaftIndex
from fluxd.storage.log import PartitionLog

TrimDone = Callable[[FluxError | None], None]


class Trimming:
    """See the module.

    Args:
        log: its `log_start_offset` follows what is committed.

    Attributes:
        moved: the start moved since somebody last looked.
    """

    def __init__(self, log: PartitionLog, log_start: LogStart) -> None:
        self._log, self._log_start = log, log_start
        self._waiting: list[tuple[Offset, TrimDone]] = []
        self._proposed = Offset(0)
        self.moved = True

    @property
    def wanted(self) -> Offset | None:
        """What a leader should propose now; None: nothing."""
        highest = max((offset for offset, _ in self._waiting), default=Offset(0))
        return highest if highest > max(self._proposed, self._log_start.committed) else None

    def ask(self, offset: Offset, done: TrimDone) -> None:
        """Have a leader propose a start, at most the high watermark; `done` is called once, when it is in force."""
        if offset <= self._log_start.committed:
            done(None)
        else:
            self._waiting.append((offset, done))

    def proposed(self, offset: Offset) -> None:
        """A TRIM entry with that start is in the leader's log."""
        self._proposed = offset

    def appended(self, frame: bytes, stamp: Stamp) -> None:
        """An entry was appended."""
        if stamp.kind is EntryKind.TRIM:
            self._log_start.append(stamp.raft_index, read_trim(frame))

    def truncate(self, first_removed: RaftIndex) -> None:
        """Entries were removed."""
        self._log_start.truncate(first_removed)

    def commit(self, commit_index: RaftIndex, high_watermark: Offset) -> list[TrimDone]:
        """Entries up to an index are committed. Returns who is to be told that what he asked for is in force."""
        self._log_start.commit(commit_index, high_watermark)
        start = self._log_start.committed
        if start == self._log.log_start_offset:
            return []
        self._log.log_start_offset = start
        self.moved = True
        done = [callback for offset, callback in self._waiting if offset <= start]
        self._waiting = [(offset, callback) for offset, callback in self._waiting if offset > start]
        return done

    def leadership_ended(self, why: str) -> list[tuple[TrimDone, FluxError]]:
        """Returns who is to be told what instead."""
        waiting, self._waiting = self._waiting, []
        proposed, self._proposed = self._proposed, Offset(0)
        unknown = FluxError(Reason.OUTCOME_UNKNOWN, f"{why} while the log start was being moved")
        rejected = FluxError(Reason.NOT_LEADER, f"{why} before the log start was moved")
        return [(done, unknown if offset <= proposed else rejected) for offset, done in waiting]
