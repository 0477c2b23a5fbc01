"""What became of each send."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Finding, ReadRef, SendRef
from fluxlog.checker.history import Outcome
from fluxlog.checker.index import Index, Unconfirmed


def missing(index: Index) -> Iterator[tuple[Unconfirmed, bool]]:
    """Acknowledged values that were never read, each with whether something at or above it was: then it is lost."""
    partition_of = index.history.sends.partition
    for value in index.unconfirmed:
        partition = partition_of[value.send]
        if index.place[value.value] == NOTHING and value.offset >= index.log_start[partition]:
            yield value, value.offset < index.logs[partition].end


def lost_write(index: Index) -> Iterator[Finding]:
    """Acknowledged below the highest offset that was read, and never read."""
    above = partition = NOTHING
    for (send, value, offset, _), lost in missing(index):
        if not lost:
            continue
        # values of a partition come by offset: one search for a whole lost stretch
        if partition != index.history.sends.partition[send] or above < offset:
            partition = index.history.sends.partition[send]
            above = index.logs[partition].first_held(offset, index.logs[partition].end)
        log = index.logs[partition]
        yield Finding(
            f"{index.at(partition, offset)}: {index.value(value)} was acknowledged and never read, "
            f"what is at {above} was",
            (SendRef(send), ReadRef(partition, above, log.get(above))),
        )


def unseen(index: Index) -> Iterator[Finding]:
    """Acknowledged above everything that was read, and the last phase is over. Before that it is lag, no error."""
    if math.isinf(index.final_read_began):
        return
    for (send, value, offset, _), lost in missing(index):
        if lost:
            continue
        partition = index.history.sends.partition[send]
        yield Finding(
            f"{index.at(partition, offset)}: {index.value(value)} was acknowledged and never read; reading ended at "
            f"{index.logs[partition].end}",
            (SendRef(send),),
        )


def aborted_read(index: Index) -> Iterator[Finding]:
    """A value was read whose send was answered REJECTED."""
    sends = index.history.sends
    for row, outcome in enumerate(sends.outcome):
        if outcome != Outcome.FAIL:
            continue
        for value in sends.values(row):
            offset, partition = index.place[value], sends.partition[row]
            if offset != NOTHING:
                yield Finding(
                    f"{index.at(partition, offset)}: {index.value(value)} was rejected and read",
                    (SendRef(row), ReadRef(partition, offset, value)),
                )


def acknowledged_value(index: Index) -> Iterator[Finding]:
    """Another value was read at an acknowledged offset."""
    for send, value, offset, read in index.unconfirmed:
        partition = index.history.sends.partition[send]
        if read != NOTHING:
            yield Finding(
                f"{index.at(partition, offset)}: acknowledged for {index.value(value)}, read {index.value(read)}",
                (SendRef(send), ReadRef(partition, offset, read)),
            )
