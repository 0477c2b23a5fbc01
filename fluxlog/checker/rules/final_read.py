"""The last phase: nothing that anybody ever saw is gone, for any reader."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Finding, PollRef
from fluxlog.checker.history import History
from fluxlog.checker.index import Index


@dataclass(slots=True)
class Span:
    """What one reader read of one partition in the last phase."""

    process: int
    start: int | None
    """Where it began; None: it was given nothing, and nobody knows where it stood."""
    end: int
    """Exclusive."""
    poll: int = NOTHING
    """That came furthest."""


def short_final_read(index: Index) -> Iterator[Finding]:
    """A reader did not begin at the log start, or ended below what some client was told or given; or nobody read."""
    if math.isinf(index.final_read_began):
        return
    spans = _spans(index.history, index.final_read_began)
    for partition, name in enumerate(index.partition_names):
        target, start = index.target(partition), index.log_start[partition]
        if target <= start:
            continue
        readers = spans.get(partition, [])
        if not readers:
            yield Finding(f"{name}: nobody read it in the last phase, though it goes to {target}", ())
        for span in readers:
            if span.start is not None and span.start <= start and span.end >= target:
                continue
            evidence = () if span.poll == NOTHING else (PollRef(span.poll, partition),)
            yield Finding(
                f"{name}: {index.process_names[span.process]} read {span.start} to {span.end} (exclusive) in the last "
                f"phase, which has {start} to {target}",
                evidence,
            )


def _spans(history: History, began: float) -> dict[int, list[Span]]:
    """By partition, the readers that were assigned it in the last phase and did not crash after."""
    newest = {assignment.process: number for number, assignment in enumerate(history.assignments)}
    spans = {
        number: {
            partition: Span(history.assignments[number].process, at, at or 0)
            for partition, at in history.assignments[number].positions.items()
        }
        for number in newest.values()
        if history.assignments[number].time >= began
    }
    polls = history.polls
    for row, number in enumerate(polls.assignment):
        mine = spans.get(number)
        if mine is None:
            continue
        for run in polls.runs(row):
            span = mine.get(polls.run_partition[run])
            if span is None:
                continue
            if span.start is None:
                span.start = polls.run_offset[run]
            if polls.run_end(run) > span.end:
                span.end, span.poll = polls.run_end(run), row
    found: dict[int, list[Span]] = {}
    for mine in spans.values():
        for partition, span in mine.items():
            found.setdefault(partition, []).append(span)
    return found
