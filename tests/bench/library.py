"""Speed of the library against a three-node cluster on this machine, beside the bare gRPC stream in the same rounds.

    python -m tests.bench.library [--quick] [--seconds 5] [--rounds 3] [--records 100,1000] [--tasks 4000] [--json FILE]

One client process, replication factor 3, one partition, acknowledged = fdatasync on a majority; random bytes.
Figures are acknowledged (or consumed) records a second over the whole run, flush and opening included; shown is the run
with the median, all stand in brackets. Others' share of the processors stands beside it: compare within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fluxd import tuning
from fluxlog import Connection, Consumer, Producer
from tests.bench import machine, reading
from tests.bench.delivery import time_records
from tests.bench.figures import Case, percentile
from tests.bench.load import Load, produce
from tests.bench.nodes import Nodes, running_nodes
from tests.bench.usage import Meter, Usage

_BATCH_BYTES = 256 * 1024
_IN_FLIGHT = 4 * 1024 * 1024
"""Of the bare stream: what the library has in flight for one partition."""
_POOL = 1_000
_STRETCH = 500
"""Records between two turns of the loop, with send_nowait."""

Work = Callable[[str, list[str], int], Awaitable[int]]
"""(topic, addresses, record bytes) -> records."""


class Bench:
    """Measures each case once a round."""

    def __init__(self, nodes: Nodes, seconds: float, tasks: int, consumed_bytes: int) -> None:
        self._nodes, self._seconds, self._tasks, self._consumed_bytes = nodes, seconds, tasks, consumed_bytes
        self.cases: dict[str, Case] = {}

    @property
    def _addresses(self) -> list[str]:
        return [node.address for node in self._nodes.cluster.nodes]

    async def round(self, record: int) -> None:
        """Every case with records of that size."""
        await self._bare_stream(record)
        await self._measure("send_many", record, self._send_many)
        await self._measure("send_nowait", record, self._send_nowait)
        await self._measure(f"await send, {self._tasks} tasks", record, self._send)
        await self._consume(record)

    # ---- writing

    async def _bare_stream(self, record: int) -> None:
        scope = self._nodes.topic(1)
        name, leaders = await asyncio.to_thread(scope.__enter__)
        try:
            load = Load(name, leaders, _BATCH_BYTES, record, _IN_FLIGHT)
            done = await produce(load, self._nodes.processes, seconds=self._seconds)
        finally:
            await asyncio.to_thread(scope.__exit__, None, None, None)
        self._note("bare ProduceStream", record, done.records, done.usage)

    async def _measure(self, name: str, record: int, work: Work) -> None:
        scope = self._nodes.topic(1)
        topic, _ = await asyncio.to_thread(scope.__enter__)
        try:
            meter = Meter(self._nodes.processes)
            count = await work(topic, self._addresses, record)
            usage = meter.stop()
        finally:
            await asyncio.to_thread(scope.__exit__, None, None, None)
        self._note(name, record, count, usage)

    async def _send_many(self, topic: str, addresses: list[str], record: int) -> int:
        pool, stop = _pool(record), time.perf_counter() + self._seconds

        def values() -> Any:
            while time.perf_counter() < stop:
                yield from pool

        async with Producer(addresses) as producer:
            return (await producer.send_many(topic, values())).record_count

    async def _send_nowait(self, topic: str, addresses: list[str], record: int) -> int:
        pool, stop, count = _pool(record)[:_STRETCH], time.perf_counter() + self._seconds, 0
        async with Producer(addresses) as producer:
            await producer.prepare(topic)
            room = producer.buffer_bytes - _STRETCH * (record + 100)
            while time.perf_counter() < stop:
                if producer.buffered_bytes > room:
                    await producer.ready(_STRETCH * (record + 100))
                for value in pool:
                    delivery = producer.send_nowait(topic, value)
                count += len(pool)
                await asyncio.sleep(0)
            await producer.flush()
            assert delivery.result().offset == count - 1, "all are acknowledged, since the last one is"
        return count

    async def _send(self, topic: str, addresses: list[str], record: int) -> int:
        pool, stop = _pool(record), time.perf_counter() + self._seconds
        async with Producer(addresses) as producer:

            async def one(number: int) -> int:
                value, count = pool[number % _POOL], 0
                while time.perf_counter() < stop:
                    await producer.send(topic, value)
                    count += 1
                return count

            return sum(await asyncio.gather(*[one(number) for number in range(self._tasks)]))

    # ---- reading

    async def _consume(self, record: int) -> None:
        scope = self._nodes.topic(1)
        topic, leaders = await asyncio.to_thread(scope.__enter__)
        try:
            async with Producer(self._addresses) as producer:
                pool = _pool(record)
                for _ in range(max(1, self._consumed_bytes // record // _POOL // 100)):
                    await producer.send_many(topic, pool * 100)
            await self._consume_both(topic, leaders[0], record)
        finally:
            await asyncio.to_thread(scope.__exit__, None, None, None)

    async def _consume_both(self, topic: str, leader: str, record: int) -> None:
        async with Connection(self._addresses) as cluster:
            meter, count = Meter(self._nodes.processes), 0
            async with Consumer(cluster, topic, start="earliest", stop_at_end=True) as consumer:
                async for one in consumer:
                    count += one.value is not None
            self._note("async for record", record, count, meter.stop())
            meter, total = Meter(self._nodes.processes), 0
            async with Consumer(cluster, topic, start="earliest", stop_at_end=True) as consumer:
                async for batch in consumer.batches():
                    total += len(batch.values())
            self._note("async for batch, all values", record, total, meter.stop())
            assert total == count
        bare = await reading.follow_decoded(leader, topic, count, 1024 * 1024, self._nodes.processes)
        self._note("bare Follow, all values", record, bare.records, bare.usage)

    # ---- from send to the handler

    async def end_to_end(self, per_second: float) -> None:
        """How long a record of 100 bytes takes from the moment it was due to be sent until it is in the consumer's
        hands: sent at a steady rate, whether or not the ones before have arrived."""
        scope = self._nodes.topic(1)
        topic, _ = await asyncio.to_thread(scope.__enter__)
        try:
            meter = Meter(self._nodes.processes)
            taken_s = await time_records(self._addresses, topic, per_second=per_second, seconds=2 * self._seconds - 1)
            usage = meter.stop()
        finally:
            await asyncio.to_thread(scope.__exit__, None, None, None)
        case = self.cases.setdefault("end to end", Case(f"end to end, {per_second:g}/s of 100 B", "ms p50"))
        ms = [1000 * seconds for seconds in taken_s]
        case.runs.append(
            {
                "figure": percentile(ms, 0.5),
                "p99": percentile(ms, 0.99),
                "p999": percentile(ms, 0.999),
                "max": max(ms),
                "records": len(ms),
                "others_cores": usage.others_cores,
            }
        )
        print(Case(case.name, case.unit, case.runs[-1:]).row(), flush=True)

    def _note(self, name: str, record: int, count: int, usage: Usage, **rest: Any) -> None:
        case = self.cases.setdefault(f"{name}, {record} B", Case(f"{name}, {record} B", "records/s"))
        rate = count / usage.seconds
        case.runs.append(
            {
                "figure": rate,
                "mb_per_s": rate * record / 1e6,
                "client_us_per_record": usage.cpu_s["client"] / count * 1e6,
                "others_cores": usage.others_cores,
                **rest,
            }
        )
        print(Case(case.name, case.unit, case.runs[-1:]).row(), flush=True)


def _pool(record: int) -> list[bytes]:
    blob = os.urandom(record * _POOL)
    return [blob[at : at + record] for at in range(0, len(blob), record)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.library", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", default="100,1000", help="bytes, with commas")
    parser.add_argument("--tasks", type=int, default=4_000)
    parser.add_argument("--per-second", type=float, default=1_000.0, help="records, end to end")
    parser.add_argument("--consumed-mb", type=int, default=300)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    seconds, rounds = (2.0, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    tuning.tune_allocator()
    with (
        tempfile.TemporaryDirectory(prefix="fluxd-bench-") as name,
        running_nodes(Path(name)) as nodes,
        asyncio.Runner(loop_factory=tuning.loop_factory()) as runner,
    ):
        bench = Bench(nodes, seconds, arguments.tasks, arguments.consumed_mb * 1_000_000)
        about: Mapping[str, Any] = machine.describe(Path(name))
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", flush=True)
            for record in arguments.records.split(","):
                runner.run(bench.round(int(record)))
            runner.run(bench.end_to_end(arguments.per_second))
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"3 nodes and 1 client, replication factor 3, 1 partition, runs of {seconds:g} s, {rounds} rounds\n")
    for case in bench.cases.values():
        print(case.row())
    if arguments.json:
        report = {"machine": dict(about), "cases": [case.as_json() for case in bench.cases.values()]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
