"""python -m tests.simulation --seeds N --from S [--trace]: random simulation of Raft groups; see world.py.

Every fourth seed is judged from outside too: its clients' history goes to the checker (history.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from fluxlog.checker import report
from tests.simulation.history import RecordedWorld
from tests.simulation.world import Plan, World

_RECORDED_EVERY = 4


def _world(seed: int) -> World:
    return RecordedWorld(seed) if seed % _RECORDED_EVERY == 0 else World(seed)


def run_seed(seed: int) -> tuple[int, str, dict[str, int]]:
    """(seed, what was violated or "", counts)"""
    world = _world(seed)
    try:
        world.run()
        failure = _misjudged(world)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    world.counts["seconds_simulated"] += int(world.simulator.now)
    world.counts["events"] += world.simulator.events
    world.counts[f"clusters_of_{Plan.of(seed).nodes}"] += 1
    return seed, failure, dict(world.counts)


def _misjudged(world: World) -> str:
    if not isinstance(world, RecordedWorld):
        return ""
    assert world.verdict is not None
    world.counts["histories_checked"] += 1
    return report(world.verdict) if world.verdict.errors else ""


def main() -> int:
    """Exit code 0 when no seed failed and the run was not an empty one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="one seed, with its events and the traceback")
    arguments = parser.parse_args()
    if arguments.trace:
        return trace(arguments.first)
    began, counts, failures = time.monotonic(), Counter[str](), 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for seed, failure, more in pool.imap_unordered(run_seed, seeds, chunksize=1):
            counts.update(more)
            if failure:
                failures += 1
                print(
                    f"seed {seed}: {failure}\n    again: python -m tests.simulation --from {seed} --trace", flush=True
                )
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds in {seconds:.0f} s ({len(seeds) / seconds:.1f} seeds/s), {failures} with a violation")
    for name, count in sorted(counts.items()):
        print(f"  {name:28} {count:>12,}")
    wanted = (
        "leaderships", "power_cuts", "truncations", "duplicates_recognised", "trims", "heads_trimmed",
        "disks_failing_syncs", "disks_used_up", "replicas_reopened",
    )  # fmt: skip
    idle = [name for name in wanted if not counts[name]]
    if idle and arguments.seeds >= 20:
        print(f"an empty run proves nothing: no {', '.join(idle)}")
        return 1
    return 1 if failures else 0


def trace(seed: int) -> int:
    """One seed, with what its nodes logged."""
    world = _world(seed)
    try:
        world.run()
        print(_misjudged(world))
    finally:
        for line in sorted(line for node in world.nodes.values() for line in node.events):
            print(line)
        print(world.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
