"""python -m tests.simulation.mutation.seeds FROM COUNT SECONDS: random seeds in turn until one fails; prints it, or
nothing, then how many were run."""

from __future__ import annotations

import sys
import time

from tests.simulation.__main__ import run_seed


def main(first: int, count: int, seconds: float) -> None:
    """Runs in the mutant's copy."""
    deadline, done = time.monotonic() + seconds, 0
    for seed in range(first, first + count):
        done += 1
        failure = run_seed(seed)[1]
        if failure:
            print(f"seed {seed}: {failure.splitlines()[0]}")
            break
        if time.monotonic() > deadline:
            break
    print(done)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
