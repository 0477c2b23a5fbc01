"""Runs the tests against a mutant, in processes of their own, and says what saw it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.mutation.mutant import Mutant, copy_tree

_NOT_DIRECTED = {"test_random.py", "test_mutants.py"}
TESTS_SECONDS_MAX = 900.0
"""Not to end within this is no proof of anything: the machine may be busy."""
SEEDS_GRACE_SECONDS = 120.0

_FAILED = re.compile(r"^FAILED (?P<test>\S+)(?: - (?P<why>.*))?$", re.MULTILINE)
_NOT_THE_MEASURE = re.compile(r"\b(NameError|AttributeError|TypeError|SyntaxError|ImportError|UnboundLocalError)\b")


class BrokenMutant(Exception):
    """The mutant does not take a measure out, it does not run, or not to an end."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What saw a mutant, and what it saw."""

    by: str
    why: str


@contextmanager
def mutated(mutant: Mutant | None) -> Iterator[Path]:
    """A copy of the tree with the mutant's edits; None: as it is."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        tree = Path(name)
        copy_tree(tree)
        for edit in mutant.edits if mutant else ():
            edit.apply(tree)
        yield tree


def run_tests(tree: Path, tests: Sequence[str]) -> Sight | None:
    """Run tests until one fails.

    Raises:
        BrokenMutant: they could not be run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-rf", "-p", "no:cacheprovider", *tests]
    try:
        done = _run(tree, command, TESTS_SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        raise BrokenMutant(f"{' '.join(tests)} did not end within {TESTS_SECONDS_MAX:.0f} s") from error
    failed = _FAILED.search(done.stdout)
    if done.returncode == 0:
        return None
    if done.returncode != 1 or failed is None or _NOT_THE_MEASURE.search(done.stdout):
        raise BrokenMutant(done.stdout[-3000:] + done.stderr[-3000:])
    return Sight(failed["test"].rpartition("/")[2], (failed["why"] or "").removeprefix("AssertionError: "))


def directed_tests(tree: Path) -> list[str]:
    """All directed tests of the simulation."""
    found = (tree / "tests" / "simulation").glob("test_*.py")
    return sorted(str(path.relative_to(tree)) for path in found if path.name not in _NOT_DIRECTED)


def run_seeds(tree: Path, first: int, count: int, seconds: float) -> tuple[Sight | None, int]:
    """Run random schedules until one fails or the time is over: (what was seen, number of schedules run).

    Raises:
        BrokenMutant: they could not be run.
    """
    command = [sys.executable, "-m", "tests.simulation.mutation.seeds", str(first), str(count), str(seconds)]
    try:
        done = _run(tree, command, seconds + SEEDS_GRACE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BrokenMutant(f"a seed in {first}..{first + count - 1} did not end") from error
    if done.returncode != 0 or _NOT_THE_MEASURE.search(done.stdout):
        raise BrokenMutant(done.stdout[-3000:] + done.stderr[-3000:])
    *failure, number = done.stdout.strip().splitlines()
    if not failure:
        return None, int(number)
    by, _, why = failure[0].partition(": ")
    return Sight(f"random {by}", why.removeprefix("Violation: ")), int(number)


def _run(tree: Path, command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(tree)}
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
