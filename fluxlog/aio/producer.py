"""The producer: records in, acknowledgements out. Idempotent always; order is kept per partition, through failovers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Literal, Self

from fluxlog.aio.bulk import BulkResult, send_in_bulk
from fluxlog.aio.connection import Connection, connection_of
from fluxlog.aio.dispatch import Dispatch, closed_error
from fluxlog.aio.lanes import (
    Delivered,
    Delivery,
    Lane,
    RecordsBatch,
    TopicLanes,
    checked_bytes,
    checked_headers,
    checked_timestamp,
    size_of_headers,
)  # fmt: skip
from fluxlog.aio.room import Room
from fluxlog.aio.topic_book import TopicBook
from fluxlog.batch import BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Headers
from fluxlog.codec import Codec
from fluxlog.delivery import PartitionQueue, Retry
from fluxlog.errors import BufferFullError, LocalError
from fluxlog.partitioners import Partitioner, crc32_of_key
from fluxlog.pipeline import DELIVERY_TIMEOUT_DEFAULT

BATCH_BYTES_DEFAULT = 256 * 1024
BUFFER_BYTES_DEFAULT = 32 * 1024 * 1024
LINGER_MS_DEFAULT = 5.0
RECORD_OVERHEAD = 24
"""Bytes counted for each record beside its own: more than its lengths and timestamp can take as encoded."""


class Producer:
    """Writes records to topics.

        async with Producer("127.0.0.1:9101") as producer:
            print(await producer.send("orders", b"value", key=b"key"))

    Many tasks may send at the same time; their records share batches. What is acknowledged is written once, and in the
    order of the calls per partition, whatever fails meanwhile. Belongs to the loop on which it was opened.

    Args:
        cluster: "host:port,host:port", a list of such, or a Connection that is shared.
        partitioner: for records with a key; see fluxlog.partitioners, or any function of yours.
        keyless: records without a key: "sticky" fills one partition's batch and goes to the next, "round_robin" takes
            the next partition for each record.
        codec: compression of batches.
        batch_bytes: a batch is sent when it has so many, 1,024..1,000,000.
        linger_ms: how long a record waits at most for others while a batch of its partition is on its way. When none
            is, nothing waits.
        buffer_bytes: of records without an outcome; above it `send` waits and `send_nowait` raises.
        delivery_timeout: seconds in which a record is tried again.
        on_retry: called when batches go out again.
    """

    def __init__(
        self,
        cluster: str | Sequence[str] | Connection,
        *,
        partitioner: Partitioner = crc32_of_key,
        keyless: Literal["sticky", "round_robin"] = "sticky",
        codec: Codec = Codec.NONE,
        batch_bytes: int = BATCH_BYTES_DEFAULT,
        linger_ms: float = LINGER_MS_DEFAULT,
        buffer_bytes: int = BUFFER_BYTES_DEFAULT,
        delivery_timeout: float = DELIVERY_TIMEOUT_DEFAULT,
        on_retry: Callable[[Retry], None] | None = None,
    ) -> None:
        if not 1_024 <= batch_bytes <= 1_000_000:
            raise LocalError("INVALID_ARGUMENT", f"batch_bytes {batch_bytes} is not in 1,024..1,000,000")
        self._connection, self._owns_connection = connection_of(cluster)
        self._partitioner, self._round_robin = partitioner, keyless == "round_robin"
        self._codec, self._batch_bytes, self._linger = codec, batch_bytes, linger_ms / 1000
        self._delivery_timeout, self._on_retry = delivery_timeout, on_retry
        self._room = Room(buffer_bytes)
        self._book = TopicBook(self._connection, self._queue_of)
        self._topics = self._book.topics
        self._dispatch: Dispatch | None = None
        self._closed = False

    # ---- life

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who is cancelled wants to end; whoever failed still wants what was sent before to arrive.
        await self.close(flush=kind is None or issubclass(kind, Exception))

    def open(self) -> None:
        """What `async with` does first. Needs a running loop."""
        self._dispatch = Dispatch(
            self._connection, on_finished=self._take_finished, on_retry=self._on_retry, codec=self._codec,
            linger=self._linger, delivery_timeout=self._delivery_timeout,
        )  # fmt: skip

    async def close(self, *, flush: bool = True) -> None:
        """End it.

        Args:
            flush: wait for what is on its way. Otherwise it is given up: REJECTED where it was never taken, or UNKNOWN.
        """
        try:
            if flush and not self._closed:
                await self.flush()
        finally:
            self._closed = True
            self._seal_all()
            if self._dispatch is not None:
                await self._dispatch.close()
            await self._book.close()
            if self._owns_connection:
                await self._connection.close()

    @property
    def buffer_bytes(self) -> int:
        """How many may be buffered."""
        return self._room.limit

    @property
    def buffered_bytes(self) -> int:
        """Of records without an outcome."""
        return self._room.used

    # ---- sending

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
        expected_offset: int | None = None,
    ) -> Delivered:
        """Write one record and wait until it is on disk on a majority of the replicas.

        Cancelling the wait does not take the record back: it is written, or not, like others.

        Args:
            value: None is a tombstone.
            partition: explicit; otherwise chosen by key, or for records without one as `keyless` says.
            timestamp_ms: Unix milliseconds; None: now.
            expected_offset: write it only if it gets exactly this offset; needs `partition`. Of several writers that
                expect the same offset one wins; the others get RejectedError with reason WRONG_EXPECTED_OFFSET.

        Raises:
            RejectedError: it was not written.
            UnknownOutcomeError: it may have been.
            FluxlogError: the topic or partition does not exist, or nobody answers: nothing was sent.
        """
        lanes = self._topics.get(topic) or await self._load(topic)
        if value.__class__ is not bytes:  # before its size is taken: a memoryview may count other things than bytes
            value = checked_bytes("value", value)
        if key is not None:
            key = checked_bytes("key", key)
        size = RECORD_OVERHEAD + (len(value) if value else 0) + (len(key) if key else 0)
        if headers:
            headers = checked_headers(headers)
            size += size_of_headers(headers)
        if not self._room.try_take(size):
            await self._room.take(size)
        if expected_offset is not None:
            batch = self._put_alone(lanes, value, key, partition, headers, timestamp_ms, size, expected_offset)
        else:
            batch = self._put(lanes, value, key, partition, headers, timestamp_ms, size)
        index = len(batch.values) - 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch.waiters.append(future)
        await future
        return batch.delivered(index)

    def send_nowait(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> Delivery:
        """Take one record without waiting; arguments as of `send`.

        The topic has to be known already: `await prepare(topic)` once, or anything that was awaited for it before.

        Raises:
            BufferFullError: `await ready()` and try again.
            FluxlogError: UNKNOWN_TOPIC: not prepared. UNKNOWN_PARTITION.
        """
        lanes = self._topics.get(topic)
        if lanes is None:
            raise LocalError("UNKNOWN_TOPIC", f"topic {topic!r} is not prepared: await producer.prepare({topic!r})")
        if value.__class__ is not bytes:
            value = checked_bytes("value", value)
        if key is not None:
            key = checked_bytes("key", key)
        size = RECORD_OVERHEAD + (len(value) if value else 0) + (len(key) if key else 0)
        if headers:
            headers = checked_headers(headers)
            size += size_of_headers(headers)
        if not self._room.try_take(size):
            raise BufferFullError(f"{self._room.used} bytes wait for their outcome")
        batch = self._put(lanes, value, key, partition, headers, timestamp_ms, size)
        return Delivery(batch, len(batch.values) - 1)

    async def send_many(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        keys: Iterable[bytes | None] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> BulkResult:
        """Write many records, as fast as can be, and wait until all are on disk on a majority of the replicas.

        Without keys and partition, whole batches go to one partition after another. Iterables are read as room comes,
        so they may be longer than what fits the memory.

        Args:
            keys: one for each value.
            timestamp_ms: of all; None: when they are taken.

        Raises:
            BulkDeliveryError: some were not acknowledged; it says which, and has the result of the others. Also when
                an iterable raises, a value or partition is none, or the producer is closed, once something was sent.
            FluxlogError: the topic or partition does not exist, or nobody answers: nothing was sent. The same holds for
                any other error.
        """
        lanes = self._topics.get(topic) or await self._load(topic)
        fixed = None if partition is None else lanes.at(partition)
        return await send_in_bulk(
            lanes, values, keys, fixed, room=self._room, hand_over=self._hand_over, partitioner=self._partitioner,
            batch_bytes=self._batch_bytes, timestamp_ms=timestamp_ms,
        )  # fmt: skip

    async def flush(self) -> None:
        """Wait until everything that was sent before has its outcome. Failures are told to those who sent."""
        self._seal_all()
        for last in [lane.last for lane in self._book.lanes() if lane.unfinished]:
            if last is not None:
                await last.finished()

    async def ready(self, size: int = 1) -> None:
        """Wait until there is room for more records.

        Args:
            size: bytes; of each record its own and RECORD_OVERHEAD.
        """
        await self._room.take(size)
        self._room.give(size)

    async def prepare(self, topic: str) -> int:
        """Learn about a topic, so that `send_nowait` can be used; returns its number of partitions.

        Raises:
            FluxlogError: UNKNOWN_TOPIC; or nobody answers.
        """
        return len((self._topics.get(topic) or await self._load(topic)).lanes)

    # ---- within

    def _put(
        self,
        lanes: TopicLanes,
        value: bytes | None,
        key: bytes | None,
        partition: int | None,
        headers: Headers,
        timestamp_ms: int | None,
        size: int,
    ) -> RecordsBatch:
        """Into the open batch of its lane; the room is taken already and is given back on an error."""
        try:
            if timestamp_ms is None:
                timestamp_ms = time.time_ns() // 1_000_000
            else:
                checked_timestamp(timestamp_ms)
            sticky = partition is None and key is None and not self._round_robin
            if sticky:
                lane = lanes.sticky
            elif partition is None and key is None:
                lane = lanes.take_turn()
            else:
                lane = self._lane_of(lanes, key, partition)
            batch = lane.open
            while batch is not None and batch.size + size > self._batch_bytes:
                self._seal(lane)
                if sticky:
                    lane = lanes.sticky
                batch = lane.open
            if batch is None:
                batch = self._open_batch(lane)
        except BaseException:
            self._room.give(size)
            raise
        batch.values.append(value)
        batch.timestamps_ms.append(timestamp_ms)
        batch.size += size
        if key is not None or batch.keys is not None:
            _append_to_column(batch, key)
        if headers or batch.headers is not None:
            _append_headers(batch, headers)
        if batch.size >= self._batch_bytes or len(batch.values) == BATCH_RECORDS_MAX:
            self._seal(lane)
        return batch

    def _lane_of(self, lanes: TopicLanes, key: bytes | None, partition: int | None) -> Lane:
        if partition is None:
            assert key is not None
            partition = self._partitioner(key, len(lanes.lanes))
        return lanes.at(partition)

    def _open_batch(self, lane: Lane) -> RecordsBatch:
        if self._dispatch is None or self._closed:
            raise closed_error()
        lane.open = batch = RecordsBatch(context=lane, size=0, queued_at=time.monotonic())
        self._dispatch.touch(lane)
        return batch

    def _seal(self, lane: Lane) -> None:
        assert self._dispatch is not None
        self._dispatch.seal(lane)

    def _seal_all(self) -> None:
        for lane in self._book.lanes():
            if lane.open is not None:
                self._seal(lane)

    def _put_alone(
        self,
        lanes: TopicLanes,
        value: bytes | None,
        key: bytes | None,
        partition: int | None,
        headers: Headers,
        timestamp_ms: int | None,
        size: int,
        expected_offset: int,
    ) -> RecordsBatch:
        """A batch of its own, behind what was sent before."""
        try:
            if partition is None:
                raise LocalError("INVALID_ARGUMENT", "expected_offset needs a partition")
            if not 0 <= expected_offset < 1 << 63:
                raise LocalError("INVALID_ARGUMENT", f"expected_offset {expected_offset} is not in 0..2^63-1")
            lane = lanes.at(partition)
            batch = RecordsBatch(
                values=[value],
                keys=[key],
                headers=[headers] if headers else None,
                timestamps_ms=[
                    time.time_ns() // 1_000_000 if timestamp_ms is None else checked_timestamp(timestamp_ms)
                ],
                context=lane,
                size=size,
                queued_at=time.monotonic(),
                expected_offset=expected_offset,
            )
            self._hand_over(lane, batch)
        except BaseException:
            self._room.give(size)
            raise
        return batch

    def _hand_over(self, lane: Lane, batch: RecordsBatch) -> None:
        if self._dispatch is None or self._closed:
            raise closed_error()
        self._dispatch.seal(lane)
        self._dispatch.hand_over(lane, batch)

    def _take_finished(self, batch: RecordsBatch) -> None:
        self._room.give(batch.size)
        result = batch.result
        if result is not None and result.error is not None and not self._closed:
            self._book.doubt(result.topic, result.error)

    async def _load(self, topic: str) -> TopicLanes:
        if self._dispatch is None or self._closed:
            raise closed_error()
        return await self._book.load(topic)

    def _queue_of(self, topic: str, partition: int, target: str, topic_id: bytes) -> PartitionQueue:
        if self._dispatch is None:
            raise closed_error()
        return self._dispatch.pipeline.partition(topic, partition, target=target, topic_id=topic_id)


def _append_to_column(batch: RecordsBatch, key: bytes | None) -> None:
    if batch.keys is None:
        batch.keys = [None] * (len(batch.values) - 1)
    batch.keys.append(key)


def _append_headers(batch: RecordsBatch, headers: Headers) -> None:
    if batch.headers is None:
        batch.headers = [()] * (len(batch.values) - 1)
    batch.headers.append(headers)


assert BATCH_BYTES_DEFAULT < BATCH_BYTES_MAX
