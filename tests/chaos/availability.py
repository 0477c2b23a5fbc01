"""How much of the time in which the cluster could take writes did it take them?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fluxlog.checker import History, Outcome
from tests.chaos.network import CLIENTS, Link

SLOT = 0.1
_STALLS_SHOWN = 20

Change = tuple[float, frozenset[int], frozenset[Link]]
"""Since when which nodes serve, and which links are cut."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Of all partitions together."""

    quorum_seconds: float
    percent: float
    """Of slots of 100 ms with a quorum: those with an acknowledgement, partition by partition."""
    worst_stall_seconds: float
    """Longest time with a quorum in which some partition acknowledged nothing."""
    stalls: list[tuple[float, float, str]]
    """The longest ones: when, in seconds since the beginning, how many seconds, which partition."""


def has_quorum(up: Collection[int], cut: Collection[Link], members: int) -> bool:
    """Some node that clients reach is connected, both ways, with a majority (itself among it)."""

    def connected(one: int, other: int) -> bool:
        return one == other or ((one, other) not in cut and (other, one) not in cut)

    return any(connected(node, CLIENTS) and 2 * sum(connected(node, other) for other in up) > members for node in up)


def quorum_intervals(
    changes: Sequence[Change], members: int, begin: float, end: float
) -> Iterator[tuple[float, float]]:
    """When there was a quorum, between begin and end; neighbouring intervals are one."""
    since: float | None = None
    for (at, up, cut), (until, _, _) in pairwise([*changes, (end, frozenset(), frozenset())]):
        if has_quorum(up, cut, members) and until > begin and at < end:
            since = max(at, begin) if since is None else since
        elif since is not None:
            yield since, min(at, end)
            since = None
    if since is not None:
        yield since, end


def measure(history: History, changes: Sequence[Change], members: int, begin: float, end: float) -> Availability:
    """From the acknowledgements in a history.

    Args:
        members: nodes; each partition is on all of them.
    """
    intervals = list(quorum_intervals(changes, members, begin, end))
    acknowledged: list[list[float]] = [[] for _ in history.partitions]
    sends = history.sends
    for partition, completed, outcome in zip(sends.partition, sends.completed, sends.outcome, strict=True):
        if outcome == Outcome.OK:
            acknowledged[partition].append(completed)
    slots = served = 0
    stalls: list[tuple[float, float, str]] = []
    for name, times in zip(history.partitions, acknowledged, strict=True):
        times.sort()
        for since, until in intervals:
            inside = times[bisect_left(times, since) : bisect_left(times, until)]
            whole = int((until - since) / SLOT)
            slots += whole
            served += len({int((time - since) / SLOT) for time in inside} & set(range(whole)))
            for one, other in pairwise([since, *inside, until]):
                stalls.append((round(one - begin, 3), round(other - one, 3), name))
    seconds = sum(until - since for since, until in intervals)
    stalls = sorted(stalls, key=lambda stall: -stall[1])[:_STALLS_SHOWN]
    return Availability(seconds, 100 * served / max(1, slots), stalls[0][1] if stalls else 0.0, stalls)
