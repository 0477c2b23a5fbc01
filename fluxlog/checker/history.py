"""The history of a run: what clients asked for, when, and what they were told.

A send is entered when it begins and completed when its answer comes; one that is never completed has an unknown
outcome, as has everything under way when a client is killed. Times are seconds of one monotonic clock that all clients
share (where they do not, `check` is told how far the clocks may differ). Each process's operations are entered in the
order in which it began them; processes may come in any order, for instance one file after another.

Not thread-safe: concurrent clients write JSON lines each (`jsonl.Writer`), or share a lock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from fluxlog.checker.columns import NOTHING, Names
from fluxlog.checker.tables import Observations, Polls, Sends

OFFSET_MAX = 2**62


class HistoryError(ValueError):
    """What was recorded cannot be a history: a mistake of the recorder, not of the cluster."""


class Outcome(IntEnum):
    """What became of an operation. A send's OK, FAIL, UNKNOWN are COMMITTED, REJECTED, UNKNOWN."""

    UNKNOWN = 0
    """It may have been done, or may still be."""
    OK = 1
    FAIL = 2
    """Surely not done, and never will be."""


class Phase(StrEnum):
    """Parts of a run. Before the first mark is START. Faults and healing may alternate; the final read comes once."""

    START = "start"
    FAULTS = "faults"
    HEAL = "heal"
    FINAL_READ = "final_read"
    """Nothing is sent any more; every reader reads from the beginning to the highest offset that anybody saw."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """From when on a process reads what. An empty one stands for a crash."""

    process: int
    time: float
    positions: Mapping[int, int | None]
    """By partition: offset of the first record it asked for; None when it is not known, as after a rebalance."""


@dataclass(frozen=True, slots=True)
class ReplicaEnd:
    """The end of one replica's log."""

    partition: int
    node: int
    high_watermark: int
    checksum: int
    time: float


@dataclass(slots=True)
class History:
    """Everything that was recorded.

    Names of processes and partitions are any text ("w1", "orders-3"). A value is a text that occurs once in the whole
    run; for large records record a digest.
    """

    processes: Names = field(default_factory=Names)
    partitions: Names = field(default_factory=Names)
    values: Names = field(default_factory=Names)
    sends: Sends = field(default_factory=Sends)
    polls: Polls = field(default_factory=Polls)
    observations: Observations = field(default_factory=Observations)
    assignments: list[Assignment] = field(default_factory=list)
    replica_ends: list[ReplicaEnd] = field(default_factory=list)
    phases: list[tuple[float, Phase]] = field(default_factory=list)
    unordered: set[int] = field(default_factory=set)
    """Processes whose overlapping sends may be appended in any order."""
    crashes: int = 0
    _current: dict[int, int] = field(default_factory=dict)
    """Each process's newest assignment."""
    _incarnations: dict[int, int] = field(default_factory=dict)
    """How often each process crashed."""

    # ------------------------------------------------------------------ writing
    def send(
        self, process: str, partition: str, values: Sequence[str], time: float, *, expected_offset: int | None = None
    ) -> int:
        """A send begins.

        Args:
            values: what is appended together: one record or one batch, at least one.
            time: before the request leaves.
            expected_offset: the only base offset that the sender accepts.

        Returns:
            Its number, for `sent`.

        Raises:
            HistoryError: no values, or one text where a sequence belongs.
        """
        if not values or isinstance(values, str):
            raise HistoryError(f"a send has a sequence of at least one value, not {values!r}")
        expected = NOTHING if expected_offset is None else _offset(expected_offset)
        return self.sends.begin(
            self.processes[process], self.partitions[partition], map(self.values.__getitem__, values), time, expected
        )

    def sent(
        self,
        send: int,
        time: float,
        outcome: Outcome,
        *,
        offset: int | None = None,
        leader_epoch: int | None = None,
        node: int | None = None,
    ) -> None:
        """A send's answer came. One answer per send, over all its retries.

        Args:
            send: its number.
            time: after the answer arrived, or when the client gave up.
            offset: of its first value; with OK.
            leader_epoch: in which it was appended.
            node: that led in this epoch; None also where a later leader recognised a duplicate.

        Raises:
            HistoryError: no such send, answered before, or OK without an offset.
        """
        if not 0 <= send < len(self.sends):
            raise HistoryError(f"no send has number {send}")
        if not math.isinf(self.sends.completed[send]):
            raise HistoryError(f"send {send} was completed before")
        if outcome is Outcome.OK and offset is None:
            raise HistoryError(f"send {send} is OK without an offset")
        where = NOTHING if offset is None or outcome is not Outcome.OK else _offset(offset)
        self.sends.complete(
            send, time, outcome, where, NOTHING if leader_epoch is None else leader_epoch,
            NOTHING if node is None else node,
        )  # fmt: skip

    def declare_unordered(self, process: str) -> None:
        """This process sends without sequence numbers and does not wait for answers."""
        self.unordered.add(self.processes[process])

    # ------------------------------------------------------------------ reading
    def poll(
        self,
        process: str,
        invoked: float,
        completed: float,
        records: Iterable[tuple[str, int, str]],
        outcome: Outcome = Outcome.OK,
    ) -> None:
        """One poll, with its (partition, offset, value) in the order of delivery."""
        runs: list[tuple[str, int, list[str]]] = []
        last, following, values = "", NOTHING, [""]
        for partition, offset, value in records:
            if offset == following and partition == last:
                values.append(value)
            else:
                values = [value]
                runs.append((partition, offset, values))
            last, following = partition, offset + 1
        self.poll_runs(process, invoked, completed, runs, outcome)

    def poll_runs(
        self,
        process: str,
        invoked: float,
        completed: float,
        runs: Iterable[tuple[str, int, Sequence[str]]],
        outcome: Outcome = Outcome.OK,
    ) -> None:
        """The same, with values at consecutive offsets together: (partition, offset of the first, values)."""
        number, runs = self.processes[process], list(runs)
        for _, offset, values in runs:
            _offset(_offset(offset) + len(values))
        for partition, offset, values in runs:
            self.polls.add_run(self.partitions[partition], offset, map(self.values.__getitem__, values))
        self.polls.end_poll(number, invoked, completed, outcome, self._current.get(number, NOTHING))

    def assign(self, process: str, positions: Mapping[str, int | None], time: float) -> None:
        """From now on a process reads these partitions only. A rebalance is an assignment too.

        Args:
            positions: first offset asked for (0 for "from the beginning"); None when only the group or the server
                knows it: then this reader is judged from its first record on.
        """
        numbers = {self.partitions[name]: where for name, where in positions.items()}
        self._assign(Assignment(self.processes[process], time, numbers))

    def crash(self, process: str, time: float) -> None:
        """A client is thrown away with all that it knew; its name may be used again."""
        number = self.processes[process]
        self.crashes += 1
        self._incarnations[number] = self._incarnations.get(number, 0) + 1
        self._assign(Assignment(number, time, {}))

    def _assign(self, assignment: Assignment) -> None:
        self._current[assignment.process] = len(self.assignments)
        self.assignments.append(assignment)

    # ------------------------------------------------------------------ the cluster as clients see it
    def watermark(
        self,
        process: str,
        partition: str,
        high_watermark: int,
        invoked: float,
        completed: float,
        *,
        log_start_offset: int = 0,
        latest: bool = False,
    ) -> None:
        """A client was told how far a partition goes.

        Args:
            high_watermark: exclusive.
            log_start_offset: of the same answer: what lies below may be missing.
            latest: the answer promised to cover everything that was acknowledged before the question.
        """
        number = self.processes[process]
        self.observations.add(
            number, self.partitions[partition], _offset(high_watermark), _offset(log_start_offset), invoked, completed,
            latest, self._incarnations.get(number, 0),
        )  # fmt: skip

    def replica(self, partition: str, node: int, high_watermark: int, checksum: int, time: float) -> None:
        """A replica's end, and the checksum of its whole log up to there. The newest of each replica counts."""
        self.replica_ends.append(ReplicaEnd(self.partitions[partition], node, _offset(high_watermark), checksum, time))

    def phase(self, phase: Phase, time: float) -> None:
        """A part of the run begins."""
        self.phases.append((time, phase))
        self.phases.sort()


def _offset(offset: int) -> int:
    if not 0 <= offset <= OFFSET_MAX:
        raise HistoryError(f"offset {offset} is not in 0..{OFFSET_MAX}")
    return offset
