"""What `fluxctl bench` measures with: loads on an event loop, and the times of sampled records."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fluxlog.aio.consumer import Consumer
from fluxlog.aio.lanes import Delivery
from fluxlog.aio.producer import RECORD_OVERHEAD, Producer

_STRETCH = 500
"""Records between two turns of the loop, at most; fewer of large ones."""
_STRETCH_SHARE = 4
"""What is sent between two turns takes no more than this part of the producer's buffer."""
_SAMPLES_PER_S = 1_000
"""Records whose time to the acknowledgement is taken, at most; of fewer every one."""
_TELL_INTERVAL = 5.0
_POOL = 1_000
"""Different records, at most."""
_POOL_BYTES = 32 * 1024 * 1024
STAMP_BYTES = 40
"""Of a record that is timed from end to end: which run it is of, and when it was due."""


@dataclass(slots=True)
class Measured:
    """What came out."""

    records: int = 0
    record_bytes: int = 0
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    """With a rate: how long after its time each sampled record was handed to the library."""

    @property
    def records_per_s(self) -> float:
        """Acknowledged, or consumed."""
        return self.records / max(self.seconds, 1e-9)

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes of values a second."""
        return self.records_per_s * self.record_bytes / 1e6


def percentile(values: Sequence[float], share: float) -> float:
    """The value at or below which that share lies; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def measure_producing(
    producer: Producer, topic: str, *, records: int, record_bytes: int, per_second: float, tell: Callable[[str], None]
) -> Measured:
    """Send records and wait for all acknowledgements.

    Args:
        per_second: records are sent at these times whether or not those before were acknowledged (open loop); 0: as
            fast as the buffer takes them.
        tell: takes a line every 5 seconds.

    Raises:
        FluxlogError: a sampled record was not acknowledged; in an ExceptionGroup.
    """
    pool = _pool(record_bytes)
    await producer.prepare(topic)
    size = record_bytes + RECORD_OVERHEAD
    stretch = max(1, min(_STRETCH, producer.buffer_bytes // _STRETCH_SHARE // size))
    done, room = Measured(record_bytes=record_bytes), stretch * size
    async with asyncio.TaskGroup() as samples:
        began = told_at = time.perf_counter()
        next_sample, told_records = began, 0
        while done.records < records:
            now = time.perf_counter()
            count = min(records - done.records, stretch)
            if per_second:
                count = min(count, int((now - began) * per_second) + 1 - done.records)
            for number in range(count):
                delivery = producer.send_nowait(topic, pool[(done.records + number) % len(pool)])
            if count > 0 and now >= next_sample:
                next_sample = max(next_sample + 1 / _SAMPLES_PER_S, now)
                due = began + (done.records + count - 1) / per_second if per_second else now
                done.late_ms.append(max(0.0, now - due) * 1000)
                samples.create_task(_sample(delivery, due, done.latencies_ms))
            done.records += max(count, 0)
            if now - told_at >= _TELL_INTERVAL:
                tell(_progress(done.records - told_records, record_bytes, now - told_at, done.latencies_ms))
                told_at, told_records = now, done.records
            await _rest(producer, room, began + done.records / per_second if per_second else 0.0)
        await producer.flush()
    done.seconds = time.perf_counter() - began
    return done


def _pool(record_bytes: int) -> list[bytes]:
    """Values that cannot be compressed."""
    blob = os.urandom(record_bytes * max(1, min(_POOL, _POOL_BYTES // record_bytes)))
    return [blob[at : at + record_bytes] for at in range(0, len(blob), record_bytes)]


async def _rest(producer: Producer, room: int, next_due: float) -> None:
    if producer.buffer_bytes - producer.buffered_bytes < room:
        await producer.ready(room)
    await asyncio.sleep(max(0.0, next_due - time.perf_counter()) if next_due else 0)


async def _sample(delivery: Delivery, due: float, latencies_ms: list[float]) -> None:
    await delivery
    latencies_ms.append((time.perf_counter() - due) * 1000)


def _progress(records: int, record_bytes: int, seconds: float, latencies_ms: Sequence[float]) -> str:
    recent = latencies_ms[-5 * _SAMPLES_PER_S :] or [0.0]
    return (
        f"{records:,} records sent, {records / seconds:,.1f} records/sec "
        f"({records * record_bytes / seconds / 1e6:.2f} MB/sec), {sum(recent) / len(recent):.1f} ms avg latency, "
        f"{max(recent):.1f} ms max latency"
    )


async def measure_consuming(consumer: Consumer, records: int) -> Measured:
    """Consume batch by batch, every value taken apart; ends with the iteration, or after so many records (0: never)."""
    done, size, began = Measured(), 0, time.perf_counter()
    async for batch in consumer.batches():
        values = batch.values()
        done.records += len(values)
        size += sum(len(value) for value in values if value is not None)
        if records and done.records >= records:
            break
    done.seconds = time.perf_counter() - began
    done.record_bytes = size // max(done.records, 1)
    return done


async def measure_end_to_end(
    producer: Producer, consumer: Consumer, topic: str, *, records: int, record_bytes: int, per_second: float
) -> Measured:
    """From the moment a record was due until the consumer has it.

    Args:
        record_bytes: STAMP_BYTES at least.

    Raises:
        FluxlogError: a record was not acknowledged, so that nobody need wait for it; in an ExceptionGroup.
    """
    done = Measured(record_bytes=record_bytes)
    run = os.urandom(8).hex().encode()
    """Others may write the topic, too: what does not begin with it is theirs."""

    async def consume() -> None:
        async for record in consumer:
            mark, _, due = (record.value or b"").partition(b" ")
            if mark == run:
                done.latencies_ms.append((time.perf_counter() - float(due)) * 1000)
                if len(done.latencies_ms) == records:
                    return

    async def acknowledge() -> None:
        for _ in range(records):
            await (await sent.get())

    sent: asyncio.Queue[Delivery] = asyncio.Queue()
    room = record_bytes + RECORD_OVERHEAD
    await producer.prepare(topic)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consume())
        tasks.create_task(acknowledge())
        began = time.perf_counter()
        for number in range(records):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            done.late_ms.append((time.perf_counter() - due) * 1000)
            if producer.buffer_bytes - producer.buffered_bytes < room:
                await producer.ready(room)
            sent.put_nowait(producer.send_nowait(topic, (b"%s %.9f" % (run, due)).ljust(record_bytes)))
    done.records, done.seconds = records, time.perf_counter() - began
    return done
