"""python -m tests.simulation.mutants [name …]: is each protective measure needed, and does a test watch it?

Takes one measure after another out (in a copy of the tree) and runs the directed test that guards it; where that sees
nothing all directed tests, then random schedules. Exit code 1 when a mutant goes unseen that is to be seen, or when a
test sees one of which it was said that none does: then the note is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.simulation.mutation.catalogue import MUTANTS
from tests.simulation.mutation.mutant import Mutant, StaleMutant
from tests.simulation.mutation.trial import (
    BrokenMutant,
    Sight,
    directed_tests,
    mutated,
    run_seeds,
    run_tests,
)

_WHY_CHARS = 110


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the random schedules of one mutant."""

    first: int
    seeds: int
    seconds: float
    always: bool


@dataclass(frozen=True, slots=True)
class Row:
    """The verdict on one mutant."""

    mutant: Mutant
    seen: Sight | None
    seeds: str
    wrong: str
    """What is not as the catalogue says; empty: nothing."""

    def __str__(self) -> str:
        by = f"{self.seen.by}: {self.seen.why[:_WHY_CHARS]}" if self.seen else "nothing"
        note = f" (expected: {self.mutant.expected_silent})" if self.mutant.expected_silent else ""
        return f"{self.mutant.name:26} | {self.mutant.measure} | {by}{note}{self.seeds}" + (
            f"\n    WRONG: {self.wrong}" if self.wrong else ""
        )


def try_mutant(mutant: Mutant, bounds: Bounds) -> Row:
    """Run what may see it."""
    wrong = seeds = ""
    try:
        with mutated(mutant) as tree:
            seen = run_tests(tree, [mutant.guard]) if mutant.guard else None
            if seen is None:
                if mutant.guard:
                    wrong = f"{mutant.guard} does not fail"
                seen = run_tests(tree, directed_tests(tree))
            if seen is None or bounds.always:
                by_seed, number = run_seeds(tree, bounds.first, bounds.seeds, bounds.seconds)
                what = f"{by_seed.by}: {by_seed.why[:_WHY_CHARS]}" if by_seed else "nothing"
                seeds = f" | {number} random schedules: {what}"
                seen = seen or by_seed
    except (StaleMutant, BrokenMutant) as error:
        return Row(mutant, None, "", f"{type(error).__name__}: {error}")
    if seen is None and not mutant.expected_silent:
        wrong = wrong or "nothing sees it"
    if seen is not None and mutant.expected_silent:
        wrong = wrong or "it is seen, but was expected not to be"
    return Row(mutant, seen, seeds, wrong)


def _control() -> Sight | None:
    """What fails without any mutation."""
    with mutated(None) as tree:
        return run_tests(tree, directed_tests(tree))


def _rows(mutants: list[Mutant], bounds: Bounds, jobs: int) -> Iterator[Row]:
    """In the order given. Run first are those that take long, since no single test is known to see them: all tests."""
    with ThreadPoolExecutor(jobs) as pool:
        control = pool.submit(_control)
        first = sorted(mutants, key=lambda mutant: bool(mutant.guard))
        trials = {mutant.name: pool.submit(try_mutant, mutant, bounds) for mutant in first}
        failed = control.result()
        if failed is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            raise BrokenMutant(f"without any mutation {failed.by} fails: {failed.why}")
        for mutant in mutants:
            yield trials[mutant.name].result()


def main() -> int:
    """Exit code 0 when everything is as the catalogue says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="mutants to try; all without")
    parser.add_argument("--seeds", type=int, default=60, help="random schedules per mutant at most")
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40.0, help="of random schedules per mutant")
    parser.add_argument("--random", action="store_true", help="random schedules also where a directed test sees it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    bounds = Bounds(arguments.first, arguments.seeds, arguments.seconds, arguments.random)
    wrong = seen = 0
    try:
        for row in _rows(chosen, bounds, arguments.jobs):
            print(row, flush=True)
            wrong += bool(row.wrong)
            seen += row.seen is not None
    except BrokenMutant as error:
        print(error)
        return 1
    print(f"{len(chosen)} mutants: {seen} seen, {len(chosen) - seen} not seen, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
