"""What was measured: runs of one case side by side, their median, and the table for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


def percentile(values: Sequence[float], share: float) -> float:
    """The value at or below which that share of the values lies; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass(slots=True)
class Case:
    """One thing that is measured several times.

    Args:
        name: what.
        unit: of the figure.
        runs: one set of numbers for each time; "figure" is the one that the median is of.
    """

    name: str
    unit: str
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def median(self) -> dict[str, Any]:
        """The run whose figure is the median."""
        ordered = sorted(self.runs, key=lambda run: run["figure"])
        return ordered[(len(ordered) - 1) // 2]

    def row(self) -> str:
        """One line: the median's figure, all figures, and what else is known of the median's run."""
        median = self.median
        figures = " ".join(_short(run["figure"]) for run in self.runs)
        rest = "  ".join(f"{key} {_text(value)}" for key, value in median.items() if key != "figure")
        return f"{self.name:<46} {_short(median['figure']):>9} {self.unit:<10} [{figures}]  {rest}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "median": statistics.median(run["figure"] for run in self.runs)}


def _short(number: float) -> str:
    if number >= 10_000:
        return f"{number:,.0f}"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "/".join(_text(item) for item in value.values())
    return _short(value) if isinstance(value, float) else f"{value}"
