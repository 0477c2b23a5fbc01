"""`make bench`: the speed of a three-node cluster on this machine, beside the machine's own limits.

    python -m tests.bench [--quick] [--json FILE] [--only produce,…] [--json FILE] [--plot FILE.svg] …

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
from tests.bench import machine, plot
from tests.bench.figures import Cases
from tests.bench.nodes import Nodes, running_echo, running_nodes
from tests.bench.suite import KIB, PARTS, Settings, Suite

_QUICK: dict[str, Any] = {
    "seconds": 2.0, "rounds": 1, "lone_requests": 300, "fetch_total": 200_000_000, "limit_total": 100_000_000,
    "batches": (64 * KIB, 256 * KIB), "records": (100,), "partitions": (1, 12),
}  # fmt: skip


def main() -> None:
    """See the module."""
    arguments = _parse_arguments()
    if arguments.plot:
        plot.check(arguments.plot)
    settings, cases = _settings(arguments), Cases()
    tuning.tune_allocator()
    report: dict[str, Any] = {
        "settings": asdict(settings), "commit": _commit(), "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    try:
        with (
            tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fluxd-bench-") as name,
            asyncio.Runner(loop_factory=tuning.loop_factory()) as runner,
            running_echo() as echo,
            running_nodes(Path(name)) as nodes,
        ):
            report["machine"] = machine.describe(Path(name))
            Suite(settings, nodes, echo, Path(name), runner, cases).run()
            report["memory_mb"] = _memory(nodes)
    finally:  # also of a run that was broken off
        report |= cases.as_json()
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
        _print_report(report, cases)
        if arguments.plot:
            plot.draw(report, arguments.plot)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round of a part: for a look, not for a figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .svg or .png; needs matplotlib")
    parser.add_argument("--dir", type=Path, help="where the nodes' files go for the time being [the system's choice]")
    parser.add_argument("--batches", help="KiB, with commas [16,64,256,1024]")
    parser.add_argument("--records", help="bytes, with commas [100,1000]")
    parser.add_argument("--partitions", help="with commas [1,12,100]")
    parser.add_argument("--seconds", type=float, help="of one run [10]")
    parser.add_argument("--rounds", type=int, help="[3]")
    parser.add_argument("--only", help=f"with commas: {','.join(PARTS)}")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> Settings:
    given: dict[str, Any] = dict(_QUICK) if arguments.quick else {}
    for name in ("batches", "records", "partitions"):
        if text := getattr(arguments, name):
            given[name] = tuple(int(item) * (KIB if name == "batches" else 1) for item in text.split(","))
    given |= {name: value for name in ("seconds", "rounds") if (value := getattr(arguments, name)) is not None}
    if arguments.only:
        given["only"] = tuple(arguments.only.split(","))
        if unknown := set(given["only"]) - set(PARTS):
            raise SystemExit(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    return replace(Settings(), **given)


def _memory(nodes: Nodes) -> dict[str, dict[str, float]]:
    return {name: {"now": now, "peak": peak} for name, (now, peak) in nodes.memory_mb().items()}


def _print_report(report: dict[str, Any], cases: Cases) -> None:
    settings = report["settings"]
    print("\n" + ", ".join(f"{key} {value}" for key, value in report.get("machine", {}).items()))
    print(
        f"commit {report['commit']}; 3 nodes and 1 client on this machine, replication factor 3, acknowledged = "
        f"fdatasync on a majority; {settings['in_flight'] // KIB} KiB in flight per leader, producer ids, "
        "no compression, no TLS; "
        f"runs of {settings['seconds']:g} s after 1 s, {settings['rounds']} rounds, median run shown; "
        "CPU: nodes/client; others: cores taken by everything else\n"
    )
    cases.print()
    print("\nmemory of the nodes at the end / at the peak, MB: " + ", ".join(
        f"{name} {sizes['now']:.0f} / {sizes['peak']:.0f}" for name, sizes in report.get("memory_mb", {}).items()
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
