"""Appends that name the offset that they expect."""

from __future__ import annotations

from collections.abc import Iterator

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Finding, ReadRef, Ref, SendRef
from fluxlog.checker.history import Outcome
from fluxlog.checker.index import Index


def two_winners(index: Index) -> Iterator[Finding]:
    """Two appends that expected the same offset were acknowledged."""
    sends = index.history.sends
    winners: dict[tuple[int, int], int] = {}
    for row, (partition, expected) in enumerate(zip(sends.partition, sends.expected_offset, strict=True)):
        if expected == NOTHING or sends.outcome[row] != Outcome.OK:
            continue
        first = winners.setdefault((partition, expected), row)
        if first != row:
            yield Finding(
                f"{index.at(partition, expected)}: two appends that expected it won", (SendRef(first), SendRef(row))
            )


def wrong_offset(index: Index) -> Iterator[Finding]:
    """An append was acknowledged or read elsewhere than it expected."""
    sends = index.history.sends
    for row, expected in enumerate(sends.expected_offset):
        offset = index.offset_of_send[row]
        if expected == NOTHING or offset in (NOTHING, expected):
            continue
        partition = sends.partition[row]
        evidence: tuple[Ref, ...] = (SendRef(row),)
        if sends.outcome[row] != Outcome.OK:
            evidence += (ReadRef(partition, offset, sends.first_value(row)),)
        yield Finding(f"{index.at(partition, offset)}: expected {expected}", evidence)
