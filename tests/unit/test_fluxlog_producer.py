"""The producer on a small cluster behind real gRPC: outcomes, order, batching, back-pressure, cancellation."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator

import pytest

from fluxlog import (
    BufferFullError,
    BulkDeliveryError,
    FluxlogError,
    Outcome,
    Producer,
    RejectedError,
    UnknownOutcomeError,
)  # fmt: skip
from fluxlog.codec import Codec
from tests.unit.fluxlog_fake import FakeCluster, Fault
from tests.unit.fluxlog_play import play


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster(2)
    fake.create("t", 2)
    yield fake
    fake.stop()


def test_a_record_is_acknowledged_with_its_place(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        first = await producer.send("t", b"a", partition=1)
        second = await producer.send("t", None, key=b"k", partition=1, headers=[("h", b"1"), ("h", None)])
        assert (first.partition, first.offset, first.leader_epoch, first.copies_on_disk) == (1, 0, 1, 2)
        assert (second.offset, second.duplicate) == (1, False)

    play(cluster, scene)
    assert cluster.topics["t"][1].values == [b"a", None]


def test_one_message_answers_several_batches(cluster: FakeCluster) -> None:
    """The library asks for it (`accepts_more`) and finds each batch's own answer."""
    cluster.answers_together = 2

    async def scene(producer: Producer) -> None:
        both = [producer.send("t", b"%d" % partition, partition=partition) for partition in range(2)]
        delivered = await asyncio.gather(*both)
        assert [(each.partition, each.offset) for each in delivered] == [(0, 0), (1, 0)]

    play(cluster, scene)


def test_records_of_many_tasks_share_batches_and_keep_each_tasks_order(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        async def one(name: int) -> list[int]:
            return [(await producer.send("t", b"%d.%d" % (name, n), partition=0)).offset for n in range(10)]

        offsets = await asyncio.gather(*[one(name) for name in range(50)])
        assert all(each == sorted(each) for each in offsets)
        assert sorted(offset for each in offsets for offset in each) == list(range(500))
        values = cluster.topics["t"][0].values
        for name, each in enumerate(offsets):
            assert [values[offset] for offset in each] == [b"%d.%d" % (name, n) for n in range(10)]

    play(cluster, scene)
    assert cluster.produced < 200, "500 records, each of 50 tasks waits for its own"


def test_nothing_waits_when_nothing_is_on_its_way(cluster: FakeCluster) -> None:
    """The linger is an hour."""

    async def scene(producer: Producer) -> None:
        for number in range(5):
            await producer.send("t", b"%d" % number)

    play(cluster, scene, linger_ms=3_600_000)
    assert cluster.produced == 5


def test_what_arrives_while_a_batch_is_on_its_way_leaves_when_that_has_arrived(cluster: FakeCluster) -> None:
    """Although the linger is an hour."""

    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        first = producer.send_nowait("t", b"1", partition=0)
        await asyncio.sleep(0.0)  # its batch has left
        others = [producer.send_nowait("t", b"%d" % number, partition=0) for number in range(2, 10)]
        await asyncio.gather(first, *others)

    play(cluster, scene, linger_ms=3_600_000)
    assert cluster.produced == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault.NO_QUORUM, Fault.NO_LEADER, Fault.OUTCOME_UNKNOWN_WRITTEN, Fault.OUTCOME_UNKNOWN_NOT_WRITTEN,
        Fault.BREAK_BEFORE, Fault.BREAK_AFTER,
    ],
)  # fmt: skip
def test_what_passes_is_sent_again_and_written_once_in_order(cluster: FakeCluster, fault: Fault) -> None:
    """Whichever batch fails, with many in flight."""
    retries: list[object] = []

    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        cluster.faults[0].extend([None, None, fault, None, fault])  # type: ignore[list-item]
        sent = [b"%04d" % number + bytes(500) for number in range(200)]
        deliveries = [producer.send_nowait("t", value, partition=0) for value in sent]
        await producer.flush()
        assert [delivery.result().offset for delivery in deliveries] == list(range(200))
        assert cluster.topics["t"][0].values == sent

    play(cluster, scene, batch_bytes=4_096, on_retry=retries.append)
    assert retries


def test_a_refusal_rejects_its_batch_and_not_those_behind(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        cluster.faults[0].append(Fault.INVALID_ARGUMENT)
        refused = producer.send_nowait("t", b"x", partition=0)
        await asyncio.sleep(0)
        taken = producer.send_nowait("t", b"y", partition=0)
        with pytest.raises(RejectedError) as failure:
            await refused
        assert (failure.value.reason, failure.value.outcome) == ("INVALID_ARGUMENT", Outcome.REJECTED)
        assert (failure.value.topic, failure.value.partition) == ("t", 0)
        assert (await taken).offset == 0

    play(cluster, scene)


def test_an_earlier_unclear_attempt_is_never_reported_as_rejected(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        cluster.faults[0].extend([Fault.OUTCOME_UNKNOWN_WRITTEN, *[Fault.NO_QUORUM] * 10_000])
        with pytest.raises(UnknownOutcomeError) as failure:
            await producer.send("t", b"x", partition=0)
        assert failure.value.reason == "NO_QUORUM"

    play(cluster, scene, delivery_timeout=0.3)
    assert cluster.topics["t"][0].values == [b"x"]


def test_refused_until_the_delivery_timeout_is_rejected(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        cluster.faults[0].extend([Fault.NO_QUORUM] * 10_000)
        with pytest.raises(RejectedError):
            await producer.send("t", b"x", partition=0)

    play(cluster, scene, delivery_timeout=0.3)
    assert cluster.topics["t"][0].values == []


def test_cancelling_the_wait_does_not_take_the_record_back(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        task = asyncio.ensure_future(producer.send("t", b"x", partition=0))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await producer.flush()
        assert producer.buffered_bytes == 0

    play(cluster, scene)
    assert cluster.topics["t"][0].values == [b"x"]


def test_a_full_buffer_is_told_or_waited_for(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        deliveries = []
        with pytest.raises(BufferFullError) as failure:
            while True:
                deliveries.append(producer.send_nowait("t", bytes(100), partition=0))
        assert failure.value.outcome is Outcome.REJECTED
        assert len(deliveries) < 100
        late = asyncio.ensure_future(producer.send("t", b"late", partition=0))
        await producer.ready()
        await late
        await asyncio.gather(*deliveries)

    play(cluster, scene, buffer_bytes=10_000)
    assert cluster.topics["t"][0].values[-1] == b"late"


def test_keys_choose_the_partition_and_a_caller_may_choose_otherwise(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        for key in (b"a", b"b", b"c", b"d"):
            places = {(await producer.send("t", b"v", key=key)).partition for _ in range(3)}
            assert places == {len(key + b"x") % 2}

    play(cluster, scene, partitioner=lambda key, partitions: len(key + b"x") % partitions)


def test_without_a_key_partitions_take_turns(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        places = [(await producer.send("t", b"v")).partition for _ in range(10)]
        assert set(places) == {0, 1}

    play(cluster, scene)
    play(cluster, scene, keyless="round_robin")


def test_one_bad_record_is_refused_alone(cluster: FakeCluster) -> None:
    """It never gets into the batch of others."""

    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        good = producer.send_nowait("t", bytearray(b"good"), partition=0)  # type: ignore[arg-type]
        for bad in ({"value": "text"}, {"key": "text"}, {"headers": [(b"n", b"v")]}, {"timestamp_ms": 1 << 70}):
            with pytest.raises((TypeError, ValueError)):
                producer.send_nowait("t", **({"value": b"v", "partition": 0} | bad))  # type: ignore[arg-type]
        with pytest.raises(FluxlogError) as failure:
            producer.send_nowait("t", b"v", partition=9)
        assert failure.value.reason == "UNKNOWN_PARTITION"
        assert (await good).offset == 0
        assert producer.buffered_bytes == 0

    play(cluster, scene)


def test_a_record_too_large_for_a_batch_is_rejected_and_those_around_it_are_not(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        around = [producer.send_nowait("t", b"a", partition=0)]
        large = producer.send_nowait("t", bytes(1_100_000), partition=0)
        around.append(producer.send_nowait("t", b"b", partition=0))
        with pytest.raises(RejectedError) as failure:
            await large
        assert failure.value.reason == "BATCH_TOO_LARGE"
        assert [(await delivery).offset for delivery in around] == [0, 1]

    play(cluster, scene)


def test_many_at_once_are_cut_into_batches_and_all_accounted_for(cluster: FakeCluster) -> None:
    values: list[bytes | None] = [b"%d" % number * (number % 7) for number in range(20_000)]
    values[500] = None

    async def scene(producer: Producer) -> None:
        result = await producer.send_many("t", iter(values))
        assert result.record_count == len(values)
        assert sorted(number for part in result.delivered for number in part.numbers) == list(range(len(values)))
        for part in result.delivered:
            for place, number in enumerate(part.numbers):
                assert cluster.topics["t"][part.partition].values[part.base_offset + place] == values[number]
        assert {part.partition for part in result.delivered} == {0, 1}

    play(cluster, scene, batch_bytes=16_384, codec=Codec.LZ4)


def test_many_with_keys_go_where_their_keys_say_in_order(cluster: FakeCluster) -> None:
    keys = [b"k%d" % (number % 5) for number in range(5_000)]
    values = [b"%d" % number for number in range(5_000)]

    async def scene(producer: Producer) -> None:
        result = await producer.send_many("t", values, keys=keys)
        assert result.record_count == 5_000
        for part in result.delivered:
            assert {zlib.crc32(keys[number]) % 2 for number in part.numbers} == {part.partition}
            assert list(part.numbers) == sorted(part.numbers)

    play(cluster, scene)


def test_many_tell_which_were_not_acknowledged(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        cluster.faults[0].append(Fault.INVALID_ARGUMENT)
        with pytest.raises(BulkDeliveryError) as failure:
            await producer.send_many("t", [bytes(600)] * 20, partition=0)
        assert failure.value.outcome is Outcome.REJECTED
        numbers = [number for part in failure.value.failed for number in part.numbers]
        assert numbers
        assert len(numbers) + failure.value.result.record_count == 20

    play(cluster, scene, batch_bytes=2_048)


def test_an_unknown_topic_is_said_and_send_nowait_asks_for_preparation(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        for attempt in (producer.send("no", b"v"), producer.send_many("no", [b"v"])):
            with pytest.raises(FluxlogError) as failure:
                await attempt
            assert failure.value.reason == "UNKNOWN_TOPIC"
        with pytest.raises(FluxlogError, match="prepare"):
            producer.send_nowait("t", b"v")

    play(cluster, scene)


def test_a_topic_that_was_deleted_and_created_again_is_learned_anew(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        assert (await producer.send("t", b"old", partition=1)).partition == 1
        del cluster.topics["t"]
        with pytest.raises(RejectedError) as failure:
            await producer.send("t", b"lost", partition=1)
        assert failure.value.reason == "UNKNOWN_TOPIC"
        cluster.create("t", 1)
        while True:  # until the producer has learned of it
            try:
                assert (await producer.send("t", b"new", partition=0)).offset >= 0
                await producer.send("t", b"no more", partition=1)
            except FluxlogError as refusal:
                if refusal.reason == "UNKNOWN_PARTITION":
                    break
        await producer.flush()
        assert cluster.topics["t"][0].values[0] == b"new"

    play(cluster, scene, delivery_timeout=0.3)


def test_a_partition_in_trouble_is_left_out_while_there_are_others_and_tried_again(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        cluster.faults[0].extend([Fault.NO_QUORUM] * 1_000)
        stuck = producer.send_nowait("t", b"stuck", partition=0)
        await retried.wait()
        for _ in range(4):
            assert (await producer.send("t", b"elsewhere")).partition == 1
        with pytest.raises(RejectedError):
            await stuck
        cluster.faults[0].clear()
        assert {(await producer.send("t", b"anywhere")).partition for _ in range(4)} == {0, 1}

    retried = asyncio.Event()
    play(cluster, scene, delivery_timeout=0.5, on_retry=lambda _: retried.set())


def test_a_producer_that_was_forgotten_begins_anew(cluster: FakeCluster) -> None:
    """What is sent next is written once and in order, whatever fails beside that."""
    retries: list[str] = []

    async def scene(producer: Producer) -> None:
        assert (await producer.send("t", b"before", partition=0)).offset == 0
        cluster.topics["t"][0].forget_producers()
        cluster.faults[0].extend([None, None, Fault.NO_QUORUM, None, Fault.BREAK_AFTER])  # type: ignore[list-item]
        sent = [b"%04d" % number + bytes(500) for number in range(200)]
        deliveries = [producer.send_nowait("t", value, partition=0) for value in sent]
        assert [(await delivery).offset for delivery in deliveries] == list(range(1, 201))
        assert cluster.topics["t"][0].values == [b"before", *sent]

    play(cluster, scene, batch_bytes=4_096, on_retry=lambda retry: retries.append(retry.error.reason))
    assert "UNKNOWN_PRODUCER" not in retries, "there is no doubt, and nothing to wait for"


def test_what_may_have_been_written_is_not_written_again_under_another_producer_id(cluster: FakeCluster) -> None:
    """Where the server has forgotten meanwhile, nobody can tell."""

    def on_retry(_: object) -> None:
        cluster.topics["t"][0].forget_producers()

    async def scene(producer: Producer) -> None:
        assert (await producer.send("t", b"before", partition=0)).offset == 0
        cluster.faults[0].append(Fault.OUTCOME_UNKNOWN_WRITTEN)
        with pytest.raises(UnknownOutcomeError) as failure:
            await producer.send("t", b"once", partition=0)
        assert failure.value.reason == "UNKNOWN_PRODUCER"
        assert (await producer.send("t", b"after", partition=0)).offset == 2

    play(cluster, scene, delivery_timeout=0.3, on_retry=on_retry)
    assert cluster.topics["t"][0].values == [b"before", b"once", b"after"]


def test_closing_without_a_flush_gives_every_record_an_outcome(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        cluster.faults[0].extend([Fault.NO_QUORUM] * 100_000)
        deliveries = [producer.send_nowait("t", bytes(900), partition=0) for _ in range(50)]
        await asyncio.sleep(0)
        await producer.close(flush=False)
        for delivery in deliveries:
            with pytest.raises((RejectedError, UnknownOutcomeError)):
                delivery.result()
        with pytest.raises(FluxlogError, match="closed"):
            await producer.send("t", b"v")

    play(cluster, scene, batch_bytes=2_048)


def test_a_node_that_dies_is_left_for_another(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        assert (await producer.send("t", b"1", partition=0)).offset == 0
        await asyncio.to_thread(cluster.kill, 1)
        assert (await producer.send("t", b"2", partition=0)).offset == 1

    play(cluster, scene)


class Counted(bytes):
    """A value that knows how many like it there are."""

    alive = 0

    def __new__(cls, value: bytes) -> Counted:
        Counted.alive += 1
        return super().__new__(cls, value)

    def __del__(self) -> None:
        Counted.alive -= 1


def test_what_has_its_outcome_takes_no_memory(cluster: FakeCluster) -> None:
    """Neither what a caller keeps its Delivery of, nor the first of more than fits the memory."""
    Counted.alive = peak = 0

    def values() -> Iterator[bytes]:
        nonlocal peak
        for number in range(20_000):
            peak = max(peak, Counted.alive)
            yield Counted(b"%600d" % number)

    async def scene(producer: Producer) -> None:
        await producer.prepare("t")
        deliveries = [producer.send_nowait("t", Counted(b"v"), key=b"k") for _ in range(10)]
        await producer.flush()
        assert Counted.alive == 0
        assert [delivery.result().offset for delivery in deliveries] == list(range(10))
        assert (await producer.send_many("t", values())).record_count == 20_000
        assert peak < 2_500

    play(cluster, scene, batch_bytes=16_384, buffer_bytes=65_536)
