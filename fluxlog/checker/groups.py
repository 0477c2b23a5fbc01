"""Judges what consumer groups did: were records skipped, partitions owned twice, committed offsets lost?

    group = GroupHistory("billing")
    group.owned("c1", "orders-0", 17, time.monotonic())
    group.delivered("c1", "orders-0", 0, 3, time.monotonic())
    group.committed("orders-0", 3, began, time.monotonic())
    verdict = check_group(group)

Pure, like the rest of the checker. One history is one group's. Times are seconds of one monotonic clock.

What a group may do is deliver again; how often it did is said, not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Owned:
    """A member was told that a partition is its own."""

    process: str
    partition: str
    generation: int
    time: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """A member was given records first..end-1, at consecutive offsets."""

    process: str
    partition: str
    first: int
    end: int
    time: float


@dataclass(frozen=True, slots=True)
class Committed:
    """Somebody was told what is committed: the answer to a commit, or to the question."""

    partition: str
    offset: int
    invoked: float
    completed: float


@dataclass(slots=True)
class GroupHistory:
    """Everything that was recorded of one group."""

    group: str
    ownerships: list[Owned] = field(default_factory=list)
    deliveries: list[Delivered] = field(default_factory=list)
    commits: list[Committed] = field(default_factory=list)
    resets: list[tuple[str, float]] = field(default_factory=list)
    """Partition, and when its offset was set back on purpose: rewound or reset."""

    def owned(self, process: str, partition: str, generation: int, time: float) -> None:
        """A partition was assigned in a generation."""
        self.ownerships.append(Owned(process, partition, generation, time))

    def delivered(self, process: str, partition: str, offset: int, count: int, time: float) -> None:
        """Records were handed out."""
        if count > 0:
            self.deliveries.append(Delivered(process, partition, offset, offset + count, time))

    def committed(self, partition: str, offset: int, invoked: float, completed: float) -> None:
        """What is committed, as an answer said."""
        self.commits.append(Committed(partition, offset, invoked, completed))

    def reset(self, partition: str, time: float) -> None:
        """The committed offset was set back on purpose; before the request left."""
        self.resets.append((partition, time))


@dataclass(frozen=True, slots=True)
class GroupVerdict:
    """What was found.

    Attributes:
        errors: rule and what broke it, in words with the smallest evidence.
        redelivered: records that were delivered more than once, counting each time after the first.
        delivered: different records.
    """

    errors: list[tuple[str, str]]
    redelivered: int
    delivered: int

    @property
    def valid(self) -> bool:
        """No promise was broken, and something was delivered."""
        return not self.errors and self.delivered > 0


def check_group(history: GroupHistory) -> GroupVerdict:
    """Judge a group's history."""
    errors = [(name, message) for name, find in GROUP_RULES.items() for message in find(history)]
    covered = {partition: _union(history, partition) for partition in _partitions(history)}
    distinct = sum(end - first for ranges in covered.values() for first, end in ranges)
    total = sum(each.end - each.first for each in history.deliveries)
    return GroupVerdict(errors, total - distinct, distinct)


def two_owners(history: GroupHistory) -> Iterator[str]:
    """Two members were given a partition in one generation."""
    first: dict[tuple[str, int], Owned] = {}
    for each in history.ownerships:
        known = first.setdefault((each.partition, each.generation), each)
        if known.process != each.process:
            yield (
                f"{each.partition}, generation {each.generation}: owned by {known.process} (at {known.time:.3f}) and "
                f"by {each.process} (at {each.time:.3f})"
            )


def skipped(history: GroupHistory) -> Iterator[str]:
    """A record that nobody was given lies between the first and the last that somebody was."""
    for partition in _partitions(history):
        ranges = _union(history, partition)
        for (_, end), (following, _) in pairwise(ranges):
            yield f"{partition}: {end}..{following - 1} were delivered to nobody, {following} was"


def commit_ahead(history: GroupHistory) -> Iterator[str]:
    """More is committed than anybody was given."""
    reset = {partition for partition, _ in history.resets}
    ends: dict[str, int] = {}
    for one in history.deliveries:
        ends[one.partition] = max(one.end, ends.get(one.partition, 0))
    for each in history.commits:
        end = ends.get(each.partition, 0)
        if each.partition not in reset and each.offset > end:
            yield f"{each.partition}: {each.offset} is committed, what was delivered ends at {end}"


def commit_back(history: GroupHistory) -> Iterator[str]:
    """An answer is below one that had come before the question, and nobody had set the offset back."""
    answers = sorted(history.commits, key=lambda commit: commit.completed)
    questions = sorted(history.commits, key=lambda commit: commit.invoked)
    highest: dict[str, Committed] = {}
    done = 0
    for each in questions:
        while done < len(answers) and answers[done].completed < each.invoked:
            known = highest.get(answers[done].partition)
            if known is None or answers[done].offset > known.offset:
                highest[answers[done].partition] = answers[done]
            done += 1
        known = highest.get(each.partition)
        if known is None or each.offset >= known.offset:
            continue
        if not any(partition == each.partition and time <= each.completed for partition, time in history.resets):
            yield (
                f"{each.partition}: {known.offset} was committed (known at {known.completed:.3f}), the answer to a "
                f"question of {each.invoked:.3f} says {each.offset}"
            )


GROUP_RULES: dict[str, Callable[[GroupHistory], Iterator[str]]] = {
    "two_owners": two_owners,
    "skipped": skipped,
    "commit_ahead": commit_ahead,
    "commit_back": commit_back,
}


def _partitions(history: GroupHistory) -> list[str]:
    return sorted({each.partition for each in history.deliveries})


def _union(history: GroupHistory, partition: str) -> list[tuple[int, int]]:
    """What was delivered to anybody, as ascending ranges [first, end) that do not touch."""
    out: list[tuple[int, int]] = []
    for first, end in sorted((each.first, each.end) for each in history.deliveries if each.partition == partition):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((first, end))
    return out
