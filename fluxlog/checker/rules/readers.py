"""What one reader is given, from one record to the next, until its assignment changes or it crashes."""

from __future__ import annotations

from collections.abc import Iterator

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Finding, ReadRef
from fluxlog.checker.index import Index
from fluxlog.checker.rules.log import evidence_of


def poll_skip(index: Index) -> Iterator[Finding]:
    """A reader went over records that another poll returned. Below the log start they may be gone."""
    for jump in index.jumps:
        log, start = index.logs[jump.partition], max(jump.expected, index.log_start[jump.partition])
        offset = log.first_held(start, jump.offset) if start < jump.offset else NOTHING
        if offset == NOTHING:
            continue
        reader = index.process_names[index.history.polls.process[jump.poll]]
        yield Finding(
            f"{index.at(jump.partition, offset)}: {index.value(log.get(offset))} was skipped by {reader}, which went "
            f"from {jump.expected} to {jump.offset} ({log.count(start, jump.offset)} records that others read)",
            (*evidence_of(jump), ReadRef(jump.partition, offset, log.get(offset))),
        )


def nonmonotonic_poll(index: Index) -> Iterator[Finding]:
    """A reader was given an offset below its position: something again, or in the wrong order."""
    for jump in index.jumps:
        if jump.offset >= jump.expected:
            continue
        reader = index.process_names[index.history.polls.process[jump.poll]]
        yield Finding(
            f"{index.at(jump.partition, jump.offset)}: {reader} went back from {jump.expected}", evidence_of(jump)
        )
