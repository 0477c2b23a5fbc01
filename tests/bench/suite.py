"""The cases, in rounds: each round measures every case once and the machine's limits beside them, so that all see the
same minutes of a machine that others may use.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from grpc import aio

from tests.bench import disk, reading, singles
from tests.bench.delivery import time_records
from tests.bench.echo import SERVICE
from tests.bench.figures import Cases, percentile, size_text
from tests.bench.load import Load, Produced, lone_records, lone_requests, open_channel, produce
from tests.bench.nodes import Nodes
from tests.bench.usage import Meter, Usage

T = TypeVar("T")

KIB, MIB = 1024, 1024 * 1024
_LIMIT_CHUNKS_MAX = 16_000
_STUCK_AFTER_S = 120.0
"""A measurement that takes so much longer than it should is given up."""
PARTS = ("limits", "lone", "singles", "delivery", "fetch", "produce")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure. Sizes are bytes, times seconds."""

    batches: tuple[int, ...] = (16 * KIB, 64 * KIB, 256 * KIB, MIB)
    records: tuple[int, ...] = (100, 1_000)
    partitions: tuple[int, ...] = (1, 12, 100)
    seconds: float = 10.0
    rounds: int = 3
    in_flight: int = 8 * MIB
    lone_requests: int = 1_000
    lone_per_second: float = 100.0
    delivery_per_second: float = 1_000.0
    fetch_total: int = 1_000_000_000
    fetch_chunk: int = 1 * MIB
    limit_total: int = 1_000_000_000
    only: tuple[str, ...] = PARTS


class Suite:
    """See the module.

    Args:
        runner: the client's loop.
        echo: address and process id of the bare server.
        root: where the limit of the disk is measured: the disk of the nodes.
        cases: gets each measurement as it is made.
    """

    def __init__(
        self,
        settings: Settings,
        nodes: Nodes,
        echo: tuple[str, int],
        root: Path,
        runner: asyncio.Runner,
        cases: Cases,
    ) -> None:
        self._settings, self._nodes, self._echo, self._root = settings, nodes, echo, root
        self._runner, self._cases = runner, cases
        self._limits: dict[int, float] = {}
        """Of the disk, by chunk, as measured last."""

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def within() -> T:
            async with asyncio.timeout(self._settings.seconds + _STUCK_AFTER_S):
                return await work

        return self._runner.run(within())

    def run(self) -> None:
        """All rounds. What cannot be measured is told, and costs nothing else."""
        settings = self._settings
        work = {
            "limits": self._transport, "lone": self._lone, "singles": self._singles, "delivery": self._delivery,
            "fetch": self._fetch,
        }  # fmt: skip
        for number in range(1, settings.rounds + 1):
            print(f"round {number} of {settings.rounds}", flush=True)
            for part, measure in work.items():
                if part in settings.only:
                    with self._cases.surviving(part):
                        measure()
            if "produce" in settings.only:
                self._produce_all()

    # ---- the machine's own limits

    def _transport(self) -> None:
        settings = self._settings
        for size in settings.batches:
            self._transport_case("up", size, _swallow(self._echo, size, settings.limit_total // 4))
        size = settings.fetch_chunk
        self._transport_case("down", size, _blast(self._echo, size, settings.limit_total))

    def _transport_case(self, way: str, size: int, transfer: Coroutine[Any, Any, tuple[int, Usage]]) -> None:
        total, usage = self._run(transfer)
        self._cases.note(
            f"limit: grpc.aio stream {way}, {size_text(size)}", "MB/s", total / usage.seconds / 1e6,
            cpu_ms_per_mb=usage.ms_per_mb(total), **_others(usage),
        )  # fmt: skip

    def _disk(self, chunk: int) -> None:
        total = min(self._settings.limit_total, _LIMIT_CHUNKS_MAX * chunk)
        self._limits[chunk] = limit = disk.write_limit(self._root, total, chunk)
        self._cases.note(f"limit: 3 files written and synced, {size_text(chunk)}", "MB/s", limit)

    # ---- latency

    def _lone(self) -> None:
        settings = self._settings
        count, rate = settings.lone_requests, settings.lone_per_second
        taken = self._run(lone_requests(self._echo[0], f"/{SERVICE}/Echo", bytes(200), count=count, per_second=rate))
        self._latencies("limit: grpc.aio unary echo", taken)
        self._latencies("limit: write and fdatasync", disk.sync_latencies(self._root, count // 2, rate))
        with self._nodes.topic(1) as (topic, leaders):
            meter = Meter(self._nodes.processes)
            taken = self._run(lone_records(topic, leaders[0], 100, count=count, per_second=rate))
            self._latencies(f"lone record, unary Produce, {rate:g}/s", taken, meter.stop())

    def _delivery(self) -> None:
        settings, rate = self._settings, self._settings.delivery_per_second
        addresses = [node.address for node in self._nodes.cluster.nodes]
        with self._nodes.topic(1) as (topic, _):
            meter = Meter(self._nodes.processes)
            taken = self._run(time_records(addresses, topic, per_second=rate, seconds=settings.seconds))
            self._latencies(f"end to end, {rate:g} records/s of 100 B", taken, meter.stop())

    def _latencies(self, name: str, taken_s: list[float], usage: Usage | None = None) -> None:
        ms = [1000 * seconds for seconds in taken_s]
        more: dict[str, Any] = {}
        if usage is not None:
            more = {**_per_request(usage, len(ms)), **_others(usage)}
        p50, p99, p999 = (percentile(ms, share) for share in (0.5, 0.99, 0.999))
        self._cases.note(
            name, "ms p50", p50, p50_ms=p50, p99_ms=p99, p999_ms=p999, max_ms=max(ms), requests=len(ms), **more
        )

    # ---- one record a request

    def _singles(self) -> None:
        seconds, (echo, echo_process) = self._settings.seconds / 2, self._echo
        bare = {"server": echo_process}
        ceiling = self._run(singles.unary(echo, bytes(200), bare, seconds=seconds, method=f"/{SERVICE}/Echo"))
        self._rate(f"limit: grpc.aio unary echo, {singles.CONCURRENT} concurrent", ceiling)
        ceilings = self._run(singles.bare_stream(echo, 200, bare, seconds=seconds, method=f"/{SERVICE}/Swallow"))
        self._rate(f"limit: grpc.aio stream, {singles.STREAM_IN_FLIGHT} in flight", ceilings)
        with self._nodes.topic(1) as (topic, leaders):
            request = singles.single_record(topic)
            done = self._run(singles.unary(leaders[0], request, self._nodes.processes, seconds=seconds))
            self._rate(f"single records, unary, {singles.CONCURRENT} concurrent", done, ceiling)
        with self._nodes.topic(1) as (topic, leaders):
            request = singles.single_record(topic)
            done = self._run(singles.stream(leaders[0], request, self._nodes.processes, seconds=seconds))
            self._rate(f"single records, one stream, {singles.STREAM_IN_FLIGHT} in flight", done, ceilings)

    def _rate(self, name: str, done: singles.Answered, ceiling: singles.Answered | None = None) -> None:
        ms, usage = [1000 * taken for taken in done.latencies_s], done.usage
        assert usage is not None
        limit = {"limit": ceiling.per_s, "of_limit": done.per_s / ceiling.per_s} if ceiling else {}
        self._cases.note(
            name, "requests/s", done.per_s, p50_ms=percentile(ms, 0.5), p99_ms=percentile(ms, 0.99),
            **limit, **_per_request(usage, len(ms)), **_others(usage),
        )  # fmt: skip

    # ---- produce

    def _produce_all(self) -> None:
        settings = self._settings
        for batch in settings.batches:
            with self._cases.surviving(f"disk, {size_text(batch)}"):
                self._disk(batch)
            for partitions, record in itertools.product(settings.partitions, settings.records):
                name = f"produce {size_text(batch)} x {record} B, {partitions} partition{'s' * (partitions > 1)}"
                with self._cases.surviving(name):
                    self._produce(name, partitions, record, batch)

    def _produce(self, name: str, partitions: int, record: int, batch: int) -> None:
        settings = self._settings
        with self._nodes.topic(partitions) as (topic, leaders):
            load = Load(topic, leaders, batch, record, settings.in_flight)
            done = self._run(produce(load, self._nodes.processes, seconds=settings.seconds))
            self._cases.note(name, "MB/s", done.mb_per_s, **self._of_produced(done, batch, record, leaders))

    def _of_produced(self, done: Produced, batch: int, record: int, leaders: list[str]) -> dict[str, Any]:
        limit = self._limits.get(batch)
        return {
            "batch_bytes": batch,
            "record_bytes": record,
            "partitions": len(leaders),
            "records_per_s": done.records_per_s,
            **({"limit": limit, "of_limit": done.mb_per_s / limit} if limit else {}),
            "p50_ms": 1000 * percentile(done.latencies_s, 0.5),
            "p99_ms": 1000 * percentile(done.latencies_s, 0.99),
            "cpu_ms_per_mb": done.usage.ms_per_mb(done.size),
            "leaders": ",".join(sorted({self._nodes.name_of(leader)[5:] for leader in leaders})),
            "rss_mb": {name: now for name, (now, _) in self._nodes.memory_mb().items()},
            "seconds": done.usage.seconds,
            **_others(done.usage),
        }

    # ---- fetch

    def _fetch(self) -> None:
        settings, processes = self._settings, self._nodes.processes
        with self._nodes.topic(1) as (topic, leaders):
            load = Load(topic, leaders, 256 * KIB, 100, settings.in_flight)
            filled = self._run(produce(load, processes, total_bytes=settings.fetch_total))
            address, end, chunk = leaders[0], filled.records, settings.fetch_chunk
            readers = {
                "Follow, raw bytes": reading.follow_raw(address, topic, filled.size, chunk, processes),
                "Follow, every value decoded": reading.follow_decoded(address, topic, end, chunk, processes),
                "Fetch, one by one": reading.fetch_parsed(address, topic, end, chunk, processes),
            }
            for how, reader in readers.items():
                read = self._run(reader)
                cpu = read.usage.ms_per_mb(read.size)
                self._cases.note(
                    f"fetch {size_text(chunk)} at once: {how}", "MB/s", read.mb_per_s,
                    **({"records_per_s": read.records_per_s} if read.records else {}),
                    cpu_ms_per_mb={"server": cpu[self._nodes.name_of(address)], "client": cpu["client"]},
                    gb=read.size / 1e9, **_others(read.usage),
                )  # fmt: skip


def _others(usage: Usage) -> dict[str, float]:
    return {"others_cores": usage.others_cores}


def _per_request(usage: Usage, requests: int) -> dict[str, dict[str, float]]:
    return {"cpu_ms_per_request": {name: 1000 * spent / max(1, requests) for name, spent in usage.cpu_s.items()}}


async def _swallow(server: tuple[str, int], size: int, total: int) -> tuple[int, Usage]:
    """A stream of messages, each answered with a few bytes; at most 32 are unanswered."""
    message, count, room = bytes(size), max(1, total // size), asyncio.Semaphore(32)
    async with open_channel(server[0]) as channel:
        method: aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/Swallow")
        call, meter = method(), Meter({"server": server[1]})

        async def read() -> None:
            for _ in range(count):
                await call.read()
                room.release()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            for _ in range(count):
                await room.acquire()
                await call.write(message)
        usage = meter.stop()
        call.cancel()
    return count * size, usage


async def _blast(server: tuple[str, int], size: int, total: int) -> tuple[int, Usage]:
    async with open_channel(server[0]) as channel:
        method: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Blast")
        call, meter, received = method(f"{total // size} {size}".encode()), Meter({"server": server[1]}), 0
        async for data in call:
            received += len(data)
        return received, meter.stop()
