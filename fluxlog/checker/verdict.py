"""The judgement on a history."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from fluxlog.checker.evidence import Finding, Json, Witnesses
from fluxlog.checker.history import History
from fluxlog.checker.index import Index
from fluxlog.checker.progress import Progress
from fluxlog.checker.rules import RULES, Rule
from fluxlog.checker.summary import summarize

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Example:
    """One anomaly with the operations that prove it."""

    message: str
    evidence: list[Json]


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that was broken.

    Attributes:
        name: of the rule, stable.
        promise: what should have held.
        count: of anomalies.
        examples: the first few of them.
    """

    name: str
    promise: str
    count: int
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found.

    Attributes:
        errors: promises that were broken.
        gaps: why the history would prove nothing even without errors.
        summary: counts, stalls, lag.
        phases: what was begun and what succeeded in each part of the run.
    """

    errors: list[Broken] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    summary: Json = field(default_factory=dict)
    phases: list[Json] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """No promise was broken, and the run was not an empty one."""
        return not self.errors and not self.gaps

    def to_dict(self) -> Json:
        """Everything, of types that JSON has."""
        return {
            "valid": self.valid,
            "errors": [
                {
                    "rule": broken.name,
                    "promise": broken.promise,
                    "count": broken.count,
                    "examples": [{"message": one.message, "evidence": one.evidence} for one in broken.examples],
                }
                for broken in self.errors
            ],
            "gaps": self.gaps,
            "summary": self.summary,
            "phases": self.phases,
        }

    def to_json(self) -> str:
        """The same as text, indented."""
        return json.dumps(self.to_dict(), indent=2)


def check(history: History, *, clock_error: float = 0.0, rules: Iterable[Rule] = RULES) -> Verdict:
    """Judge a history. Time near linear in its length.

    Args:
        clock_error: seconds by which the clocks of two processes may differ; 0 for processes of one machine.
        rules: those to apply.

    Raises:
        HistoryError: what was recorded is no history, for instance a value was sent twice.
    """
    index = Index(history, clock_error)
    witnesses = Witnesses(history)
    errors = []
    for rule in rules:
        findings = rule.find(index)
        first = list(islice(findings, EXAMPLES))
        if first:
            count = len(first) + sum(1 for _ in findings)
            errors.append(Broken(rule.name, rule.promise, count, [_show(witnesses, one) for one in first]))
    progress = Progress(index)
    return Verdict(errors, list(progress.gaps()), summarize(index), progress.to_dict())


def _show(witnesses: Witnesses, finding: Finding) -> Example:
    return Example(finding.message, [witnesses.show(ref) for ref in finding.evidence])
