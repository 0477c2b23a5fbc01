"""What all polls say together: one log per partition, who contradicts it, and who jumped.

One pass over the polls, by slices: a run that says what others said before costs one comparison.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from fluxlog.checker.columns import NOTHING, OffsetMap
from fluxlog.checker.history import Assignment, History


class Conflict(NamedTuple):
    """A poll returned another value at an offset than an earlier one."""

    poll: int
    partition: int
    offset: int
    value: int


class Jump(NamedTuple):
    """A reader was given another offset than the one after its last record."""

    poll: int
    partition: int
    expected: int
    offset: int
    previous: int
    """The poll that delivered up to `expected`, or NOTHING: it was the reader's start position."""


class Place(NamedTuple):
    """A value that was read somewhere."""

    value: int
    partition: int
    offset: int


def merge(history: History) -> tuple[list[OffsetMap], list[Conflict], list[Jump]]:
    """All polls as one log per partition, with contradictions and jumps in the order of the polls."""
    logs = [OffsetMap() for _ in history.partitions]
    conflicts: list[Conflict] = []
    jumps: list[Jump] = []
    polls, readers = history.polls, _Readers(history.assignments)
    for row, (process, assignment) in enumerate(zip(polls.process, polls.assignment, strict=True)):
        positions = readers.positions(process, assignment)
        for run in polls.runs(row):
            partition, offset, ids = polls.run_partition[run], polls.run_offset[run], polls.run_values(run)
            position = positions.get(partition)
            if position is not None and position[0] != offset:
                jumps.append(Jump(row, partition, position[0], offset, position[1]))
            positions[partition] = offset + len(ids), row
            different = logs[partition].put(offset, ids)
            if different:
                conflicts += [Conflict(row, partition, offset + position, ids[position]) for position in different]
    return logs, conflicts, jumps


class _Readers:
    """Each process's next offset and the poll that made it so, by partition; forgotten with every assignment."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._current: dict[int, tuple[int, dict[int, tuple[int, int]]]] = {}

    def positions(self, process: int, assignment: int) -> dict[int, tuple[int, int]]:
        known, positions = self._current.get(process, (NOTHING - 1, {}))
        if known != assignment:
            given = self._assignments[assignment].positions if assignment != NOTHING else {}
            positions = {partition: (at, NOTHING) for partition, at in given.items() if at is not None}
            self._current[process] = assignment, positions
        return positions


def find_places(
    logs: Sequence[OffsetMap], conflicts: Sequence[Conflict], home: array[int]
) -> tuple[array[int], list[Place], list[Place]]:
    """Where each value was read.

    Args:
        home: partition that each value was sent to, or NOTHING.

    Returns:
        Offset by value id (NOTHING: not read in its partition); further places of the same value; and places where
        nobody sent the value to.
    """
    found = array("q", [NOTHING]) * len(home)
    again: list[Place] = []
    strange: list[Place] = []
    for partition, log in enumerate(logs):
        for offset, value in log:
            if home[value] != partition:
                strange.append(Place(value, partition, offset))
            elif found[value] == NOTHING:
                found[value] = offset
            else:
                again.append(Place(value, partition, offset))
    for _, partition, offset, value in dict.fromkeys(conflict._replace(poll=0) for conflict in conflicts):
        if home[value] != partition:
            strange.append(Place(value, partition, offset))
        elif found[value] == NOTHING:
            found[value] = offset
        elif found[value] != offset:
            again.append(Place(value, partition, offset))
    return found, again, strange
