"""What became of each line: counted, and what failed named by line numbers."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from fluxctl.exits import ExitCode, exit_code_of
from fluxctl.failed_lines import FailedLines
from fluxlog.delivery import BatchResult
from fluxlog.errors import Outcome

_RANGES_SHOWN = 8


@dataclass(slots=True)
class PartitionTally:
    """Acknowledged lines of one partition."""

    lines: int = 0
    batches: int = 0
    first_offset: int = -1
    next_offset: int = 0
    """One above the last acknowledged offset."""
    copies_min: int = 0
    duplicates: int = 0
    elapsed_ms_max: float = 0.0


@dataclass(slots=True)
class Failure:
    """Lines that share an outcome and a reason."""

    outcome: Outcome
    reason: str
    message: str
    numbers: array[int] = field(default_factory=lambda: array("Q"))


@dataclass(frozen=True, slots=True)
class SentLines:
    """What a batch held: the context of its result."""

    numbers: list[int]
    lines: list[bytes]
    """As they were read, for the file of failed lines."""


class Tally:
    """Outcomes of lines. `note` is called on the sender's thread, everything else after the end.

    Args:
        failed_lines: keeps the lines themselves; closed by whom it belongs to.
    """

    def __init__(self, failed_lines: FailedLines | None = None) -> None:
        self.partitions: dict[int, PartitionTally] = {}
        self.failures: dict[tuple[Outcome, str], Failure] = {}
        self.acknowledged = 0
        self._failed_lines = failed_lines
        self._lock = threading.Lock()

    def note(self, result: BatchResult) -> None:
        """Count one batch."""
        sent: SentLines = result.context
        with self._lock:
            if result.outcome is Outcome.COMMITTED:
                self._note_committed(result)
                return
            error = result.error
            reason, message = (error.reason, error.message) if error else ("NO_ANSWER", "no answer")
            self._fail(result.outcome, reason, message, sent.numbers, sent.lines)

    def refuse(self, reason: str, message: str, numbers: list[int], lines: list[bytes]) -> None:
        """Count lines that were not sent at all."""
        with self._lock:
            self._fail(Outcome.REJECTED, reason, message, numbers, lines)

    def count(self, outcome: Outcome) -> int:
        """Lines with this outcome."""
        if outcome is Outcome.COMMITTED:
            return self.acknowledged
        return sum(len(failure.numbers) for failure in self.failures.values() if failure.outcome is outcome)

    @property
    def exit_code(self) -> ExitCode:
        """0, 3 or 4."""
        return exit_code_of({failure.outcome for failure in self.failures.values()})

    def _note_committed(self, result: BatchResult) -> None:
        partition = self.partitions.setdefault(result.partition, PartitionTally())
        if partition.first_offset < 0:
            partition.first_offset, partition.copies_min = result.base_offset, result.copies_on_disk
        partition.lines += result.record_count
        partition.batches += 1
        partition.next_offset = result.base_offset + result.record_count
        partition.copies_min = min(partition.copies_min, result.copies_on_disk)
        partition.duplicates += result.duplicate
        partition.elapsed_ms_max = max(partition.elapsed_ms_max, result.elapsed_ms)
        self.acknowledged += result.record_count

    def _fail(self, outcome: Outcome, reason: str, message: str, numbers: list[int], lines: list[bytes]) -> None:
        failure = self.failures.setdefault((outcome, reason), Failure(outcome, reason, message))
        failure.numbers.extend(numbers)
        if self._failed_lines is not None:
            self._failed_lines.keep(outcome, lines)


def line_ranges(numbers: Iterable[int]) -> str:
    """ "1-3, 7, 9-12", cut off after some."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_RANGES_SHOWN]]
    if len(ranges) > _RANGES_SHOWN:
        shown.append(f"… ({len(ranges) - _RANGES_SHOWN} more ranges)")
    return ", ".join(shown)
