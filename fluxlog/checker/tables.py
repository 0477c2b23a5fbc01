"""Operations in columns: one typed array per field, one row per operation."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable

from fluxlog.checker.columns import NOTHING


class Sends:
    """Rows in the order in which they were entered."""

    __slots__ = (
        "_start", "_values", "completed", "expected_offset", "invoked", "leader_epoch", "node", "offset", "outcome",
        "partition", "process",
    )  # fmt: skip

    def __init__(self) -> None:
        self.process = array("i")
        self.partition = array("i")
        self.invoked = array("d")
        self.completed = array("d")
        """Infinite while there is no answer."""
        self.outcome = array("b")
        self.offset = array("q")
        """Acknowledged base offset, or NOTHING."""
        self.leader_epoch = array("q")
        self.node = array("i")
        self.expected_offset = array("q")
        self._values = array("i")
        self._start = array("q", [0])

    def __len__(self) -> int:
        return len(self.process)

    def begin(self, process: int, partition: int, values: Iterable[int], time: float, expected_offset: int) -> int:
        """Enter a send without an answer; returns its row."""
        self.process.append(process)
        self.partition.append(partition)
        self.invoked.append(time)
        self.completed.append(math.inf)
        self.outcome.append(0)
        self.offset.append(NOTHING)
        self.leader_epoch.append(NOTHING)
        self.node.append(NOTHING)
        self.expected_offset.append(expected_offset)
        self._values.extend(values)
        self._start.append(len(self._values))
        return len(self.process) - 1

    def complete(self, row: int, time: float, outcome: int, offset: int, leader_epoch: int, node: int) -> None:
        """Enter its answer."""
        self.completed[row] = time
        self.outcome[row] = outcome
        self.offset[row] = offset
        self.leader_epoch[row] = leader_epoch
        self.node[row] = node

    def values(self, row: int) -> array[int]:
        """Ids of its values."""
        return self._values[self._start[row] : self._start[row + 1]]

    def first_value(self, row: int) -> int:
        """Id of its first value."""
        return self._values[self._start[row]]

    def count(self, row: int) -> int:
        """How many values it has."""
        return self._start[row + 1] - self._start[row]

    def values_total(self) -> int:
        """Values in all sends."""
        return len(self._values)


class Polls:
    """Rows of polls; each has runs: values at consecutive offsets of one partition."""

    __slots__ = (
        "_run_first", "_values", "_values_first", "assignment", "completed", "invoked", "outcome", "process",
        "run_offset", "run_partition",
    )  # fmt: skip

    def __init__(self) -> None:
        self.process = array("i")
        self.invoked = array("d")
        self.completed = array("d")
        self.outcome = array("b")
        self.assignment = array("i")
        """The process's newest assignment then, or NOTHING."""
        self._run_first = array("q", [0])
        self.run_partition = array("i")
        self.run_offset = array("q")
        self._values_first = array("q", [0])
        self._values = array("i")

    def __len__(self) -> int:
        return len(self.process)

    def add_run(self, partition: int, offset: int, values: Iterable[int]) -> None:
        """Enter values of the poll that `end_poll` enters."""
        self._values.extend(values)
        if len(self._values) > self._values_first[-1]:
            self.run_partition.append(partition)
            self.run_offset.append(offset)
            self._values_first.append(len(self._values))

    def end_poll(self, process: int, invoked: float, completed: float, outcome: int, assignment: int) -> None:
        """Enter a poll with the runs entered since the last one."""
        self.process.append(process)
        self.invoked.append(invoked)
        self.completed.append(completed)
        self.outcome.append(outcome)
        self.assignment.append(assignment)
        self._run_first.append(len(self.run_partition))

    def runs(self, row: int) -> range:
        """Numbers of its runs."""
        return range(self._run_first[row], self._run_first[row + 1])

    def run_values(self, run: int) -> array[int]:
        """Ids of a run's values."""
        return self._values[self._values_first[run] : self._values_first[run + 1]]

    def run_end(self, run: int) -> int:
        """One above the run's last offset."""
        return self.run_offset[run] + self._values_first[run + 1] - self._values_first[run]

    def row_of_run(self, run: int) -> int:
        """The poll that a run belongs to."""
        return bisect_right(self._run_first, run) - 1

    def values_total(self) -> int:
        """Values in all polls."""
        return len(self._values)


class Observations:
    """High watermarks as clients were told."""

    __slots__ = (
        "completed", "high_watermark", "incarnation", "invoked", "latest", "log_start_offset", "partition", "process",
    )  # fmt: skip

    def __init__(self) -> None:
        self.process = array("i")
        self.partition = array("i")
        self.high_watermark = array("q")
        self.log_start_offset = array("q")
        self.invoked = array("d")
        self.completed = array("d")
        self.latest = array("b")
        self.incarnation = array("i")
        """How often the process had crashed before."""

    def __len__(self) -> int:
        return len(self.process)

    def add(
        self,
        process: int,
        partition: int,
        high_watermark: int,
        log_start_offset: int,
        invoked: float,
        completed: float,
        latest: bool,
        incarnation: int,
    ) -> None:
        """Enter one."""
        self.process.append(process)
        self.partition.append(partition)
        self.high_watermark.append(high_watermark)
        self.log_start_offset.append(log_start_offset)
        self.invoked.append(invoked)
        self.completed.append(completed)
        self.latest.append(latest)
        self.incarnation.append(incarnation)
