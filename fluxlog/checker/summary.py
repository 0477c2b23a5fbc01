"""What a history looked like: counts, stalls, lag, and the pattern of what was lost. Nothing here is an error."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Json
from fluxlog.checker.history import Outcome
from fluxlog.checker.index import Index
from fluxlog.checker.rules.writes import missing


def summarize(index: Index) -> Json:
    """Counts of everything, worst stall and lag in seconds, and what was lost and from where."""
    history = index.history
    outcomes = Counter(history.sends.outcome)
    lost = list(missing(index))
    return {
        "sends": {outcome.name.lower(): outcomes[outcome] for outcome in Outcome},
        "records_sent": history.sends.values_total(),
        "polls": len(history.polls),
        "records_polled": history.polls.values_total(),
        "records_in_logs": sum(log.count(0, log.end) for log in index.logs),
        "processes": len(history.processes),
        "partitions": len(history.partitions),
        "crashes": history.crashes,
        "lost": sum(is_lost for _, is_lost in lost),
        "unread": sum(not is_lost for _, is_lost in lost),
        "unknown_and_written": _unknown_and_written(index),
        "lost_by_writer": _patterns(index, {value.send for value, _ in lost}),
        "lost_by_node": dict(Counter(_node(index, value.send) for value, _ in lost)),
        "longest_stall": _longest_stall(index),
        "worst_lag": _worst_lag(index),
    }


def _node(index: Index, send: int) -> str:
    node = index.history.sends.node[send]
    return "unknown" if node == NOTHING else str(node)


def _unknown_and_written(index: Index) -> int:
    """Sends without an answer that were found in the log."""
    sends = index.history.sends
    return sum(
        offset != NOTHING and outcome == Outcome.UNKNOWN
        for offset, outcome in zip(index.offset_of_send, sends.outcome, strict=True)
    )


def _patterns(index: Index, lost: set[int]) -> list[Json]:
    """For each writer and partition that lost something: was it the first, the last, or some of its sends?"""
    sends = index.history.sends
    writers = {(sends.process[row], sends.partition[row]) for row in lost}
    acknowledged: dict[tuple[int, int], list[bool]] = defaultdict(list)
    for row, key in enumerate(zip(sends.process, sends.partition, strict=True)):
        if key in writers and sends.outcome[row] == Outcome.OK:
            acknowledged[key].append(row in lost)
    return [
        {
            "process": index.process_names[process],
            "partition": index.partition_names[partition],
            "lost": sum(flags),
            "acknowledged": len(flags),
            "pattern": _pattern(flags),
        }
        for (process, partition), flags in sorted(acknowledged.items())
    ]


def _pattern(lost: Sequence[bool]) -> str:
    """all, prefix, postfix or middle; a writer whose losses are scattered is "middle" too."""
    first, count = lost.index(True), sum(lost)
    if count == len(lost):
        return "all"
    if not any(lost[count:]):
        return "prefix"
    return "postfix" if first == len(lost) - count else "middle"


def _longest_stall(index: Index) -> Json:
    """Longest time without an acknowledgement, from the first send's beginning to the last send's end."""
    sends = index.history.sends
    if not len(sends):
        return {"seconds": 0.0, "from": 0.0}
    ends = (time for time, outcome in zip(sends.completed, sends.outcome, strict=True) if outcome == Outcome.OK)
    times = array("d", sorted((min(sends.invoked), *ends)))
    times.append(max(times[-1], max(sends.invoked)))
    worst, began = 0.0, times[0]
    for before, after in pairwise(times):
        if after - before > worst:
            worst, began = after - before, before
    return {"seconds": worst, "from": began}


def _worst_lag(index: Index) -> Json:
    """Longest time for which a record was acknowledged, assigned to a reader, and not yet polled by it.

    Looked at each time a reader gets on: how old was then the oldest acknowledgement at or above its position.
    """
    polls, assignments = index.history.polls, index.history.assignments
    oldest = [_Oldest(index, partition) for partition in range(len(index.logs))]
    positions: dict[tuple[int, int], int] = {}
    worst, where = 0.0, (NOTHING, NOTHING, NOTHING)
    for row, (number, invoked) in enumerate(zip(polls.assignment, polls.invoked, strict=True)):
        if number == NOTHING:
            continue
        for run in polls.runs(row):
            partition = polls.run_partition[run]
            position = positions.get((number, partition), polls.run_offset[run])
            positions[number, partition] = polls.run_end(run)
            lag = invoked - max(oldest[partition].at(position), assignments[number].time)
            if lag > worst:
                worst, where = lag, (number, partition, position)
    if not worst:
        return {"seconds": 0.0}
    number, partition, position = where
    return {
        "seconds": worst,
        "process": index.process_names[assignments[number].process],
        "partition": index.partition_names[partition],
        "offset": position,
    }


class _Oldest:
    """Earliest acknowledgement at or above an offset of a partition."""

    def __init__(self, index: Index, partition: int) -> None:
        sends = index.history.sends
        rows = index.acknowledged[partition]
        self._lasts = array("q", [sends.offset[row] + sends.count(row) - 1 for row in rows])
        self._times = array("d", [sends.completed[row] for row in rows])
        for position in range(len(rows) - 2, -1, -1):
            self._times[position] = min(self._times[position], self._times[position + 1])

    def at(self, offset: int) -> float:
        position = bisect_left(self._lasts, offset)
        return self._times[position] if position < len(self._times) else float("inf")
