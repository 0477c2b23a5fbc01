"""What a rule found, and the few operations that prove it."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.history import History, Outcome

Json = dict[str, object]


class SendRef(NamedTuple):
    """A send."""

    row: int


class ReadRef(NamedTuple):
    """A poll that returned a value at an offset. With row NOTHING: the first one that did."""

    partition: int
    offset: int
    value: int
    row: int = NOTHING


class PollRef(NamedTuple):
    """A poll, for what it returned of one partition."""

    row: int
    partition: int


class WatermarkRef(NamedTuple):
    """An observation of a high watermark."""

    row: int


class ReplicaRef(NamedTuple):
    """A replica's end, by its position in the history."""

    row: int


Ref = SendRef | ReadRef | PollRef | WatermarkRef | ReplicaRef


@dataclass(frozen=True, slots=True)
class Finding:
    """One anomaly.

    Attributes:
        message: condition, values and boundary.
        evidence: the operations without which it could not be said.
    """

    message: str
    evidence: tuple[Ref, ...]


class Witnesses:
    """Shows operations, and finds the poll that returned a value. Sorts when first asked: most histories are clean."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._processes = list(history.processes)
        self._partitions = list(history.partitions)
        self._values = list(history.values)
        self._runs: dict[int, tuple[list[int], list[int], int]] = {}

    def show(self, ref: Ref) -> Json:
        """An operation as JSON, times in seconds of the history's clock."""
        match ref:
            case SendRef(row):
                return self._send(row)
            case ReadRef(partition, offset, value, row):
                row = self._reader(partition, offset, value) if row == NOTHING else row
                where: Json = {"partition": self._partitions[partition], "offset": offset, "value": self._values[value]}
                return self._poll(row) | where
            case PollRef(row, partition):
                return self._poll(row) | {
                    "partition": self._partitions[partition],
                    "offsets": self._ranges(row, partition),
                }
            case WatermarkRef(row):
                return self._watermark(row)
            case ReplicaRef(row):
                return self._replica(row)

    def _send(self, row: int) -> Json:
        sends = self._history.sends
        completed = sends.completed[row]
        shown: Json = {
            "op": "send",
            "process": self._processes[sends.process[row]],
            "partition": self._partitions[sends.partition[row]],
            "values": [self._values[value] for value in sends.values(row)[:3]],
            "count": sends.count(row),
            "invoked": sends.invoked[row],
            "completed": None if math.isinf(completed) else completed,
            "outcome": Outcome(sends.outcome[row]).name.lower(),
        }
        optional = {
            "offset": sends.offset[row], "leader_epoch": sends.leader_epoch[row], "node": sends.node[row],
            "expected_offset": sends.expected_offset[row],
        }  # fmt: skip
        return shown | {name: number for name, number in optional.items() if number != NOTHING}

    def _poll(self, row: int) -> Json:
        polls = self._history.polls
        return {
            "op": "poll", "process": self._processes[polls.process[row]], "invoked": polls.invoked[row],
            "completed": polls.completed[row],
        }  # fmt: skip

    def _ranges(self, row: int, partition: int) -> list[list[int]]:
        """[first, last + 1] of what the poll returned of a partition, at most four."""
        polls = self._history.polls
        runs = [run for run in polls.runs(row) if polls.run_partition[run] == partition]
        return [[polls.run_offset[run], polls.run_end(run)] for run in runs[:4]]

    def _watermark(self, row: int) -> Json:
        observed = self._history.observations
        return {
            "op": "watermark",
            "process": self._processes[observed.process[row]],
            "partition": self._partitions[observed.partition[row]],
            "high_watermark": observed.high_watermark[row],
            "log_start_offset": observed.log_start_offset[row],
            "latest": bool(observed.latest[row]),
            "invoked": observed.invoked[row],
            "completed": observed.completed[row],
        }

    def _replica(self, row: int) -> Json:
        end = self._history.replica_ends[row]
        return {
            "op": "replica", "partition": self._partitions[end.partition], "node": end.node,
            "high_watermark": end.high_watermark, "checksum": end.checksum, "time": end.time,
        }  # fmt: skip

    # ------------------------------------------------------------------ who read it
    def _reader(self, partition: int, offset: int, value: int) -> int:
        """Row of the first poll that returned this value there."""
        if partition not in self._runs:
            self._runs[partition] = self._sort(partition)
        runs, offsets, longest = self._runs[partition]
        polls = self._history.polls
        near = runs[bisect_left(offsets, offset - longest + 1) : bisect_left(offsets, offset + 1)]
        return min(
            polls.row_of_run(run)
            for run in near
            if offset < polls.run_end(run) and polls.run_values(run)[offset - polls.run_offset[run]] == value
        )

    def _sort(self, partition: int) -> tuple[list[int], list[int], int]:
        """Runs of a partition and their offsets, both by offset, and the length of the longest."""
        polls = self._history.polls
        runs = [run for run, number in enumerate(polls.run_partition) if number == partition]
        runs.sort(key=polls.run_offset.__getitem__)
        longest = max(polls.run_end(run) - polls.run_offset[run] for run in runs)
        return runs, [polls.run_offset[run] for run in runs], longest
