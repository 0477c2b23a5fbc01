"""Whether a history proves anything: a cluster that does nothing breaks no promise."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import compress

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Json
from fluxlog.checker.history import Outcome, Phase
from fluxlog.checker.index import Index


class Progress:
    """Operations begun and succeeded, by kind and part of the run.

    A part is what lies between two marks; an operation is begun in one part and may succeed in a later one.
    """

    def __init__(self, index: Index) -> None:
        marks = index.history.phases
        self.parts = [Phase.START.value, *(phase.value for _, phase in marks)]
        self._part = partial(bisect_right, [time for time, _ in marks])
        self.begun = [Counter[str]() for _ in self.parts]
        self.succeeded = [Counter[str]() for _ in self.parts]
        self._count(index)
        self._final_read = not math.isinf(index.final_read_began)

    def _count(self, index: Index) -> None:
        sends, polls, observed = index.history.sends, index.history.polls, index.history.observations
        acknowledged = array("b", [outcome == Outcome.OK for outcome in sends.outcome])
        conditional = array("b", [expected != NOTHING for expected in sends.expected_offset])
        won = map(min, conditional, acknowledged)
        self._add("send", sends.invoked, compress(sends.completed, acknowledged))
        self._add("conditional_send", compress(sends.invoked, conditional), compress(sends.completed, won))
        self._add("poll", polls.invoked, compress(polls.completed, map(polls.runs, range(len(polls)))))
        self._add("latest", compress(observed.invoked, observed.latest), compress(observed.completed, observed.latest))

    def _add(self, kind: str, begun: Iterable[float], succeeded: Iterable[float]) -> None:
        """Count times of one kind of operation by the part that they fall into."""
        for times, counts in ((begun, self.begun), (succeeded, self.succeeded)):
            for part, count in Counter(map(self._part, times)).items():
                counts[part][kind] += count

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
