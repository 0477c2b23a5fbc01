"""The consumer on a small cluster behind real gRPC: failovers, damage, replicas that know less; batches cut to size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from fluxlog import Connection, Consumer, Producer, TopicPartition
from fluxlog.aio import feed
from fluxlog.aio.consumed import ConsumedBatch
from fluxlog.aio.feed import Track
from fluxlog.aio.following import Arrived
from fluxlog.batch import encode_batch
from fluxlog.entry import FetchedBatch
from fluxlog.errors import FluxlogError, OffsetOutOfRangeError
from fluxlog.v1 import record_pb2
from tests.unit.fluxlog_fake import FakeCluster

WHERE = TopicPartition("t", 0)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster(2)
    fake.create("t", 1)
    yield fake
    fake.stop()


async def take(consumer: Consumer, count: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    async for record in consumer:
        values.append(record.value)
        if len(values) == count:
            break
    return values


async def until(condition: Callable[[], bool]) -> None:
    """Asks until it is so; the whole scene is bounded in time."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


def addresses(cluster: FakeCluster) -> list[str]:
    return list(cluster.addresses.values())


def test_a_node_that_dies_is_left_and_nothing_is_skipped_or_repeated(cluster: FakeCluster) -> None:
    async def scene() -> None:
        async with asyncio.timeout(20), Producer(addresses(cluster)) as producer:
            await producer.send_many("t", [b"1", b"2"])
            async with Consumer(addresses(cluster), "t", start=0) as consumer:
                assert await take(consumer, 2) == [b"1", b"2"]
                await asyncio.to_thread(cluster.kill, cluster.following[-1][0])
                await producer.send_many("t", [b"3"])
                assert await take(consumer, 1) == [b"3"]
        assert [offset for _, offset in cluster.following] == [0, 2]

    asyncio.run(scene())


def test_a_damaged_response_is_fetched_again(cluster: FakeCluster) -> None:
    async def scene() -> None:
        async with asyncio.timeout(20), Producer(addresses(cluster)) as producer:
            await producer.send_many("t", [b"1", b"2"])
            cluster.topics["t"][0].corrupt_next = True
            async with Consumer(addresses(cluster), "t", start=0) as consumer:
                assert await take(consumer, 2) == [b"1", b"2"]
        assert len(cluster.following) == 2

    asyncio.run(scene())


def test_a_replica_that_is_cut_off_is_left_when_the_leader_has_more(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream stays open and says nothing."""
    monkeypatch.setattr(feed, "IDLE_SECONDS", 0.05)

    async def scene() -> None:
        async with asyncio.timeout(20), Producer(addresses(cluster)) as producer:
            await producer.send_many("t", [b"1"])
            async with Consumer(addresses(cluster), "t", start=0) as consumer:
                assert await take(consumer, 1) == [b"1"]
                stale = cluster.following[-1][0]
                cluster.behind[stale] = 1
                await producer.send_many("t", [b"2"])
                assert await take(consumer, 1) == [b"2"]
                assert cluster.following[-1][0] != stale

    asyncio.run(scene())


def test_what_waits_for_the_consumer_is_bounded(cluster: FakeCluster) -> None:
    """Reading goes on as room is given back."""

    async def scene() -> None:
        async with asyncio.timeout(20), Producer(addresses(cluster), batch_bytes=2_000) as producer:
            sent = [b"%05d" % number * 20 for number in range(500)]
            await producer.send_many("t", sent)
            async with Consumer(addresses(cluster), "t", start=0, buffer_bytes=1) as consumer:
                assert await take(consumer, 250) == sent[:250]
                await producer.send_many("t", [b"more"])
                assert await take(consumer, 251) == [*sent[250:], b"more"]

    asyncio.run(scene())


def test_without_partitions_of_a_group_there_is_nothing_to_commit(cluster: FakeCluster) -> None:
    async def scene() -> None:
        async with asyncio.timeout(20), Consumer(addresses(cluster), "t", start=0) as consumer:
            with pytest.raises(Exception, match="no group"):
                await consumer.commit()
            with pytest.raises(Exception, match="not read"):
                consumer.seek("t", 7, 0)

    asyncio.run(scene())


def test_reading_to_the_end_ends_where_every_record_has_expired(cluster: FakeCluster) -> None:
    """The beginning is found to lie at the end only when it is read there."""

    async def scene() -> None:
        async with asyncio.timeout(20), Producer(addresses(cluster)) as producer:
            await producer.send_many("t", [b"1", b"2"])
            cluster.topics["t"][0].log_start = 2
            async with Consumer(addresses(cluster), "t", start="earliest", stop_at_end=True) as consumer:
                assert await take(consumer, 3) == []
                assert consumer.position("t", 0) == 2

    asyncio.run(scene())


def test_a_seek_to_the_end_ends_an_iteration_that_waits(cluster: FakeCluster) -> None:
    """A node that knows less serves nothing, and another task has seen enough."""

    async def scene() -> None:
        async with asyncio.timeout(20), Producer(addresses(cluster)) as producer:
            await producer.send_many("t", [b"1", b"2"])
            cluster.behind = dict.fromkeys(cluster.up(), 0)
            async with Consumer(addresses(cluster), "t", start=0, stop_at_end=True) as consumer:
                asyncio.get_running_loop().call_soon(consumer.seek, "t", 0, 2)
                assert await take(consumer, 3) == []
                assert consumer.position("t", 0) == 2

    asyncio.run(scene())


def test_each_partition_that_cannot_be_read_is_told(cluster: FakeCluster) -> None:
    """They fail while nobody asks for a record, as after a long absence. One that was sought meanwhile is read."""

    async def scene() -> None:
        for number, partition in enumerate(cluster.create("many", 4)):
            partition.log_start = 2 + number
        async with asyncio.timeout(20), Producer(addresses(cluster)) as producer:
            for number in range(4):
                for n in range(6):
                    await producer.send("many", b"%d-%d" % (number, n), partition=number)
            async with Consumer(addresses(cluster), "many", start=1) as consumer:
                await until(lambda: all(track.following is None for track in consumer._feed.tracks.values()))
                consumer.seek("many", 0, 2)
                values, told = set[bytes | None](), list[int]()
                while len(values) < 6 - 2 + 6 - 3 + 6 - 4 + 6 - 5:
                    try:
                        values.update(await take(consumer, 1))
                    except OffsetOutOfRangeError as failure:
                        told.append(failure.log_start_offset)
                        consumer.seek("many", failure.log_start_offset - 2, failure.log_start_offset)
        assert values == {b"%d-%d" % (number, n) for number in range(4) for n in range(2 + number, 6)}
        assert sorted(told) == [3, 4, 5]

    asyncio.run(scene())


def test_a_consumer_whose_connection_is_closed_says_so(cluster: FakeCluster) -> None:
    async def scene() -> None:
        async with asyncio.timeout(20), Connection(addresses(cluster)) as connection, Producer(connection) as producer:
            await producer.send("t", b"1")
            async with Consumer(connection, "t", start=0) as consumer:
                assert await take(consumer, 1) == [b"1"]
                closing = asyncio.create_task(connection.close())
                with pytest.raises(FluxlogError, match="closed"):
                    await take(consumer, 1)
                await closing

    asyncio.run(scene())


def test_what_arrived_before_a_partition_failed_is_handed_out_before_that_is_told() -> None:
    async def scene() -> None:
        consumer = Consumer("127.0.0.1:1", "t")
        consumer._feed.add(WHERE, b"i" * 16, 10)
        following = consumer._feed.tracks[WHERE].following
        assert following is not None
        consumer._feed._take_arrived(following, Arrived([fetched(2, 10), fetched(1, 12)], 13, 13, 0))
        consumer._feed._take_failed(following, FluxlogError("UNKNOWN_TOPIC", "deleted"))
        async with asyncio.timeout(20):
            assert await take(consumer, 3) == [b"0", b"1", b"0"]
            with pytest.raises(FluxlogError, match="deleted"):
                await take(consumer, 1)
            await consumer.close()

    asyncio.run(scene())


def reads(offsets: range) -> tuple[Consumer, Track]:
    """A consumer to which this much has come."""
    consumer = Consumer("127.0.0.1:1", "t")
    consumer._feed.add(WHERE, b"i" * 16, offsets.start)
    track = consumer._feed.tracks[WHERE]
    assert track.following is not None
    batch = fetched(len(offsets), offsets.start)
    consumer._feed._take_arrived(track.following, Arrived([batch], offsets.stop, offsets.stop, 0))
    return consumer, track


def test_a_loop_that_was_left_and_ends_late_does_not_let_go_what_the_next_one_has_in_hand() -> None:
    async def scene() -> None:
        consumer, track = reads(range(10, 13))
        left, next_one = consumer.iterate().records(), consumer.iterate().records()
        async with asyncio.timeout(20):
            assert (await anext(left)).offset == 10
            assert (await anext(next_one)).offset == 11
            await left.aclose()
            assert not await consumer._hand.wait_returned(track, 0)
            await next_one.aclose()
            assert await consumer._hand.wait_returned(track, 0)
            await consumer.close()

    asyncio.run(scene())


def test_a_partition_waits_for_the_handler_of_a_loop_that_went_on_with_the_rest_of_a_batch() -> None:
    async def scene() -> None:
        consumer, track = reads(range(10, 13))
        async with asyncio.timeout(20):
            assert await take(consumer, 1) == [b"0"]
            assert await consumer._hand.wait_returned(track, 20)
            async for record in consumer:
                assert record.offset == 11
                assert not await consumer._hand.wait_returned(track, 0)
                break
            await consumer.close()

    asyncio.run(scene())


def test_a_record_that_another_thread_hands_out_as_it_is_interrupted_is_not_repeated() -> None:
    """That thread looked before the interruption, and has the record in hand after it."""

    async def scene() -> None:
        consumer, track = reads(range(10, 13))
        async with asyncio.timeout(20):
            iteration = consumer.iterate()
            chunk = await iteration.next_chunk()
            assert chunk is not None
            records = chunk.records()
            assert next(records).offset == 10
            consumer._hand.interrupt()
            chunk.current = next(chunk.rest)
            assert list(records) == []
            assert consumer._hand.come_back(iteration) is None
            assert track.position == track.handled == 12
            assert track.following is not None
            assert track.following.offset == 12
            await consumer.close()

    asyncio.run(scene())


def fetched(count: int, base: int) -> FetchedBatch:
    data = encode_batch([b"%d" % number for number in range(count)], keys=[b"k"] * count, timestamps_ms=5)
    return FetchedBatch(base, base + count, 3, 77, record_pb2.RecordBatch.FromString(data))


@pytest.mark.parametrize(
    ("begin", "end", "offsets"),
    [(0, None, range(10, 20)), (10, None, range(10, 20)), (13, None, range(13, 20)), (10, 15, range(10, 15)),
     (13, 15, range(13, 15)), (10, 20, range(10, 20)), (10, 99, range(10, 20)), (15, 13, range(0))],
)  # fmt: skip
def test_a_batch_is_cut_to_what_is_to_be_delivered(begin: int, end: int | None, offsets: range) -> None:
    batch = ConsumedBatch(WHERE, fetched(10, 10), begin, end)
    assert list(batch.offsets) == list(offsets)
    assert list(batch.values()) == [b"%d" % (offset - 10) for offset in offsets]
    records = list(batch)
    assert [record.offset for record in records] == list(offsets)
    assert all(record[:2] == WHERE and record.key == b"k" for record in records)
    assert all((record.timestamp_ms, record.append_time_ms, record.leader_epoch) == (5, 77, 3) for record in records)
    assert len(batch) == len(batch.keys()) == len(batch.headers()) == len(batch.timestamps_ms()) == len(offsets)
