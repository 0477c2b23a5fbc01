"""What the measurements of operations have in common: parts that do not spoil each other, a table, and JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from tests.bench import machine
from tests.bench.nodes import Nodes, running_nodes


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement on a cluster of its own.

    Args:
        run: is given an empty directory, returns lines for people and what programs want to know.
    """

    name: str
    run: Callable[[Path], tuple[list[str], dict[str, Any]]]


class Found(Protocol):
    """A dataclass with what was measured."""

    def lines(self) -> list[str]:
        """For people."""


def part_on_nodes(name: str, measure: Callable[[Nodes], Found]) -> Part:
    """A measurement on three fresh nodes."""

    def run(root: Path) -> tuple[list[str], dict[str, Any]]:
        with running_nodes(root) as nodes:
            found = measure(nodes)
        return found.lines(), asdict(cast(Any, found))

    return Part(name, run)


def say(line: str) -> None:
    """Tell how it goes."""
    print(line, flush=True)


def run_parts(parser: argparse.ArgumentParser, parts: Callable[[argparse.Namespace], Sequence[Part]]) -> None:
    """Measure each part, print the table, write the JSON; exit code 1 when a part failed.

    Args:
        parser: gets --dir and --json.
        parts: from the arguments.
    """
    parser.add_argument("--dir", type=Path, help="where the nodes' files go for the time being [the system's choice]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the nodes end with this process
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fluxd-bench-") as root:
        about = machine.describe(Path(root))
    lines, report, failures = list[str](), dict[str, Any](), 0
    for part in parts(arguments):
        began = time.monotonic()
        say(f"--- {part.name}")
        try:
            with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fluxd-bench-") as root:
                found, report[part.name] = part.run(Path(root))
        except Exception as error:  # the other parts still count
            traceback.print_exc()
            found, report[part.name] = [f"{part.name}: FAILED: {error}"], {"failed": str(error)}
            failures += 1
        lines += [*found, f"        ({time.monotonic() - began:.0f} s)"]
        if arguments.json:  # now: who stops it later still has this
            arguments.json.write_text(json.dumps({"machine": about, "parts": report}, indent=1) + "\n")
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print("\n".join(lines))
    if failures:
        sys.exit(1)
