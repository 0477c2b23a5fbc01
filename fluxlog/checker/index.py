"""A history as the rules look at it: computed once, near linear in its length, and shared by all of them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.history import History, HistoryError, Outcome, Phase
from fluxlog.checker.reads import find_places, merge


class Unconfirmed(NamedTuple):
    """An acknowledged value that no poll returned at the acknowledged offset."""

    send: int
    value: int
    offset: int
    read: int
    """The value that polls returned there, or NOTHING."""


class Index:
    """What many rules need.

    Args:
        clock_error: seconds by which the clocks of two processes may differ.

    Raises:
        HistoryError: a value was sent twice.
    """

    def __init__(self, history: History, clock_error: float = 0.0) -> None:
        self.history = history
        self.clock_error = clock_error
        self.partition_names = list(history.partitions)
        self.process_names = list(history.processes)
        self.value_names = list(history.values)
        self.sender = self._senders()
        """Send of each value, or NOTHING."""
        home = array("i", [NOTHING if row == NOTHING else history.sends.partition[row] for row in self.sender])
        self.logs, self.conflicts, self.jumps = merge(history)
        self.place, self.again, self.strange = find_places(self.logs, self.conflicts, home)
        self.log_start = self._log_starts()
        """Highest known log start of each partition: what lies below may be missing."""
        self.high_watermark = self._high_watermarks()
        """Highest observed one of each partition, exclusive."""
        self.offset_of_send, self.by_offset = self._by_offset()
        """Where each send is: acknowledged, or of unknown outcome and read; NOTHING: nobody knows. And for each
        partition the sends whose offset is known, by offset."""
        self.acknowledged = self._acknowledged()
        """For each partition, its acknowledged sends by offset."""
        self.acknowledged_end = self._acknowledged_ends()
        """One above the highest acknowledged offset of each partition."""
        self.unconfirmed = list(self._unconfirmed())

    def _senders(self) -> array[int]:
        sends = self.history.sends
        sender = array("i", [NOTHING]) * len(self.history.values)
        for row in range(len(sends)):
            for value in sends.values(row):
                if sender[value] != NOTHING:
                    raise HistoryError(f"{self.value_names[value]!r} was sent twice: values must be unique")
                sender[value] = row
        return sender

    def _log_starts(self) -> list[int]:
        observed, starts = self.history.observations, [0] * len(self.partition_names)
        for partition, start in zip(observed.partition, observed.log_start_offset, strict=True):
            starts[partition] = max(starts[partition], start)
        return starts

    def _high_watermarks(self) -> list[int]:
        observed, ends = self.history.observations, [0] * len(self.partition_names)
        for partition, end in zip(observed.partition, observed.high_watermark, strict=True):
            ends[partition] = max(ends[partition], end)
        return ends

    def _by_offset(self) -> tuple[array[int], list[array[int]]]:
        sends = self.history.sends
        offsets = array("q", sends.offset)
        rows: list[list[int]] = [[] for _ in self.partition_names]
        for row, (partition, outcome) in enumerate(zip(sends.partition, sends.outcome, strict=True)):
            if outcome == Outcome.UNKNOWN:
                offsets[row] = self.place[sends.first_value(row)]
            if offsets[row] != NOTHING:
                rows[partition].append(row)
        return offsets, [array("i", sorted(some, key=offsets.__getitem__)) for some in rows]

    def _acknowledged(self) -> list[array[int]]:
        outcome = self.history.sends.outcome
        return [array("i", [row for row in rows if outcome[row] == Outcome.OK]) for rows in self.by_offset]

    def _acknowledged_ends(self) -> list[int]:
        sends = self.history.sends
        return [max((sends.offset[row] + sends.count(row) for row in rows), default=0) for rows in self.acknowledged]

    def _unconfirmed(self) -> Iterator[Unconfirmed]:
        sends = self.history.sends
        for log, rows in zip(self.logs, self.acknowledged, strict=True):
            for row in rows:
                ids, offset = sends.values(row), sends.offset[row]
                if log.holds(offset, ids):
                    continue
                for position, value in enumerate(ids):
                    read = log.get(offset + position)
                    if read != value:
                        yield Unconfirmed(row, value, offset + position, read)

    # ------------------------------------------------------------------ the last phase
    @property
    def final_read_began(self) -> float:
        """Time of the last phase's mark; infinite when there is none."""
        return min((time for time, phase in self.history.phases if phase is Phase.FINAL_READ), default=math.inf)

    def target(self, partition: int) -> int:
        """One above the highest offset that anybody knew of."""
        return max(self.acknowledged_end[partition], self.logs[partition].end, self.high_watermark[partition])

    # ------------------------------------------------------------------ names, for messages
    def at(self, partition: int, offset: int) -> str:
        """ "orders-3 at 41"."""
        return f"{self.partition_names[partition]} at {offset}"

    def value(self, number: int) -> str:
        """A value, quoted, at most 60 characters of it."""
        return repr(self.value_names[number][:60])
