"""Many records at once: whole batches are cut out of what is given, column by column."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from fluxlog.aio.lanes import Lane, RecordsBatch, TopicLanes, checked_bytes, checked_timestamp
from fluxlog.aio.room import Room
from fluxlog.batch import BATCH_RECORDS_MAX
from fluxlog.errors import DeliveryError, FluxlogError, LocalError, Outcome
from fluxlog.partitioners import Partitioner

_PER_RECORD = 8
"""Bytes counted for each record beside its own: more than its lengths can take as encoded."""
_FIRST_CHUNK = 1_024
_KEYED_CHUNK = 8_192


@dataclass(frozen=True, slots=True)
class DeliveredRange:
    """Records of one batch, on disk on a majority: offsets base_offset.. without a hole."""

    partition: int
    base_offset: int
    numbers: Sequence[int]
    """Which of the values these are, from 0, in the order of their offsets."""
    leader_epoch: int
    copies_on_disk: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What became of `send_many`."""

    delivered: Sequence[DeliveredRange]

    @property
    def record_count(self) -> int:
        """Acknowledged records."""
        return sum(len(part.numbers) for part in self.delivered)


@dataclass(frozen=True, slots=True)
class FailedRange:
    """Records of one batch that were not acknowledged."""

    numbers: Sequence[int]
    error: DeliveryError
    """RejectedError: not written; UnknownOutcomeError: perhaps written."""


class BulkDeliveryError(FluxlogError):
    """Some records of `send_many` were not acknowledged. The outcome is UNKNOWN if that of any of them is.

    Where something went wrong with the records themselves, or the producer was closed, that is the `__cause__`. What
    had been sent by then is in `result` and `failed`; the others were not sent.
    """

    def __init__(
        self, result: BulkResult, failed: Sequence[FailedRange], *, broken_off: Exception | None = None
    ) -> None:
        count = sum(len(part.numbers) for part in failed)
        told = f"{count} of {count + result.record_count} records were not acknowledged"
        if broken_off is None:
            first: FluxlogError = failed[0].error
        else:
            first = _refusal_of(broken_off)
            told = f"no more was sent after {count + result.record_count} records, {told}"
        unknown = any(part.error.outcome is Outcome.UNKNOWN for part in failed)
        super().__init__(
            first.reason,
            f"{told}: {first.message}",
            outcome=Outcome.UNKNOWN if unknown else Outcome.REJECTED,
            retriable=first.retriable,
            metadata=first.metadata,
        )
        self.result = result
        self.failed = failed


def _refusal_of(error: Exception) -> FluxlogError:
    if isinstance(error, FluxlogError):
        return error
    return LocalError("INVALID_ARGUMENT", f"{type(error).__name__}: {error}")


_Part = tuple[RecordsBatch, Sequence[int]]


async def send_in_bulk(
    lanes: TopicLanes,
    values: Iterable[bytes | None],
    keys: Iterable[bytes | None] | None,
    fixed: Lane | None,
    *,
    room: Room,
    hand_over: Callable[[Lane, RecordsBatch], None],
    partitioner: Partitioner,
    batch_bytes: int,
    timestamp_ms: int | None,
) -> BulkResult:
    """See Producer.send_many."""
    if timestamp_ms is not None:
        checked_timestamp(timestamp_ms)
    chunks = (
        _cut(values, None, lambda: fixed or lanes.take_turn(), batch_bytes)
        if keys is None
        else _cut_keyed(values, keys, lanes, fixed, partitioner, batch_bytes)
    )
    parts: list[_Part] = []
    try:
        for lane, numbers, chunk_values, chunk_keys, size in chunks:
            await room.take(size)
            now_ms = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
            batch = RecordsBatch(
                values=chunk_values, keys=chunk_keys, context=lane, size=size, queued_at=time.monotonic(),
                timestamps_ms=now_ms,  # type: ignore[arg-type]  # one for all
            )  # fmt: skip
            try:
                hand_over(lane, batch)
            except BaseException:
                room.give(size)
                raise
            parts.append((batch, numbers))
            await asyncio.sleep(0)  # what was handed over leaves now, not when all of it is cut
    except Exception as error:  # whatever the caller's iterables and partitioner raise
        if not parts:
            raise
        result, failed = await _outcomes(parts)
        raise BulkDeliveryError(result, failed, broken_off=error) from error
    result, failed = await _outcomes(parts)
    if failed:
        raise BulkDeliveryError(result, failed)
    return result


async def _outcomes(parts: Sequence[_Part]) -> tuple[BulkResult, Sequence[FailedRange]]:
    """Of what was handed over, once all of it has one."""
    delivered, failed = [], []
    for batch, numbers in parts:
        await batch.finished()
        result = batch.result
        assert result is not None
        if result.outcome is Outcome.COMMITTED:
            delivered.append(
                DeliveredRange(
                    result.partition, result.base_offset, numbers, result.leader_epoch, result.copies_on_disk,
                    result.duplicate,
                )
            )  # fmt: skip
        else:
            failed.append(FailedRange(numbers, batch.failure()))
    return BulkResult(delivered), failed


_Chunk = tuple[Lane, Sequence[int], list[bytes | None], list[bytes | None] | None, int]


def _cut(
    values: Iterable[bytes | None], keys: None, next_lane: Callable[[], Lane], batch_bytes: int
) -> Iterator[_Chunk]:
    """Runs of values, each as large as a batch may be."""
    rest, first, count = iter(values), 0, _FIRST_CHUNK
    pending: list[bytes | None] = []
    while True:
        pending += islice(rest, max(0, count - len(pending)))
        if not pending:
            return
        taken, size = _fitting(pending, batch_bytes)
        chunk, pending = pending[:taken], pending[taken:]
        yield next_lane(), range(first, first + taken), chunk, None, size
        first += taken
        count = min(BATCH_RECORDS_MAX, max(1, taken * batch_bytes // max(size, 1)))


def _fitting(values: list[bytes | None], batch_bytes: int) -> tuple[int, int]:
    """How many of the first values make a batch, and their size."""
    count = min(len(values), BATCH_RECORDS_MAX)
    while True:
        size = _size(values if count == len(values) else values[:count])
        if size <= batch_bytes or count == 1:
            return count, size
        count = max(1, min(count - 1, count * batch_bytes // size))


def _size(values: list[bytes | None]) -> int:
    try:
        # bytes.__len__ refuses everything that is not bytes, None among it.
        return sum(map(bytes.__len__, values)) + _PER_RECORD * len(values)  # type: ignore[arg-type]
    except TypeError:
        values[:] = [checked_bytes("value", value) for value in values]
        return sum(len(value) for value in values if value) + _PER_RECORD * len(values)


def _cut_keyed(
    values: Iterable[bytes | None],
    keys: Iterable[bytes | None],
    lanes: TopicLanes,
    fixed: Lane | None,
    partitioner: Partitioner,
    batch_bytes: int,
) -> Iterator[_Chunk]:
    """Records sorted by partition; each batch leaves when it is full or a stretch of the input is over."""
    numbered = enumerate(zip(values, keys, strict=True))
    while stretch := list(islice(numbered, _KEYED_CHUNK)):
        keyless = fixed or lanes.take_turn()
        open_parts: dict[Lane, tuple[list[int], list[bytes | None], list[bytes | None], int]] = {}
        for number, (value, key) in stretch:
            value, key = checked_bytes("value", value), checked_bytes("key", key)
            lane = fixed or (keyless if key is None else lanes.at(partitioner(key, len(lanes.lanes))))
            size = 2 * _PER_RECORD + len(value or b"") + len(key or b"")
            numbers, lane_values, lane_keys, total = open_parts.get(lane) or ([], [], [], 0)
            if numbers and total + size > batch_bytes:
                yield lane, numbers, lane_values, lane_keys, total
                numbers, lane_values, lane_keys, total = [], [], [], 0
            numbers.append(number)
            lane_values.append(value)
            lane_keys.append(key)
            open_parts[lane] = numbers, lane_values, lane_keys, total + size
        for lane, (numbers, lane_values, lane_keys, total) in open_parts.items():
            yield lane, numbers, lane_values, lane_keys, total
