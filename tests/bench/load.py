"""A producer that keeps a bounded number of bytes in flight, and one that sends lone records at a steady rate.

Batches are encoded live with `fluxlog`, with producer ids as the library has them: as many producers share the streams
as are needed to keep each one at 16 batches in flight.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grpc import aio

from fluxlog.batch import encode_batch
from fluxlog.framing import answers_of, encode_produce, encode_stream_request
from fluxlog.v1 import log_pb2
from tests.bench.usage import Meter, Usage

STREAM = "/fluxlog.v1.Log/ProduceStream"
UNARY = "/fluxlog.v1.Log/Produce"
_PRODUCER_IN_FLIGHT = 16
_POOL_RECORDS = 20_000
_OPTIONS = (("grpc.max_receive_message_length", 8 << 20), ("grpc.use_local_subchannel_pool", 1))
_WARM_UP_S = 1.0


def open_channel(address: str) -> aio.Channel:
    """To one node, on a connection of its own."""
    return aio.insecure_channel(address, options=_OPTIONS)


@dataclass(frozen=True, slots=True)
class Load:
    """What is produced.

    Args:
        leaders: address of each partition's leader.
        batch_bytes: bound on an encoded batch; it is filled with records as far as it goes.
        in_flight_bytes: per leader, not acknowledged.
    """

    topic: str
    leaders: Sequence[str]
    batch_bytes: int
    record_bytes: int
    in_flight_bytes: int

    @property
    def records_per_batch(self) -> int:
        """As many as fit, with one or two bytes for each one's length and some for what stands before."""
        return max(1, (self.batch_bytes - 128) // (self.record_bytes + (1 if self.record_bytes < 128 else 2)))


@dataclass(frozen=True, slots=True)
class Produced:
    """What was acknowledged between two moments, and how long each batch took under that load."""

    records: int
    size: int
    """Bytes of values."""
    usage: Usage
    latencies_s: list[float]

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes of values a second."""
        return self.size / self.usage.seconds / 1e6

    @property
    def records_per_s(self) -> float:
        """Of all partitions."""
        return self.records / self.usage.seconds


class _Values:
    """Random records, each batch a different run of them."""

    def __init__(self, load: Load) -> None:
        count = load.records_per_batch
        blob = os.urandom(load.record_bytes * (count + min(_POOL_RECORDS, 8 * count)))
        self._pool = [blob[at : at + load.record_bytes] for at in range(0, len(blob), load.record_bytes)]
        self._count = count
        self._random = random.Random(1)

    def batch(self) -> list[bytes]:
        """The next ones."""
        at = self._random.randrange(len(self._pool) - self._count)
        return self._pool[at : at + self._count]


@dataclass(slots=True)
class _Producer:
    partition: int
    producer_id: bytes
    next_sequence: int = 0


@dataclass(slots=True)
class _Run:
    """Shared by the streams of one measurement."""

    load: Load
    values: _Values
    stop_bytes: int
    """Stop once so many were acknowledged; 0: when told."""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    acked_batches: int = 0
    latencies_s: list[float] = field(default_factory=list)
    stopping: bool = False

    @property
    def acked_records(self) -> int:
        return self.acked_batches * self.load.records_per_batch

    def acked(self, latency_s: float) -> None:
        self.acked_batches += 1
        self.latencies_s.append(latency_s)
        if self.stop_bytes and self.acked_records * self.load.record_bytes >= self.stop_bytes:
            self.stopping = True
            self.reached.set()


async def produce(
    load: Load,
    processes: Mapping[str, int],
    *,
    seconds: float = 0.0,
    total_bytes: int = 0,
    warm_up_s: float = _WARM_UP_S,
) -> Produced:
    """Produce for some seconds after a warm-up, or until so many bytes of values are acknowledged.

    Raises:
        RuntimeError: the cluster refused a batch, or a stream broke.
    """
    run = _Run(load, _Values(load), total_bytes)
    async with asyncio.TaskGroup() as streams:
        for address in sorted(set(load.leaders)):
            partitions = [number for number, leader in enumerate(load.leaders) if leader == address]
            streams.create_task(_feed(run, address, partitions))
        await asyncio.sleep(0.0 if total_bytes else warm_up_s)
        before, run.latencies_s, meter = run.acked_records, [], Meter(processes)
        await (run.reached.wait() if total_bytes else asyncio.sleep(seconds))
        usage, records, latencies_s = meter.stop(), run.acked_records - before, run.latencies_s
        run.stopping = True
    return Produced(records, records * load.record_bytes, usage, latencies_s)


async def _feed(run: _Run, address: str, partitions: Sequence[int]) -> None:
    """One stream to one leader."""
    load = run.load
    places = max(1, load.in_flight_bytes // load.batch_bytes)
    rounds = -(-places // (_PRODUCER_IN_FLIGHT * len(partitions)))
    producers = [_Producer(partition, os.urandom(16)) for _ in range(rounds) for partition in partitions]
    room, sent = asyncio.Semaphore(places), dict[int, float]()
    async with open_channel(address) as channel:
        method: aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
        call = method()

        async def read() -> None:
            async for data in call:
                for answer in answers_of(log_pb2.ProduceStreamResponse.FromString(data)):
                    if not answer.HasField("committed"):
                        raise RuntimeError(f"{address} refused a batch: {answer.error.reason} {answer.error.message}")
                    run.acked(time.perf_counter() - sent.pop(answer.correlation_id))
                    room.release()

        reader = asyncio.ensure_future(read())
        reader.add_done_callback(lambda _: room.release())  # the writer must not wait for answers that nobody reads
        try:
            for number, producer in enumerate(itertools.cycle(producers), 1):
                await room.acquire()
                if run.stopping or reader.done():
                    break
                message = _request(run, producer, number)
                sent[number] = time.perf_counter()
                await call.write(message)
            if reader.done():
                await reader
                raise RuntimeError(f"{address} ended the stream")
            await call.done_writing()
            await reader
        finally:
            reader.cancel()
            call.cancel()


def _request(run: _Run, producer: _Producer, number: int) -> bytes:
    values = run.values.batch()
    batch = encode_batch(values, producer_id=producer.producer_id, base_sequence=producer.next_sequence)
    producer.next_sequence += len(values)
    request = encode_produce(run.load.topic, producer.partition, batch)
    return encode_stream_request(number, request)


async def lone_requests(address: str, method: str, request: bytes, *, count: int, per_second: float) -> list[float]:
    """Seconds that each of some unary calls took, sent at a steady rate whether or not the last one was answered."""
    latencies_s: list[float] = []
    async with open_channel(address) as channel, asyncio.TaskGroup() as calls:
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        for _ in range(20):
            await call(request)

        async def one() -> None:
            sent = time.perf_counter()
            await call(request)
            latencies_s.append(time.perf_counter() - sent)

        began = time.perf_counter()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / per_second - time.perf_counter()))
            calls.create_task(one())
    return latencies_s


async def lone_records(topic: str, leader: str, record_bytes: int, *, count: int, per_second: float) -> list[float]:
    """The same for Produce with one record."""
    request = encode_produce(topic, 0, encode_batch([os.urandom(record_bytes)]))
    return await lone_requests(leader, UNARY, request, count=count, per_second=per_second)
