"""Where to begin reading: start | end | N | -N | @time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto

from fluxlog.client import Client
from fluxlog.offsets import earliest_offsets, latest_offsets, offsets_at

SYNTAX = "start, end, N (offset), -N (the last N of each partition), @time (ISO 8601, Unix ms, or relative: @-5m)"
_RELATIVE = re.compile(r"-(\d+)(ms|s|m|h|d)")
_OFFSET_MAX = 2**63 - 1
_TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999."""
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Kind(Enum):
    """How a position is to be found."""

    START = auto()
    END = auto()
    OFFSET = auto()
    BEFORE_END = auto()
    TIME = auto()


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a partition.

    Attributes:
        number: the offset, how many before the end, or Unix milliseconds.
    """

    kind: Kind
    number: int = 0


def parse_position(text: str, now_ms: int | None = None) -> Position:
    """Parse the syntax above. A time without a zone is local.

    Raises:
        ValueError: it is something else.
    """
    if text in ("start", "beginning", "earliest"):
        return Position(Kind.START)
    if text in ("end", "latest"):
        return Position(Kind.END)
    if text.startswith("@"):
        time_ms = _time_ms(text[1:], time.time_ns() // 1_000_000 if now_ms is None else now_ms)
        if time_ms > _TIME_MS_MAX:
            raise ValueError(f"{text!r} is behind the year 9999")
        return Position(Kind.TIME, max(0, time_ms))  # nothing was written before 1970
    if text.isdecimal() and text.isascii():
        if int(text) > _OFFSET_MAX:
            raise ValueError(f"{text} is no offset: above {_OFFSET_MAX}")
        return Position(Kind.OFFSET, int(text))
    if text[:1] == "-" and text[1:].isdecimal() and text.isascii() and int(text[1:]) > 0:
        return Position(Kind.BEFORE_END, int(text[1:]))
    raise ValueError(f"{text!r} is none of: {SYNTAX}")


def _time_ms(text: str, now_ms: int) -> int:
    if relative := _RELATIVE.fullmatch(text):
        return now_ms - int(relative[1]) * _UNIT_MS[relative[2]]
    if text.isdecimal() and text.isascii():
        return int(text)
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no time: ISO 8601, Unix milliseconds, or relative like -5m") from error


def resolve(position: Position, client: Client, topic: str, partitions: Iterable[int]) -> Mapping[int, int]:
    """Offset to begin with, per partition.

    "start" asks nobody, so that reading from the beginning works without a quorum: the reader moves up to the log
    start.

    Raises:
        FluxlogError: the partitions' ends could not be learned.
    """
    numbers = list(partitions)
    match position.kind:
        case Kind.START:
            return dict.fromkeys(numbers, 0)
        case Kind.OFFSET:
            return dict.fromkeys(numbers, position.number)
        case Kind.TIME:
            return offsets_at(client, topic, numbers, position.number)
        case Kind.END:
            return latest_offsets(client, topic, numbers)
        case Kind.BEFORE_END:
            ends, starts = latest_offsets(client, topic, numbers), earliest_offsets(client, topic, numbers)
            return {number: max(starts[number], ends[number] - position.number) for number in numbers}
