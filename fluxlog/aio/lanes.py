"""What a producer holds for each partition: the batch that records go into, and what became of those before."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fluxlog.batch import Headers
from fluxlog.delivery import Batch, PartitionQueue
from fluxlog.errors import DeliveryError, FluxlogError, LocalError, Outcome, RejectedError, UnknownOutcomeError


class Delivered(NamedTuple):
    """A record is on disk on a majority of its partition's replicas."""

    partition: int
    offset: int
    leader_epoch: int
    copies_on_disk: int
    """Replicas that had it on disk when the leader answered: a majority at least."""
    duplicate: bool
    """Written by an earlier attempt, whose answer was lost."""


@dataclass(slots=True, eq=False, kw_only=True)
class RecordsBatch(Batch):
    """A batch that records are put into one by one."""

    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] | None = None
    timestamps_ms: list[int] = field(default_factory=list)
    headers: list[Headers] | None = None
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def resolve(self) -> None:
        """The result is there: who keeps the batch for it need not keep the records, too."""
        self.values, self.keys, self.headers, self.timestamps_ms, self.encoded = [], None, None, [], b""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    async def finished(self) -> None:
        """Wait for the result. Cancelling this wait changes nothing for the batch."""
        if self.result is None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiters.append(future)
            await future

    def delivered(self, index: int) -> Delivered:
        """What became of record `index`.

        Raises:
            RejectedError: it was not written.
            UnknownOutcomeError: it may have been.
        """
        result = self.result
        assert result is not None
        if result.outcome is not Outcome.COMMITTED:
            raise self.failure()
        return Delivered(
            result.partition, result.base_offset + index, result.leader_epoch, result.copies_on_disk, result.duplicate
        )

    def failure(self) -> DeliveryError:
        """A new exception: each of those who wait gets its own."""
        result = self.result
        assert result is not None
        cause = result.error or FluxlogError("UNKNOWN", "no reason was given")
        kind = RejectedError if result.outcome is Outcome.REJECTED else UnknownOutcomeError
        return kind(cause, result.topic, result.partition)


class Delivery:
    """A record on its way. Await it for the outcome, or ask when it is done; or forget it and `flush`."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: RecordsBatch, index: int) -> None:
        self._batch, self._index = batch, index

    def done(self) -> bool:
        """The outcome is known."""
        return self._batch.result is not None

    def result(self) -> Delivered:
        """The outcome, once it is known.

        Raises:
            RejectedError: the record was not written.
            UnknownOutcomeError: it may have been.
            LocalError: NOT_DONE.
        """
        if self._batch.result is None:
            raise LocalError("NOT_DONE", "the record has no outcome yet")
        return self._batch.delivered(self._index)

    def __await__(self) -> Generator[object, None, Delivered]:
        yield from self._batch.finished().__await__()
        return self._batch.delivered(self._index)


@dataclass(slots=True, eq=False)
class Lane:
    """One partition."""

    queue: PartitionQueue
    topic: TopicLanes
    open: RecordsBatch | None = None
    """Takes records."""
    last: RecordsBatch | None = None
    """Handed over most recently: when it is finished, all before it are."""
    unfinished: int = 0
    """Batches handed over that have no outcome yet."""


@dataclass(slots=True, eq=False)
class TopicLanes:
    """The partitions of a topic, and which one is next for records without a key."""

    topic: str
    lanes: list[Lane] = field(default_factory=list)
    position: int = 0
    turn: int = 0

    @property
    def sticky(self) -> Lane:
        """Takes records without a key."""
        return self.lanes[self.position]

    def move_on(self) -> Lane:
        """Make another lane the sticky one."""
        self.position = self._after(self.position)
        return self.lanes[self.position]

    def take_turn(self) -> Lane:
        """The next lane, each in its turn."""
        self.turn = self._after(self.turn)
        return self.lanes[self.turn]

    def _after(self, position: int) -> int:
        """Partitions in trouble are left out while there are others."""
        lanes, count = self.lanes, len(self.lanes)
        for step in range(1, count + 1):
            queue = lanes[(position + step) % count].queue
            if not (queue.failures and queue.batches):
                return (position + step) % count
        return (position + 1) % count

    def at(self, partition: int) -> Lane:
        """A partition's lane.

        Raises:
            LocalError: UNKNOWN_PARTITION.
        """
        if not 0 <= partition < len(self.lanes):
            bounds = f"{self.topic} has partitions 0..{len(self.lanes) - 1}, not {partition}"
            raise LocalError("UNKNOWN_PARTITION", bounds)
        return self.lanes[partition]


def checked_bytes(what: str, value: object) -> bytes | None:
    """Bytes as the encoder takes them: another record's batch must not fail for this one's sake.

    Raises:
        TypeError: neither bytes-like nor None.
    """
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a {what} is bytes or None, not {type(value).__name__}")


def checked_headers(headers: Headers) -> Headers:
    """Headers as the encoder takes them.

    Raises:
        TypeError, ValueError: not pairs of str and bytes or None.
    """
    rows = []
    for name, value in headers:
        if not isinstance(name, str):
            raise TypeError(f"a header's name is str, not {type(name).__name__}")
        name.encode()
        rows.append((name, checked_bytes("header", value)))
    return rows


def checked_timestamp(timestamp_ms: int) -> int:
    """Raises: ValueError, TypeError: not an integer of 64 bits."""
    if not isinstance(timestamp_ms, int):
        raise TypeError(f"a timestamp is int (Unix milliseconds), not {type(timestamp_ms).__name__}")
    if not -(1 << 63) <= timestamp_ms < 1 << 63:
        raise ValueError(f"timestamp {timestamp_ms} has more than 64 bits")
    return timestamp_ms


def size_of_headers(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Bytes at most, as encoded."""
    return sum(4 * len(name) + len(value or b"") + 12 for name, value in headers)
