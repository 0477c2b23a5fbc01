"""python -m tests.cluster --seeds N --from S [--trace]: random simulation of whole clusters; see world.py."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.cluster.world import World

_WANTED = (
    "fault_kill", "fault_power_cut", "fault_pause", "fault_isolate_node", "fault_isolate_leader", "fault_cut_pair",
    "fault_cut_one_way", "fault_stop", "fault_clock_jump", "fault_client_crash", "connections_reset",
    "keepalive_breaks", "frames_duplicated", "duplicates_recognised", "topics_created", "topics_deleted",
    "partitions_added", "ok_TransferLeadership", "followed", "leaderships", "fault_disk_fails_syncs",
    "fault_disk_used_up", "events_state_log_trimmed",
)  # fmt: skip


def run_seed(seed: int) -> tuple[int, str, dict[str, int], str]:
    """(seed, what was violated or "", counts, digest)"""
    world = World(seed)
    failure = ""
    try:
        world.run()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    world.counts["seconds_simulated"] += int(world.simulator.now)
    world.counts["events"] += world.simulator.events
    world.counts[f"clusters_of_{world.plan.nodes}"] += 1
    return seed, failure, dict(world.counts), world.digest()


def main() -> int:
    """Exit code 0 when no seed failed and the run was not an empty one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="one seed, with what its nodes logged and the traceback")
    parser.add_argument("--digest", action="store_true", help="print each seed's digest: a seed repeats exactly")
    arguments = parser.parse_args()
    if arguments.trace:
        return trace(arguments.first)
    began, counts, failures = time.monotonic(), Counter[str](), 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    with multiprocessing.Pool(os.cpu_count(), maxtasksperchild=20) as pool:
        for seed, failure, more, digest in pool.imap_unordered(run_seed, seeds, chunksize=1):
            counts.update(more)
            if arguments.digest:
                print(seed, digest)
            if failure:
                failures += 1
                print(f"seed {seed}: {failure}\n    again: python -m tests.cluster --from {seed} --trace", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds in {seconds:.0f} s ({len(seeds) / seconds:.1f} seeds/s), {failures} with a violation")
    for name, count in sorted(counts.items()):
        print(f"  {name:28} {count:>12,}")
    idle = [name for name in _WANTED if not counts[name]]
    if idle and arguments.seeds >= 20:
        print(f"an empty run proves nothing: no {', '.join(idle)}")
        return 1
    return 1 if failures else 0


def trace(seed: int) -> int:
    """One seed, with what its nodes logged."""
    world = World(seed)
    try:
        world.run()
    finally:
        print("\n".join(world.trace()))
        print(world.describe())
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of bytes and text is part of a run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.cluster", *sys.argv[1:]])
    sys.exit(main())
