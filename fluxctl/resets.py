"""Where the offsets of a group are to be set: worked out first, shown, and only then carried out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import typer

from fluxctl.positions import Kind, Position, parse_position
from fluxlog.admin import Admin
from fluxlog.client import Client
from fluxlog.offsets import earliest_offsets, latest_offsets, offsets_at

Key = tuple[str, int]
_DURATION = re.compile(r"\d+(ms|s|m|h|d)")


@dataclass(frozen=True, slots=True)
class Where:
    """A place, or a shift from the committed offset."""

    position: Position | None = None
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Reset:
    """One partition's offset, before and after."""

    topic: str
    partition: int
    current: int | None
    new: int


def parse_where(
    *, earliest: bool, latest: bool, offset: int | None, time: str | None, by_duration: str | None, shift: int | None
) -> Where:
    """Exactly one of them.

    Raises:
        typer.BadParameter: none, several, or a malformed one.
    """
    chosen = [earliest, latest, offset is not None, time is not None, by_duration is not None, shift is not None]
    if sum(chosen) != 1:
        raise typer.BadParameter("give exactly one of --earliest --latest --offset --time --by-duration --shift")
    if shift is not None:
        return Where(shift=shift)
    if earliest or latest:
        return Where(Position(Kind.START if earliest else Kind.END))
    if offset is not None:
        return Where(Position(Kind.OFFSET, offset))
    if by_duration is not None and not _DURATION.fullmatch(by_duration):
        raise typer.BadParameter(f"{by_duration!r} is no duration like 90s, 5m, 2h, 1d", param_hint="--by-duration")
    try:
        return Where(parse_position(f"@{time}" if time is not None else f"@-{by_duration}"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--time") from error


def parse_topics(items: Sequence[str], client: Client) -> list[Key]:
    """TOPIC, or TOPIC:0,2 for some of its partitions.

    Raises:
        typer.BadParameter: a partition is no number, or the topic has not got it.
        FluxlogError: UNKNOWN_TOPIC.
    """
    out: list[Key] = []
    for item in items:
        name, _, listed = item.partition(":")
        (described,) = Admin(client).describe_topics([name])
        present = sorted(partition.partition for partition in described.partitions)
        numbers = listed.split(",") if listed else list(map(str, present))
        for number in numbers:
            if not number.isdecimal() or int(number) not in present:
                raise typer.BadParameter(f"{item!r}: topic {name} has partitions {present[0]}..{present[-1]}")
            out.append((name, int(number)))
    return sorted(set(out))


def plan_resets(client: Client, keys: Sequence[Key], committed: Mapping[Key, int], where: Where) -> list[Reset]:
    """What is to be set, each offset moved to within what the partition has.

    Raises:
        FluxlogError: partitions' ends could not be learned.
    """
    out = []
    for topic in sorted({topic for topic, _ in keys}):
        numbers = [number for name, number in keys if name == topic]
        starts, ends = earliest_offsets(client, topic, numbers), latest_offsets(client, topic, numbers)
        wanted = _wanted(client, topic, numbers, committed, where, starts, ends)
        for number in numbers:
            new = min(max(wanted[number], starts[number]), ends[number])
            out.append(Reset(topic, number, committed.get((topic, number)), new))
    return out


def _wanted(
    client: Client,
    topic: str,
    numbers: Sequence[int],
    committed: Mapping[Key, int],
    where: Where,
    starts: Mapping[int, int],
    ends: Mapping[int, int],
) -> Mapping[int, int]:
    if where.position is None:
        return {number: committed.get((topic, number), starts[number]) + where.shift for number in numbers}
    match where.position.kind:
        case Kind.START:
            return starts
        case Kind.END:
            return ends
        case Kind.TIME:
            return offsets_at(client, topic, numbers, where.position.number)
        case _:
            return dict.fromkeys(numbers, where.position.number)
