"""One record a request: as many requests a second as fit, unary and on one stream, and the bare server beside them."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from grpc import aio

from fluxlog.batch import encode_batch
from fluxlog.framing import answers_of, encode_produce, encode_stream_request
from fluxlog.v1 import log_pb2
from tests.bench.load import STREAM, UNARY, open_channel
from tests.bench.usage import Meter, Usage

CONCURRENT = 100
STREAM_IN_FLIGHT = 400
_WARM_UP_S = 1.0


@dataclass(slots=True)
class Answered:
    """What was answered between two moments."""

    latencies_s: list[float] = field(default_factory=list)
    usage: Usage | None = None

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.usage.seconds if self.usage else 0.0


def single_record(topic: str, record_bytes: int = 100) -> bytes:
    """An encoded ProduceRequest with one record, for partition 0."""
    return encode_produce(topic, 0, encode_batch([os.urandom(record_bytes)]))


async def unary(
    address: str, request: bytes, processes: Mapping[str, int], *, seconds: float, method: str = UNARY
) -> Answered:
    """CONCURRENT callers, each with one call at a time."""
    answered, stopping = Answered(), asyncio.Event()
    async with open_channel(address) as channel, asyncio.TaskGroup() as callers:
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)

        async def one() -> None:
            while not stopping.is_set():
                sent = time.perf_counter()
                await call(request)
                answered.latencies_s.append(time.perf_counter() - sent)

        for _ in range(CONCURRENT):
            callers.create_task(one())
        await _measure(answered, processes, seconds)
        stopping.set()
    return answered


async def stream(
    address: str, request: bytes, processes: Mapping[str, int], *, seconds: float, method: str = STREAM
) -> Answered:
    """One stream, STREAM_IN_FLIGHT messages in flight."""

    def check(data: bytes) -> int:
        response = log_pb2.ProduceStreamResponse.FromString(data)
        for answer in answers_of(response):
            if not answer.HasField("committed"):
                raise RuntimeError(f"{address} refused a record: {answer.error.reason} {answer.error.message}")
        return 1 + len(response.more)

    def message(number: int) -> bytes:
        return encode_stream_request(number, request)

    return await _stream(address, method, message, check, processes, seconds)


async def bare_stream(
    address: str, size: int, processes: Mapping[str, int], *, seconds: float, method: str
) -> Answered:
    """The same with a server that does nothing."""
    message = bytes(size)
    return await _stream(address, method, lambda _: message, lambda _: 1, processes, seconds)


async def _stream(
    address: str,
    method: str,
    message: Callable[[int], bytes],
    answers: Callable[[bytes], int],
    processes: Mapping[str, int],
    seconds: float,
) -> Answered:
    answered, room, sent = Answered(), asyncio.Semaphore(STREAM_IN_FLIGHT), list[float]()
    async with open_channel(address) as channel:
        opened: aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
        call = opened()

        async def write() -> None:
            for number in itertools.count(1):
                await room.acquire()
                sent.append(time.perf_counter())
                await call.write(message(number))

        async def read() -> None:
            number = 0
            while (data := await call.read()) is not aio.EOF:
                for _ in range(answers(data)):  # type: ignore[arg-type]
                    answered.latencies_s.append(time.perf_counter() - sent[number])
                    room.release()
                    number += 1
            raise RuntimeError(f"{address} ended the stream")

        tasks = [asyncio.ensure_future(w) for w in (write(), read(), _measure(answered, processes, seconds))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()
    return answered


async def _measure(answered: Answered, processes: Mapping[str, int], seconds: float) -> None:
    await asyncio.sleep(_WARM_UP_S)
    answered.latencies_s, meter = [], Meter(processes)
    await asyncio.sleep(seconds)
    answered.usage, answered.latencies_s = meter.stop(), list(answered.latencies_s)
