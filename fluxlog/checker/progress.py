"""Whether a history proves anything: a cluster that does nothing breaks no promise."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.history import Outcome, Phase
from fluxlog.checker.index import Index

Json = dict[str, object]


class Progress:
    """Operations begun and succeeded, by kind and part of the run.

    A part is what lies between two marks; an operation is begun in one part and may succeed in a later one.
    """

    def __init__(self, index: Index) -> None:
        marks = index.history.phases
        self.parts = [Phase.START.value, *(phase.value for _, phase in marks)]
        self._times = [time for time, _ in marks]
        self.begun = [Counter[str]() for _ in self.parts]
        self.succeeded = [Counter[str]() for _ in self.parts]
        self._count(index)
        self._final_read = not math.isinf(index.final_read_began)

    def _part(self, time: float) -> int:
        return bisect_right(self._times, time)

    def _count(self, index: Index) -> None:
        sends, polls, observed = index.history.sends, index.history.polls, index.history.observations
        columns = zip(sends.invoked, sends.completed, sends.outcome, sends.expected_offset, strict=True)
        for invoked, completed, outcome, expected in columns:
            kinds = ("send",) if expected == NOTHING else ("send", "conditional_send")
            self.begun[self._part(invoked)].update(kinds)
            if outcome == Outcome.OK:
                self.succeeded[self._part(completed)].update(kinds)
        for row, (invoked, completed) in enumerate(zip(polls.invoked, polls.completed, strict=True)):
            self.begun[self._part(invoked)]["poll"] += 1
            if polls.runs(row):
                self.succeeded[self._part(completed)]["poll"] += 1
        for invoked, completed, latest in zip(observed.invoked, observed.completed, observed.latest, strict=True):
            if latest:
                self.begun[self._part(invoked)]["latest"] += 1
                self.succeeded[self._part(completed)]["latest"] += 1

    def gaps(self) -> Iterator[str]:
        """What is missing for a proof."""
        begun, succeeded = sum(self.begun, Counter[str]()), sum(self.succeeded, Counter[str]())
        for kind in sorted({"send", "poll", *begun}):
            if not succeeded[kind]:
                yield f"no {kind} succeeded, of {begun[kind]}"
        for number, part in enumerate(self.parts):
            for kind in ("send", "poll"):
                attempts = self.begun[number][kind]
                if attempts and not self.succeeded[number][kind] and succeeded[kind]:
                    yield f"phase {part} (number {number}): no {kind} succeeded, of {attempts}"
        if not self._final_read:
            yield "no final read: what was acknowledged last may be gone"

    def to_dict(self) -> list[Json]:
        """For each part, what was begun and what succeeded."""
        return [
            {"phase": part, "begun": dict(self.begun[number]), "succeeded": dict(self.succeeded[number])}
            for number, part in enumerate(self.parts)
            if self.begun[number] or self.succeeded[number]
        ]
