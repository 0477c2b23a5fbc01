"""A result for people."""

from __future__ import annotations

from collections.abc import Iterator

from fluxlog.checker import report as report_verdict
from tests.chaos.run import Result

_FAILURES_SHOWN = 20


def report(result: Result) -> str:
    """Faults, availability, what went wrong, the checker's judgement, and one last line."""
    return "\n".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    availability, options = result.availability, result.options
    yield f"seed {options.seed}: {options.seconds:g} s, {options.nodes} nodes, {options.partitions} partitions"
    for kind, count in sorted(result.faults.items()):
        yield f"  {kind:20} {count:>8,}"
    yield f"  {'client crash':20} {result.crashes:>8,}"
    if result.packets:
        yield "  packets " + ", ".join(f"{name} {count:,}" for name, count in sorted(result.packets.items()))
    yield "  taken by power cuts: " + ", ".join(f"{name} {count:,}" for name, count in result.lost.items())
    yield (
        f"  a quorum was there for {availability.quorum_seconds:.1f} s; {availability.percent:.1f} % of its slots of "
        f"100 ms had an acknowledgement; worst stall {availability.worst_stall_seconds:.2f} s"
    )
    for failure in result.failures[:_FAILURES_SHOWN]:
        yield f"  FAILURE {failure}"
    if len(result.failures) > _FAILURES_SHOWN:
        yield f"  and {len(result.failures) - _FAILURES_SHOWN} failures more"
    if not sum(result.faults.values()):
        yield "  FAILURE nothing went wrong: the run is no proof"
    yield report_verdict(result.verdict)
    yield f"chaos: {'valid' if result.valid else 'FAILED'}, seed {options.seed}"
