"""What a consumer hands out: records and batches with their place in the log, and events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple

from fluxlog.batch import DecodedBatch, Headers
from fluxlog.entry import FetchedBatch
from fluxlog.errors import FluxlogError


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class ConsumedRecord(NamedTuple):
    """One committed record."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    """None: a tombstone."""
    key: bytes | None
    headers: Headers
    timestamp_ms: int
    """The producer's time, Unix milliseconds."""
    append_time_ms: int
    """The leader's clock at append, never decreasing along a partition."""
    leader_epoch: int


# All in C: the record is made from the tuple that zip makes.
_record = partial(tuple.__new__, ConsumedRecord)


class ConsumedBatch:
    """One producer's batch, or what of it is to be delivered. Columns are decoded when asked for; do not change them.

    Raises:
        UndecodableBatchError: it is corrupt.
    """

    __slots__ = ("_decoded", "_first", "_last", "append_time_ms", "leader_epoch", "next_offset", "offsets", "where")

    def __init__(self, where: TopicPartition, fetched: FetchedBatch, begin: int, end: int | None) -> None:
        self.where = where
        self._decoded: DecodedBatch = fetched.decode()
        offsets = self._decoded.offsets(fetched.base_offset)
        self._first = _count_below(offsets, begin)
        self._last = len(offsets) if end is None or fetched.next_offset <= end else _count_below(offsets, end)
        self.offsets: Sequence[int] = offsets if self._is_whole else offsets[self._first : self._last]
        """One per record, ascending."""
        self.next_offset = fetched.next_offset if end is None else min(fetched.next_offset, end)
        """First offset after the batch."""
        self.append_time_ms = fetched.append_time_ms
        self.leader_epoch = fetched.leader_epoch

    @property
    def _is_whole(self) -> bool:
        return self._first == 0 and self._last == len(self._decoded)

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return self.where.topic

    @property
    def partition(self) -> int:
        """Number of the partition."""
        return self.where.partition

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[ConsumedRecord]:
        return self.records()

    def values(self) -> Sequence[bytes | None]:
        """One per record."""
        values = self._decoded.values()
        return values if self._is_whole else values[self._first : self._last]

    def keys(self) -> Sequence[bytes | None]:
        """One per record."""
        keys = self._decoded.keys()
        return keys if self._is_whole else keys[self._first : self._last]

    def timestamps_ms(self) -> Sequence[int]:
        """The producer's times, one per record."""
        times = self._decoded.timestamps()
        return times if self._is_whole else times[self._first : self._last]

    def headers(self) -> Sequence[Headers]:
        """One row per record."""
        rows = self._decoded.header_rows()
        return rows if self._is_whole else rows[self._first : self._last]

    def records(self) -> Iterator[ConsumedRecord]:
        """One object each; for high rates use the columns."""
        columns = zip(
            repeat(self.where.topic), repeat(self.where.partition), self.offsets, self.values(), self.keys(),
            self.headers(), self.timestamps_ms(), repeat(self.append_time_ms), repeat(self.leader_epoch),
        )  # fmt: skip
        return map(_record, columns)


def _count_below(offsets: Sequence[int], bound: int) -> int:
    if not offsets or bound <= offsets[0]:
        return 0
    if isinstance(offsets, range):
        return min(bound - offsets.start, len(offsets))
    return sum(1 for offset in offsets if offset < bound)


@dataclass(frozen=True, slots=True)
class Assigned:
    """These partitions are this consumer's from now on."""

    partitions: Sequence[TopicPartition]


@dataclass(frozen=True, slots=True)
class Revoked:
    """These partitions go to another member: what was handled is committed when the handler of this event returns."""

    partitions: Sequence[TopicPartition]


@dataclass(frozen=True, slots=True)
class Lost:
    """These partitions are another member's already: what was not committed will be delivered there again."""

    partitions: Sequence[TopicPartition]


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything that was committed when the last response left its node has been handled. Told once until the
    consumer has been behind again."""

    partition: TopicPartition
    offset: int
    """Next one to come."""


@dataclass(frozen=True, slots=True)
class Leaderless:
    """The partition has no leader, or nobody serves it: nothing new can come. Told once until it has one again."""

    partition: TopicPartition
    error: FluxlogError


ConsumerEvent = Assigned | Revoked | Lost | CaughtUp | Leaderless
