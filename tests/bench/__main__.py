"""`make bench`: the speed of a three-node cluster on this machine, beside the machine's own limits.

    python -m tests.bench [--quick] [--json FILE] [--batches 16,64,256,1024] [--records 100,1000] …

Three nodes and one client are processes of this one machine, replication factor 3; acknowledged means fdatasync on a
majority. MB are 10^6 bytes of values. Each case runs once a round; shown is the run with the median figure, all
figures stand in brackets. The limits are of the same minutes: three files written with the same chunk, each synced by
its own thread, over as many bytes (user bytes counted once, as for the cluster), and a bare grpc.aio server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fluxd import tuning
from tests.bench import machine
from tests.bench.nodes import running_echo, running_nodes
from tests.bench.suite import KIB, Settings, Suite

_QUICK: dict[str, Any] = {
    "seconds": 3.0, "rounds": 1, "lone_requests": 300, "fetch_total": 200_000_000, "echo_total": 200_000_000,
}  # fmt: skip


def main() -> None:
    """See the module."""
    arguments = _parse_arguments()
    settings = _settings(arguments)
    tuning.tune_allocator()
    with (
        tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fluxd-bench-") as name,
        asyncio.Runner(loop_factory=tuning.loop_factory()) as runner,
        running_echo() as echo,
        running_nodes(Path(name)) as nodes,
    ):
        about = {"settings": asdict(settings), "machine": machine.describe(Path(name)), "commit": _commit()}
        about["began"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        suite = Suite(settings, nodes, echo, Path(name), runner, lambda line: print(line, flush=True))
        suite.run()
        memory = {name: {"now": now, "peak": peak} for name, (now, peak) in nodes.memory_mb().items()}
    _print_report(about, suite, memory)
    if arguments.json:
        report = {**about, "cases": [case.as_json() for case in suite.cases.values()], "memory_mb": memory}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round: for a look, not for a figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--dir", type=Path, help="where the nodes' files go for the time being [the system's choice]")
    parser.add_argument("--batches", help="KiB, with commas [64,256]")
    parser.add_argument("--records", help="bytes, with commas [100]")
    parser.add_argument("--partitions", help="with commas [1,12]")
    parser.add_argument("--seconds", type=float, help="of one produce run [12]")
    parser.add_argument("--rounds", type=int, help="[3]")
    parser.add_argument("--only", help="with commas: limits,lone,produce,fetch")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> Settings:
    given: dict[str, Any] = dict(_QUICK) if arguments.quick else {}
    for name in ("batches", "records", "partitions"):
        if text := getattr(arguments, name):
            given[name] = tuple(int(item) * (KIB if name == "batches" else 1) for item in text.split(","))
    given |= {name: value for name in ("seconds", "rounds") if (value := getattr(arguments, name)) is not None}
    if arguments.only:
        given["only"] = tuple(arguments.only.split(","))
    return replace(Settings(), **given)


def _print_report(about: dict[str, Any], suite: Suite, memory: dict[str, dict[str, float]]) -> None:
    settings = about["settings"]
    print("\n" + ", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    print(
        f"commit {about['commit']}; 3 nodes and 1 client on this machine, replication factor 3, acknowledged = "
        f"fdatasync on a majority; {settings['in_flight'] // KIB} KiB in flight per leader, producer ids, "
        "no compression, no TLS; "
        f"runs of {settings['seconds']:g} s after 1 s, {settings['rounds']} rounds, median run shown\n"
    )
    for case in suite.cases.values():
        print(case.row())
    print("\nmemory of the nodes at the end / at the peak, MB: " + ", ".join(
        f"{name} {sizes['now']:.0f} / {sizes['peak']:.0f}" for name, sizes in memory.items()
    ))  # fmt: skip


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
