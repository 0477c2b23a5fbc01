"""What was measured: runs of one case side by side, their median, and the table for people."""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

_KIB, _MIB = 1024, 1024 * 1024


def size_text(size: int) -> str:
    """A size of whole KiB or MiB, for people."""
    return f"{size // _MIB} MiB" if size % _MIB == 0 else f"{size // _KIB} KiB"


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
        rest = "  ".join(f"{key} {_text(value)}" for key, value in self.median.items() if key != "figure")
        return f"{self._beginning()}  {rest}"

    def table_row(self) -> str:
        """One line of the table: the columns of HEADING, empty where the case has no such number."""
        cells = (f"{_text(self.median[key]) if key in self.median else '':>{width}}" for key, _, width in _COLUMNS)
        return f"{self._beginning()} {' '.join(cells)}".rstrip()

    def _beginning(self) -> str:
        figures = " ".join(_short(run["figure"]) for run in self.runs)
        return f"{self.name:<48} {_short(self.median['figure']):>9} {self.unit:<10} {f'[{figures}]':<22}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "median": statistics.median(run["figure"] for run in self.runs)}


_COLUMNS = (
    ("records_per_s", "records/s", 10),
    ("p50_ms", "p50 ms", 7),
    ("p99_ms", "p99 ms", 7),
    ("p999_ms", "p99.9", 7),
    ("limit", "limit", 7),
    ("of_limit", "of it", 6),
    ("cpu_ms_per_mb", "CPU ms/MB", 19),
    ("cpu_ms_per_request", "CPU ms/request", 21),
    ("others_cores", "others", 7),
)
"""Of the table: (what a run calls it, heading, width)."""
HEADING = f"{'':<48} {'median':>9} {'':<10} {'all rounds':<22} " + " ".join(f"{h:>{w}}" for _, h, w in _COLUMNS)


class Cases:
    """All that one command measures. Each measurement is printed when it is there, and none is lost with another."""

    def __init__(self) -> None:
        self.all: dict[str, Case] = {}
        self.failures: list[str] = []

    def note(self, name: str, unit: str, figure: float, **rest: Any) -> None:
        """One run of one case."""
        case = self.all.setdefault(name, Case(name, unit))
        case.runs.append({"figure": figure, **rest})
        print(Case(name, unit, [case.runs[-1]]).row(), flush=True)

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """An error in here costs this measurement only: it is told at once, in the table and in the report."""
        try:
            yield
        except Exception as error:
            trace, cause = traceback.format_exc(), error
            while isinstance(cause, ExceptionGroup):
                cause = cause.exceptions[0]
            failure = f"{what}: {type(cause).__name__}: {cause}"
            self.failures.append(failure)
            print(f"NOT MEASURED: {failure}\n{trace}", flush=True)

    def print(self) -> None:
        """The table for people."""
        print(HEADING)
        for case in self.all.values():
            print(case.table_row())
        for failure in self.failures:
            print(f"NOT MEASURED: {failure}")

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"cases": [case.as_json() for case in self.all.values()], "failures": self.failures}


def _short(number: float) -> str:
    if number >= 10_000:
        return f"{number:,.0f}"
    digits = 0 if number >= 100 else 1 if number >= 10 else 2 if number >= 0.3 else 3
    return f"{number:.{digits}f}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "/".join(_text(item) for item in value.values())
    return _short(value) if isinstance(value, float) else f"{value}"
