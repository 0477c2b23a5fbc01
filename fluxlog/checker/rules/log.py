"""The log of a partition, as polls and acknowledgements show it."""

from __future__ import annotations

from collections.abc import Iterator

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Finding, PollRef, ReadRef, SendRef
from fluxlog.checker.index import Index
from fluxlog.checker.reads import Jump


def inconsistent_offset(index: Index) -> Iterator[Finding]:
    """Two polls, or two acknowledgements, disagree on what is at an offset.

    A poll against an acknowledgement is `acknowledged_value`.
    """
    seen = set()
    for row, partition, offset, value in index.conflicts:
        if (partition, offset, value) in seen:
            continue
        seen.add((partition, offset, value))
        other = index.logs[partition].get(offset)
        yield Finding(
            f"{index.at(partition, offset)}: {index.value(other)} was read, and {index.value(value)}",
            (ReadRef(partition, offset, other), ReadRef(partition, offset, value, row)),
        )
    sends = index.history.sends
    for partition, rows in enumerate(index.acknowledged):
        end, highest = 0, NOTHING
        for row in rows:
            offset = sends.offset[row]
            if offset < end:
                yield Finding(
                    f"{index.at(partition, offset)}: acknowledged to two sends", (SendRef(highest), SendRef(row))
                )
            if offset + sends.count(row) > end:
                end, highest = offset + sends.count(row), row


def duplicate(index: Index) -> Iterator[Finding]:
    """One value at two offsets of its partition, read twice or read elsewhere than acknowledged."""
    for value, partition, offset in index.again:
        first = index.place[value]
        yield Finding(
            f"{index.partition_names[partition]}: {index.value(value)} was read at {first} and at {offset}",
            (ReadRef(partition, first, value), ReadRef(partition, offset, value)),
        )
    for send, value, acknowledged, _ in index.unconfirmed:
        place, partition = index.place[value], index.history.sends.partition[send]
        if place not in (NOTHING, acknowledged):
            yield Finding(
                f"{index.partition_names[partition]}: {index.value(value)} was acknowledged at {acknowledged} "
                f"and read at {place}",
                (SendRef(send), ReadRef(partition, place, value)),
            )


def unexpected_value(index: Index) -> Iterator[Finding]:
    """A value that nobody sent, or that was sent to another partition."""
    for value, partition, offset in index.strange:
        send = index.sender[value]
        evidence = (ReadRef(partition, offset, value),)
        if send == NOTHING:
            yield Finding(f"{index.at(partition, offset)}: nobody sent {index.value(value)}", evidence)
            continue
        home = index.partition_names[index.history.sends.partition[send]]
        yield Finding(
            f"{index.at(partition, offset)}: {index.value(value)} was sent to {home}", (SendRef(send), *evidence)
        )


def hole(index: Index) -> Iterator[Finding]:
    """A reader passed over an offset that no poll ever returned. Below the log start nothing is missed.

    Offsets that others were given are `readers.poll_skip`.
    """
    reported = set()
    for jump in index.jumps:
        start = max(jump.expected, index.log_start[jump.partition])
        offset = index.logs[jump.partition].first_hole(start, jump.offset)
        if offset == NOTHING or (jump.partition, offset) in reported:
            continue
        reported.add((jump.partition, offset))
        missing = jump.offset - start - index.logs[jump.partition].count(start, jump.offset)
        yield Finding(
            f"{index.at(jump.partition, offset)}: never read, though a reader went from {jump.expected} to "
            f"{jump.offset} ({missing} offsets missing in between)",
            evidence_of(jump),
        )


def evidence_of(jump: Jump) -> tuple[PollRef, ...]:
    """The poll before, where there was one, and the poll that jumped."""
    here = PollRef(jump.poll, jump.partition)
    if jump.previous in (NOTHING, jump.poll):
        return (here,)
    return PollRef(jump.previous, jump.partition), here
