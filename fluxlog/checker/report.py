"""A verdict for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fluxlog.checker.evidence import Json
from fluxlog.checker.verdict import Verdict


def report(verdict: Verdict) -> str:
    """A page at most: the judgement, each broken promise with its evidence, what is missing, what there was."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    if verdict.valid:
        yield "VALID: no promise was broken"
    elif verdict.errors:
        yield f"INVALID: {len(verdict.errors)} promises were broken"
    else:
        yield "NOT PROVEN: no promise was broken, but the run is no proof"
    for broken in verdict.errors:
        yield f"  {broken.name}, {broken.count} times: {broken.promise}"
        for example in broken.examples:
            yield f"    {example.message}"
            for operation in example.evidence:
                yield f"      {_operation(operation)}"
        if broken.count > len(broken.examples):
            yield f"    and {broken.count - len(broken.examples)} more"
    for gap in verdict.gaps:
        yield f"  {gap}"
    for phase in verdict.phases:
        yield f"  {phase['phase']}: {_counts(phase)}"
    for name, value in verdict.summary.items():
        if value not in (0, [], {}):
            yield f"  {name.replace('_', ' ')}: {_value(value)}"


def _operation(operation: Json) -> str:
    """ "send w1 orders-3: offset 41, invoked 12.300000, …": what is known, in one line."""
    head = " ".join(str(operation[name]) for name in ("op", "process", "partition") if name in operation)
    rest = {name: value for name, value in operation.items() if name not in ("op", "process", "partition")}
    return f"{head}: {_value(rest)}"


def _counts(phase: Json) -> str:
    begun, succeeded = phase["begun"], phase["succeeded"]
    assert isinstance(begun, Mapping) and isinstance(succeeded, Mapping)
    kinds = sorted({*begun, *succeeded})
    return "; ".join(f"{kind} {begun.get(kind, 0)} begun, {succeeded.get(kind, 0)} succeeded" for kind in kinds)


def _value(value: object) -> str:
    match value:
        case float():
            return f"{value:.6f}"
        case Mapping():
            return ", ".join(f"{name.replace('_', ' ')} {_value(one)}" for name, one in value.items())
        case list():
            return "; ".join(_value(one) for one in value)
        case _:
            return str(value)
