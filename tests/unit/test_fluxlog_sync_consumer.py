"""The consumer for threads: loops that are left and begun anew, and what of a batch is committed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fluxlog import TopicPartition
from fluxlog.sync import Consumer, Producer, _background
from tests.unit.fluxlog_fake import FakeCluster
from tests.unit.fluxlog_fake_groups import partition_of
from tests.unit.test_fluxlog_sync import wait_until

WHERE = TopicPartition("t", 0)
GROUPS = pytest.mark.parametrize("group", ["", "g"], ids=["alone", "in a group"])


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """Five records in one batch. The member of the group owns the partition."""
    fake = FakeCluster()
    fake.create("t", 1)
    with Producer(fake.addresses[1]) as producer:
        producer.send_many("t", [b"0", b"1", b"2", b"3", b"4"])
    assert fake.topics["t"][0].bases == [0]
    fake.coordinator.assign(partition_of("t"), committed=0)
    yield fake
    fake.stop()


@contextmanager
def open_consumer(cluster: FakeCluster, group: str, **options: Any) -> Iterator[Consumer]:
    """Bounded in time: at its end it is closed, and loops over it end."""
    with Consumer(cluster.addresses[1], "t", group=group, start="earliest", **options) as consumer:
        bound = threading.Timer(20, lambda: _background.call(consumer._inner.close()))
        bound.start()
        try:
            yield consumer
        finally:
            bound.cancel()


def take(consumer: Consumer, count: int) -> list[int]:
    """Offsets of so many records; then the loop is left."""
    offsets: list[int] = []
    for record in consumer:
        offsets.append(record.offset)
        if len(offsets) == count:
            break
    return offsets


def committed(cluster: FakeCluster) -> int | None:
    return cluster.coordinator.committed.get(WHERE)


@GROUPS
def test_a_loop_goes_on_where_the_one_before_was_left(cluster: FakeCluster, group: str) -> None:
    with open_consumer(cluster, group) as consumer:
        assert take(consumer, 2) == [0, 1]
        assert next(iter(consumer)).offset == 2
        assert take(consumer, 2) == [3, 4]


@GROUPS
def test_batches_go_on_where_records_were_left(cluster: FakeCluster, group: str) -> None:
    with open_consumer(cluster, group) as consumer:
        assert take(consumer, 2) == [0, 1]
        batch = next(iter(consumer.batches()))
        assert list(batch.offsets) == [2, 3, 4]
        with Producer(cluster.addresses[1]) as producer:
            producer.send("t", b"5")
        assert take(consumer, 1) == [5]


def test_a_loop_to_the_end_ends_there_though_it_was_left_between(cluster: FakeCluster) -> None:
    with open_consumer(cluster, "", stop_at_end=True) as consumer:
        assert take(consumer, 4) == [0, 1, 2, 3]
        assert [record.offset for record in consumer] == [4]
        assert list(consumer) == []


@GROUPS
def test_a_seek_leaves_out_what_was_left(cluster: FakeCluster, group: str) -> None:
    """Between two loops, and within one."""
    with open_consumer(cluster, group) as consumer:
        assert take(consumer, 2) == [0, 1]
        consumer.seek("t", 0, 4)
        assert take(consumer, 1) == [4]
        consumer.seek("t", 0, 0)
        offsets: list[int] = []
        for record in consumer:
            offsets.append(record.offset)
            if len(offsets) == 2:
                consumer.seek("t", 0, 3)
            if len(offsets) == 4:
                break
        assert offsets == [0, 1, 3, 4]


def test_what_was_left_of_a_partition_that_was_lost_is_not_handed_out(cluster: FakeCluster) -> None:
    with open_consumer(cluster, "g", auto_commit=False) as consumer:
        assert take(consumer, 2) == [0, 1]
        cluster.coordinator.lose(partition_of("t"))
        wait_until(lambda: consumer.assignment() == [])
        cluster.coordinator.assign(partition_of("t"), committed=1)
        assert take(consumer, 1) == [1]


def test_a_partition_is_given_up_when_the_loop_is_left(cluster: FakeCluster) -> None:
    """The record that was in hand then counts as not handled."""
    with open_consumer(cluster, "g") as consumer:
        for record in consumer:
            if record.offset == 1:
                cluster.coordinator.revoke(partition_of("t"))
                wait_until(lambda: consumer.assignment() == [])
                assert cluster.coordinator.heard.empty(), "not while it is in hand"
                break
        wait_until(lambda: not consumer._inner._hand.busy)
        assert list(cluster.coordinator.heard.get(timeout=20).released.partitions) == [partition_of("t")]
        assert committed(cluster) == 1


def test_commit_covers_the_record_in_hand_and_none_behind_it(cluster: FakeCluster) -> None:
    with open_consumer(cluster, "g", auto_commit=False) as consumer:
        for record in consumer:
            consumer.commit()
            assert committed(cluster) == record.offset + 1
            if record.offset == 2:
                break
    assert committed(cluster) == 3


def test_commit_covers_the_batch_in_hand(cluster: FakeCluster) -> None:
    with open_consumer(cluster, "g", auto_commit=False) as consumer:
        assert len(next(consumer.batches())) == 5
        consumer.commit()
        assert committed(cluster) == 5


def test_records_are_committed_in_the_background_as_they_are_handled(cluster: FakeCluster) -> None:
    """However long each one takes: up to the one in hand, exclusive; at the end, too."""
    with open_consumer(cluster, "g", commit_interval_ms=1) as consumer:
        for record in consumer:
            if record.offset:
                wait_until(lambda offset=record.offset: committed(cluster) == offset)  # type: ignore[misc]
            if record.offset == 3:
                break
    assert committed(cluster) == 3
