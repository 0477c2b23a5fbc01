"""A picture of what `python -m tests.bench --json FILE` wrote.

    python -m tests.bench.plot FILE.json FILE.svg

matplotlib draws it; it is an extra (`pip install 'fluxd[bench]'`) and imported only here, when a picture is wanted.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench.figures import size_text

FORMATS = (".svg", ".png", ".pdf")


def check(path: Path) -> None:
    """Say so before an hour of measuring when the picture cannot be drawn.

    Raises:
        SystemExit: with the reason.
    """
    if path.suffix not in FORMATS:
        raise SystemExit(f"{path}: a picture is one of {', '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise SystemExit("a picture needs matplotlib: pip install 'fluxd[bench]'")


def draw(report: dict[str, Any], path: Path) -> None:
    """Throughput of produce and its share of processor by batch size, and the latencies."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "fluxd"  # the same figures give the same file
    figure: Any = Figure(figsize=(13, 9), layout="constrained")
    machine = report.get("machine", {})
    figure.suptitle(
        f"fluxd {report['commit']}: 3 nodes and 1 client on {machine.get('processors')} processors "
        f"({machine.get('processor')}), replication factor 3, fdatasync on a majority"
    )
    upper, lower = figure.subfigures(2, 1)
    axes = upper.subplots(1, 2), lower.subplots(1, 2)
    medians = {case["name"]: _median_run(case) for case in report["cases"] if case["runs"]}
    produced = [run for run in medians.values() if "batch_bytes" in run]
    _by_batch(axes[0][0], produced, "figure", "MB/s, acknowledged")
    limits = {run["batch_bytes"]: run["limit"] for run in produced if "limit" in run}
    if limits:
        sizes = sorted({run["batch_bytes"] for run in produced})
        places = [sizes.index(size) for size in sorted(limits)]
        axes[0][0].plot(places, [limits[size] for size in sorted(limits)], "k_--", markersize=20, label="disk's limit")
        axes[0][0].legend(fontsize="small")
    _by_batch(axes[0][1], produced, "cpu", "CPU ms per MB, all nodes and the client")
    _latencies(axes[1][0], medians)
    _rates(axes[1][1], medians)
    figure.savefig(path)


def _median_run(case: dict[str, Any]) -> dict[str, Any]:
    run = min(case["runs"], key=lambda run: abs(run["figure"] - case["median"]))
    return {**run, "cpu": sum(run["cpu_ms_per_mb"].values()) if "cpu_ms_per_mb" in run else 0.0, "unit": case["unit"]}


def _by_batch(axes: Any, produced: list[dict[str, Any]], key: str, title: str) -> None:
    axes.set_title(f"produce: {title}")
    sizes = sorted({run["batch_bytes"] for run in produced})
    series = sorted({(run["record_bytes"], run["partitions"]) for run in produced})
    axes.set_xticks(range(len(sizes)), [size_text(size) for size in sizes])
    width = 0.8 / max(1, len(series))
    for number, (record, partitions) in enumerate(series):
        runs = [run for run in produced if (run["record_bytes"], run["partitions"]) == (record, partitions)]
        at = [sizes.index(run["batch_bytes"]) - 0.4 + (number + 0.5) * width for run in runs]
        axes.bar(at, [run[key] for run in runs], width, label=f"{record} B, partitions: {partitions}")
    axes.set_xlabel("batch")
    if series:
        axes.legend(fontsize="small")


def _latencies(axes: Any, medians: dict[str, dict[str, Any]]) -> None:
    axes.set_title("latency, ms")
    rows = {name: run for name, run in medians.items() if run["unit"] == "ms p50"}
    for place, run in enumerate(rows.values()):
        axes.plot([run["p50_ms"], run["p99_ms"], run["p999_ms"]], [place] * 3, "o-")
    figures = [f"p50 {run['p50_ms']:.1f}, p99 {run['p99_ms']:.1f}, p99.9 {run['p999_ms']:.1f}" for run in rows.values()]
    axes.set_yticks(range(len(rows)), [f"{name}\n{text}" for name, text in zip(rows, figures, strict=True)])
    axes.set_ylim(-0.5, max(1, len(rows)) - 0.3)
    if rows:
        axes.set_xscale("log")


def _rates(axes: Any, medians: dict[str, dict[str, Any]]) -> None:
    axes.set_title("one record a request: requests/s")
    rows = {name: run["figure"] for name, run in medians.items() if run["unit"] == "requests/s"}
    bars = axes.barh(range(len(rows)), list(rows.values()))
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_yticks(range(len(rows)), [name.replace(", ", "\n", 1) for name in rows])
    axes.margins(x=0.15)


def main() -> None:
    """See the module."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m tests.bench.plot FILE.json FILE.svg")
    check(Path(sys.argv[2]))
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
