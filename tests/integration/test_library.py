"""The asyncio library against real nodes: producer and consumer through what happens to a cluster."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fluxlog import (
    CaughtUp,
    ConsumedRecord,
    Consumer,
    ConsumerEvent,
    Delivery,
    FluxlogError,
    Leaderless,
    Outcome,
    Producer,
    RejectedError,
    TopicPartition,
)  # fmt: skip
from fluxlog.codec import Codec
from fluxlog.errors import OffsetOutOfRangeError
from tests.integration.cluster import Cluster, fetch_values

pytestmark = pytest.mark.slow

_names = itertools.count(1)
_SECONDS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("library")) as running:
        yield running


@pytest.fixture
def topic(cluster: Cluster) -> str:
    """A fresh topic with three partitions."""
    name = f"topic-{next(_names)}"
    cluster.create_topic(name, partitions=3)
    return name


def addresses(cluster: Cluster) -> list[str]:
    return [node.address for node in cluster.nodes]


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Bounded in time."""

    async def bounded() -> None:
        async with asyncio.timeout(_SECONDS):
            await scene()

    asyncio.run(bounded())


async def take(consumer: Consumer, count: int) -> list[ConsumedRecord]:
    """The next records."""
    records: list[ConsumedRecord] = []
    async for record in consumer:
        records.append(record)
        if len(records) == count:
            break
    return records


def test_what_was_sent_is_consumed_with_all_that_belongs_to_it(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        async with Producer(addresses(cluster), codec=Codec.ZSTD) as producer:
            sent = await producer.send(
                topic, b"v", key=b"k", headers=[("h", b"1"), ("h", None)], timestamp_ms=123, partition=2
            )
            await producer.send(topic, None, key=b"k", partition=2)
        async with Consumer(addresses(cluster), topic, start="earliest") as consumer:
            first, second = await take(consumer, 2)
        assert first[:5] == (topic, 2, sent.offset, b"v", b"k")
        assert (list(first.headers), first.timestamp_ms) == ([("h", b"1"), ("h", None)], 123)
        assert first.leader_epoch == sent.leader_epoch
        assert abs(first.append_time_ms / 1000 - time.time()) < 60
        assert (second.value, list(second.headers)) == (None, [])

    run(scene)


def test_iterating_ends_at_the_end_when_asked_to_and_batches_equal_records(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        values = [b"%d" % number for number in range(10_000)]
        async with Producer(addresses(cluster), batch_bytes=10_000) as producer:
            await producer.send_many(topic, values, keys=values)
            assert (await producer.send(topic, b"last")).duplicate is False
        async with Consumer(addresses(cluster), topic, start="earliest", stop_at_end=True) as consumer:
            records = [record async for record in consumer]
        async with Consumer(addresses(cluster), topic, start="earliest", stop_at_end=True) as consumer:
            batches = [batch async for batch in consumer.batches()]
        assert sorted(record.value or b"" for record in records) == sorted([*values, b"last"])
        for partition in range(3):
            one_by_one = [record for record in records if record.partition == partition]
            assert [record.offset for record in one_by_one] == list(range(len(one_by_one)))
            of_batches = [record for batch in batches if batch.partition == partition for record in batch]
            assert of_batches == one_by_one

    run(scene)


def test_starts(cluster: Cluster, topic: str) -> None:
    """Latest, an offset (in the middle of a batch), a time, and one for each partition."""

    async def scene() -> None:
        async with Producer(addresses(cluster)) as producer:
            await producer.send_many(topic, [b"%d" % number for number in range(100)], partition=0)
            await asyncio.sleep(0.02)  # the clock of append times moves on
            later = datetime.fromtimestamp(time.time(), UTC)
            await producer.send_many(topic, [b"later"], partition=0)
            async with Consumer(addresses(cluster), topic, partitions=[0]) as consumer:
                await producer.send(topic, b"new", partition=0)
                assert [record.value for record in await take(consumer, 1)] == [b"new"]
        async with Consumer(addresses(cluster), topic, partitions=[0], start=42) as consumer:
            assert [record.offset for record in await take(consumer, 3)] == [42, 43, 44]
        async with Consumer(addresses(cluster), topic, partitions=[0], start=later) as consumer:
            assert [record.value for record in await take(consumer, 1)] == [b"later"]
            assert await consumer.find_offsets("latest") == {TopicPartition(topic, 0): 102}
        where = TopicPartition(topic, 0)
        async with Consumer(addresses(cluster), topic, start={where: 99}) as consumer:
            assert [record.offset for record in await take(consumer, 2)] == [99, 100]

    run(scene)


def test_seek_pause_and_resume(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        async with Producer(addresses(cluster)) as producer:
            for partition in (0, 1):
                await producer.send_many(topic, [b"%d" % number for number in range(1_000)], partition=partition)
        async with Consumer(addresses(cluster), topic, partitions=[0, 1], start="earliest") as consumer:
            seen: list[tuple[int, int]] = []
            async for record in consumer:
                seen.append((record.partition, record.offset))
                if len(seen) == 10:
                    other = 1 - record.partition
                    assert consumer.position(topic, record.partition) == record.offset + 1
                    consumer.pause(topic, record.partition)
                if len(seen) == 1_010:
                    assert {partition for partition, _ in seen[10:]} == {other}
                    consumer.resume(topic, 1 - other)
                    consumer.seek(topic, other, 998)
                if len(seen) == 2_002:
                    break
            rest = sorted(seen[1_010:])
            wanted = sorted([(other, 998), (other, 999), *((1 - other, number) for number in range(10, 1_000))])
            assert rest == wanted

    run(scene)


def test_breaking_off_and_iterating_again_goes_on_behind_the_last_record(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        async with Producer(addresses(cluster)) as producer:
            await producer.send_many(topic, [b"%d" % number for number in range(100)], partition=0)
        async with Consumer(addresses(cluster), topic, partitions=[0], start=0) as consumer:
            first = await take(consumer, 30)
            second = await take(consumer, 1)
            async for batch in consumer.batches():
                rest = list(batch)
                break
        assert [record.offset for record in first + second + rest] == list(range(100))

    run(scene)


def test_an_offset_that_is_not_there_follows_the_rule(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        async with Producer(addresses(cluster)) as producer:
            await producer.send(topic, b"only", partition=0)
        async with Consumer(addresses(cluster), topic, partitions=[0], start=500) as consumer:
            with pytest.raises(OffsetOutOfRangeError) as failure:
                await take(consumer, 1)
            assert (failure.value.log_start_offset, failure.value.high_watermark) == (0, 1)
            consumer.seek(topic, 0, 0)
            assert (await take(consumer, 1))[0].value == b"only"
        options = {"partitions": [0], "start": 500, "on_out_of_range": "earliest"}
        async with Consumer(addresses(cluster), topic, **options) as consumer:  # type: ignore[arg-type]
            assert (await take(consumer, 1))[0].value == b"only"

    run(scene)


def test_unknown_topics_and_partitions_are_said_at_once(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        for topics, partitions in (("no-such-topic", None), (topic, [7])):
            with pytest.raises(FluxlogError) as failure:
                async with Consumer(addresses(cluster), topics, partitions=partitions):
                    pass
            assert failure.value.reason in ("UNKNOWN_TOPIC", "UNKNOWN_PARTITION")

    run(scene)


def test_catching_up_is_told(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        events: list[ConsumerEvent] = []
        told = asyncio.Event()

        def note(event: ConsumerEvent) -> None:
            events.append(event)
            told.set()

        async with Producer(addresses(cluster)) as producer:
            await producer.send_many(topic, [b"x"] * 50, partition=1)
            options = {"partitions": [1], "start": 0, "on_event": note}
            async with Consumer(addresses(cluster), topic, **options) as consumer:  # type: ignore[arg-type]
                await take(consumer, 50)
                assert events == [], "the last one may not be handled yet"
                iterating = asyncio.ensure_future(take(consumer, 1))
                await told.wait()
                await producer.send(topic, b"y", partition=1)
                await iterating
        assert events == [CaughtUp(TopicPartition(topic, 1), 50)]

    run(scene)


def test_of_writers_that_expect_the_same_offset_one_wins(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        async def write(producer: Producer, name: bytes) -> int:
            won = 0
            for offset in range(20):
                try:
                    await producer.send(topic, name, partition=0, expected_offset=offset)
                    won += 1
                except RejectedError as failure:
                    assert failure.reason == "WRONG_EXPECTED_OFFSET"
                    assert int(failure.metadata["log_end_offset"]) > offset
            return won

        async with Producer(addresses(cluster)) as one, Producer(addresses(cluster)) as other:
            wins = await asyncio.gather(write(one, b"one"), write(other, b"other"))
        assert sum(wins) == 20

    run(scene)
    values = fetch_values(cluster.node(1), topic)
    assert len(values) == 20


def test_a_leader_is_killed_at_full_speed(tmp_path: Path) -> None:
    """Nothing that was acknowledged is lost, nothing is there twice, order is kept; a consumer sees it all once."""

    async def scene(cluster: Cluster) -> None:
        deliveries: list[Delivery] = []
        padding = os.urandom(80)
        consumed: list[int] = []

        async def consume() -> None:
            async with Consumer(addresses(cluster), "orders", start=0) as consumer:
                async for record in consumer:
                    assert record.value is not None
                    consumed.append(int(record.value[:10]))
                    if record.value[10:] == b"end":
                        return

        async with Producer(addresses(cluster), buffer_bytes=4 << 20) as producer:
            await producer.prepare("orders")
            reader = asyncio.ensure_future(consume())

            async def produce(until: Callable[[], bool]) -> None:
                while not until():
                    await producer.ready()
                    for _ in range(200):
                        if producer.buffered_bytes < 4_000_000:
                            deliveries.append(producer.send_nowait("orders", b"%010d" % len(deliveries) + padding))
                    await asyncio.sleep(0)

            def acknowledged_beyond(count: int) -> Callable[[], bool]:
                return lambda: len(deliveries) > count and deliveries[count].done()

            await produce(acknowledged_beyond(20_000))
            leader = cluster.leader_of("orders")
            cluster.node(leader).kill()
            await produce(acknowledged_beyond(len(deliveries) + 20_000))
            last = await producer.send("orders", b"%010d" % len(deliveries) + b"end")
            await producer.flush()
            results = [delivery.result() for delivery in deliveries]
            assert [result.offset for result in results] == list(range(len(deliveries)))
            assert last.offset == len(deliveries)
            assert len({result.leader_epoch for result in results}) >= 2
            await reader
        assert consumed == list(range(len(deliveries) + 1))

    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        run(lambda: scene(cluster))


def test_a_leader_that_falls_silent_is_left(tmp_path: Path) -> None:
    """Its process is stopped, its connections stay open: producer and consumer go on elsewhere within seconds."""

    async def scene(cluster: Cluster) -> None:
        leader = cluster.node(cluster.leader_of("orders"))
        ordered = [leader.address, *(node.address for node in cluster.others(leader.node_id))]
        async with Producer(ordered) as producer, Consumer(ordered, "orders", start=0) as consumer:
            await producer.send("orders", b"before")
            assert (await take(consumer, 1))[0].value == b"before"
            assert leader.process is not None
            os.kill(leader.process.pid, signal.SIGSTOP)
            try:
                after = await producer.send("orders", b"after")
                assert after.offset == 1
                assert (await take(consumer, 1))[0].value == b"after"
            finally:
                os.kill(leader.process.pid, signal.SIGCONT)

    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        run(lambda: scene(cluster))


def test_without_a_quorum_it_is_told_and_reading_goes_on(tmp_path: Path) -> None:
    async def scene(cluster: Cluster) -> None:
        leaderless = asyncio.Event()

        async def note(event: ConsumerEvent) -> None:
            if isinstance(event, Leaderless):
                leaderless.set()

        async with Producer(addresses(cluster), delivery_timeout=1.0) as producer:
            for number in range(10):
                await producer.send("orders", b"%d" % number)
            options = {"start": 0, "on_event": note}
            async with Consumer(addresses(cluster), "orders", **options) as consumer:  # type: ignore[arg-type]
                assert len(await take(consumer, 5)) == 5
                for node in cluster.nodes[:2]:
                    node.kill()
                assert [record.value for record in await take(consumer, 5)] == [b"5", b"6", b"7", b"8", b"9"]
                with pytest.raises(FluxlogError) as failure:
                    await producer.send("orders", b"more")
                assert failure.value.outcome in (Outcome.REJECTED, Outcome.UNKNOWN)
                waiting = asyncio.ensure_future(take(consumer, 1))
                await leaderless.wait()
                cluster.node(1).start()
                async with Producer(addresses(cluster)) as patient:
                    await patient.send("orders", b"again")
                assert (await waiting)[0].value in (b"more", b"again")

    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        run(lambda: scene(cluster))
