"""The cases, in rounds: each round measures every case once and the machine's limit beside it, so that both see the
same minutes of a machine that others may use.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import aio

from tests.bench import disk, reading
from tests.bench.echo import SERVICE
from tests.bench.figures import Case, percentile
from tests.bench.load import Load, Produced, lone_records, lone_requests, open_channel, produce
from tests.bench.nodes import Nodes
from tests.bench.usage import Meter, Usage

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure. Sizes are bytes, times seconds."""

    batches: tuple[int, ...] = (64 * KIB, 256 * KIB)
    records: tuple[int, ...] = (100,)
    partitions: tuple[int, ...] = (1, 12)
    seconds: float = 12.0
    rounds: int = 3
    in_flight: int = 8 * MIB
    lone_requests: int = 1_200
    lone_per_second: float = 100.0
    fetch_total: int = 1_000_000_000
    fetch_chunk: int = 1 * MIB
    echo_total: int = 1_000_000_000
    only: tuple[str, ...] = ("produce", "lone", "fetch", "limits")


class Suite:
    """See the module.

    Args:
        runner: the client's loop.
        echo: address and process id of the bare server.
        root: where the limit of the disk is measured: the disk of the nodes.
        tell: called with each finished measurement, for people who wait.
    """

    def __init__(
        self,
        settings: Settings,
        nodes: Nodes,
        echo: tuple[str, int],
        root: Path,
        runner: asyncio.Runner,
        tell: Callable[[str], None],
    ) -> None:
        self._settings, self._nodes, self._echo, self._root = settings, nodes, echo, root
        self._runner, self._tell = runner, tell
        self.cases: dict[str, Case] = {}

    def run(self) -> None:
        """All rounds."""
        for number in range(1, self._settings.rounds + 1):
            self._tell(f"round {number} of {self._settings.rounds}")
            if "limits" in self._settings.only:
                self._transport()
            if "lone" in self._settings.only:
                self._lone()
            if "produce" in self._settings.only:
                for sizes in itertools.product(
                    self._settings.partitions, self._settings.records, self._settings.batches
                ):
                    self._produce(*sizes)
            if "fetch" in self._settings.only:
                self._fetch()

    def _note(self, name: str, unit: str, figure: float, **rest: Any) -> None:
        case = self.cases.setdefault(name, Case(name, unit))
        case.runs.append({"figure": figure, **rest})
        self._tell(Case(name, unit, [case.runs[-1]]).row())

    # ---- the machine's own limits

    def _transport(self) -> None:
        settings = self._settings
        for size in settings.batches:
            self._transport_case("up", size, _swallow(self._echo, size, settings.echo_total // 2))
        size = settings.fetch_chunk
        self._transport_case("down", size, _blast(self._echo, size, settings.echo_total))

    def _transport_case(self, way: str, size: int, transfer: Coroutine[Any, Any, tuple[int, Usage]]) -> None:
        total, usage = self._runner.run(transfer)
        self._note(
            f"limit: grpc.aio stream {way}, {_size(size)}", "MB/s", total / usage.seconds / 1e6,
            cpu_ms_per_mb=usage.ms_per_mb(total), **_others(usage),
        )  # fmt: skip

    # ---- latency

    def _lone(self) -> None:
        settings = self._settings
        count, rate = settings.lone_requests, settings.lone_per_second
        taken = self._runner.run(
            lone_requests(self._echo[0], f"/{SERVICE}/Echo", bytes(200), count=count, per_second=rate)
        )
        self._latencies("limit: grpc.aio unary echo", taken)
        self._latencies("limit: write and fdatasync", disk.sync_latencies(self._root, count // 2, rate))
        with self._nodes.topic(1) as (topic, leaders):
            meter = Meter(self._nodes.processes)
            taken = self._runner.run(lone_records(topic, leaders[0], 100, count=count, per_second=rate))
            self._latencies("lone record, unary Produce", taken, meter.stop())

    def _latencies(self, name: str, taken_s: list[float], usage: Usage | None = None) -> None:
        ms = [1000 * seconds for seconds in taken_s]
        more: dict[str, Any] = {}
        if usage is not None:
            more = {"cpu_ms_per_request": {k: 1000 * v / len(ms) for k, v in usage.cpu_s.items()}, **_others(usage)}
        self._note(name, "ms p50", percentile(ms, 0.5), p99=percentile(ms, 0.99), max=max(ms), requests=len(ms), **more)

    # ---- produce

    def _produce(self, partitions: int, record: int, batch: int) -> None:
        settings = self._settings
        with self._nodes.topic(partitions) as (topic, leaders):
            load = Load(topic, leaders, batch, record, settings.in_flight)
            done = self._runner.run(produce(load, self._nodes.processes, seconds=settings.seconds))
            limits = {"limit_at_batch": disk.write_limit(self._root, done.size, batch)}
            if batch < MIB:  # what waits is appended in entries of up to 1 MiB
                limits["limit_at_1MiB"] = disk.write_limit(self._root, done.size, MIB)
        name = f"produce {_size(batch)} x {record} B, {partitions} partition{'s' * (partitions > 1)}"
        self._note(name, "MB/s", done.mb_per_s, **self._of_produced(done, limits, leaders))

    def _of_produced(self, done: Produced, limits: dict[str, float], leaders: list[str]) -> dict[str, Any]:
        return {
            "records_per_s": done.records_per_s,
            **limits,
            "of_limit": done.mb_per_s / max(limits.values()),
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
            filled = self._runner.run(produce(load, processes, total_bytes=settings.fetch_total))
            address, end, chunk = leaders[0], filled.records, settings.fetch_chunk
            readers = {
                "Follow, raw bytes": reading.follow_raw(address, topic, filled.size, chunk, processes),
                "Follow, every value decoded": reading.follow_decoded(address, topic, end, chunk, processes),
                "Fetch, one by one": reading.fetch_parsed(address, topic, end, chunk, processes),
            }
            for how, reader in readers.items():
                read = self._runner.run(reader)
                cpu = read.usage.ms_per_mb(read.size)
                server = self._nodes.name_of(address)
                self._note(
                    f"fetch {_size(chunk)}, 256 KiB x 100 B: {how}", "MB/s", read.mb_per_s,
                    **({"records_per_s": read.records_per_s} if read.records else {}),
                    cpu_ms_per_mb={"server": cpu[server], "client": cpu["client"]}, gb=read.size / 1e9,
                    **_others(read.usage),
                )  # fmt: skip


def _others(usage: Usage) -> dict[str, float]:
    return {"others_cores": usage.others_cores}


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size % MIB == 0 else f"{size // KIB} KiB"


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
