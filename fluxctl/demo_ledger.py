"""What was acknowledged, and whether the log says the same."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fluxlog.delivery import BatchResult
from fluxlog.errors import FluxlogError, Outcome

Values = Sequence[bytes | None]


@dataclass(slots=True)
class Verdict:
    """Comparison of a log with the acknowledgements."""

    records: int = 0
    """In the log."""
    acknowledged: int = 0
    lost: int = 0
    """Acknowledged, and not in the log at the acknowledged offset."""
    duplicated: int = 0
    """In the log, acknowledged to nobody, and not of unknown outcome."""
    out_of_order: int = 0
    """Batches whose offset is below that of the batch sent before them."""
    unknown: int = 0
    rejected: int = 0

    @property
    def clean(self) -> bool:
        """Nothing acknowledged is missing, double or out of order."""
        return not (self.lost or self.duplicated or self.out_of_order)


class Ledger:
    """Outcomes of batches of one topic, whose contexts are their values."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._acknowledged: dict[int, list[tuple[int, Values]]] = defaultdict(list)
        self._unknown: dict[int, list[Values]] = defaultdict(list)
        self._rejected = 0
        self.count = 0
        """Records acknowledged."""
        self.last_error: FluxlogError | None = None

    def note(self, result: BatchResult) -> None:
        """Take one outcome. May be called on any thread; per producer in the order of sending."""
        with self._lock:
            if result.outcome is Outcome.COMMITTED:
                self._acknowledged[result.partition].append((result.base_offset, result.context))
                self.count += result.record_count
                return
            self.last_error = result.error
            if result.outcome is Outcome.UNKNOWN:
                self._unknown[result.partition].append(result.context)
            else:
                self._rejected += result.record_count

    def note_unclear(self, partition: int, values: Values) -> None:
        """A write that was made elsewhere, with outcome UNKNOWN."""
        with self._lock:
            self._unknown[partition].append(values)

    def compare(self, log: Mapping[int, Values], *, order_of: Sequence[Ledger] = ()) -> Verdict:
        """Compare every record at its offset.

        Args:
            log: all values of each partition, from offset 0.
            order_of: ledgers of other producers of the same topic; order is each producer's own.
        """
        everybody = (self, *order_of)
        verdict = Verdict()
        for ledger in everybody:
            verdict.acknowledged += ledger.count
            verdict.rejected += ledger._rejected
            verdict.unknown += sum(len(values) for batches in ledger._unknown.values() for values in batches)
        partitions = set(log).union(*(ledger._acknowledged for ledger in everybody))
        for partition in partitions:
            values = log.get(partition, ())
            covered = bytearray(len(values))
            for ledger in everybody:
                _compare_partition(values, ledger._acknowledged[partition], covered, verdict)
            verdict.records += len(values)
            uncovered = covered.count(0)
            unclear = {value for ledger in everybody for batch in ledger._unknown[partition] for value in batch}
            if uncovered and unclear:
                uncovered -= sum(not seen and value in unclear for seen, value in zip(covered, values, strict=True))
            verdict.duplicated += uncovered
        return verdict


def _compare_partition(
    log: Values, acknowledged: Sequence[tuple[int, Values]], covered: bytearray, verdict: Verdict
) -> None:
    previous_end = 0
    for base, values in acknowledged:
        end = base + len(values)
        if base < previous_end:
            verdict.out_of_order += 1
        previous_end = max(previous_end, end)
        found = log[base:end]
        if list(found) != list(values) or any(covered[base:end]):
            # Two acknowledgements of one offset: one of the records cannot be there.
            same = sum(
                one == other and not seen for one, other, seen in zip(found, values, covered[base:end], strict=False)
            )
            verdict.lost += len(values) - same
        covered[base:end] = b"\1" * len(found)
