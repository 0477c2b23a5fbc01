"""Reader, offsets, client and admin, on the fake cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import grpc
import pytest

from fluxlog import TopicPartition
from fluxlog.admin import Admin
from fluxlog.aio.admin import Admin as AsyncAdmin
from fluxlog.batch import encode_batch
from fluxlog.client import Client, parse_bootstrap
from fluxlog.entry import UndecodableBatchError
from fluxlog.errors import FluxlogError, LocalError, OffsetOutOfRangeError, Outcome, UnreachableError
from fluxlog.groups import Groups
from fluxlog.offsets import earliest_offsets, latest_offsets, offsets_at
from fluxlog.reader import Reader, iter_until
from fluxlog.v1 import record_pb2
from tests.unit.fluxlog_fake import FakeCluster
from tests.unit.fluxlog_fake_groups import partition_of
from tests.unit.fluxlog_fake_partition import FakePartition


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster(3)
    yield fake
    fake.stop()


@pytest.fixture
def client(cluster: FakeCluster) -> Iterator[Client]:
    with Client(list(cluster.addresses.values())) as one:
        yield one


def _fill(partition: FakePartition, values: list[bytes]) -> None:
    batch = record_pb2.RecordBatch.FromString(encode_batch(values, timestamps_ms=5))
    partition.append(batch, list(values))


def _read(reader: Reader, ends: dict[int, int]) -> dict[int, list[bytes | None]]:
    out: dict[int, list[bytes | None]] = {number: [] for number in ends}
    for fetched in iter_until(reader, ends, timeout=10):
        for batch in fetched.batches():
            values = batch.decode().values()
            out[fetched.partition] += values[max(0, fetched.wanted_offset - batch.base_offset) :]
    return out


def test_a_topic_that_is_created_anew_is_not_read_on(cluster: FakeCluster, client: Client) -> None:
    """Though the offset is there in the new one, too."""
    _fill(cluster.create("t")[0], [b"old", b"older"])
    with Reader(client, "t", {0: 0}, topic_id=cluster.topic_ids["t"]) as reader:
        assert _read_to(reader, 2) == [b"old", b"older"]
        _fill(cluster.create("t")[0], [b"1", b"2", b"3"])
        with pytest.raises(FluxlogError) as failure:
            while True:
                reader.poll(10)
        assert failure.value.reason == "TOPIC_ID_MISMATCH"


def _read_to(reader: Reader, count: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    while len(values) < count:
        fetched = reader.poll(10)
        assert fetched is not None
        values += [value for batch in fetched.batches() for value in batch.decode().values()]
    return values


def test_reads_every_partition_from_an_offset_inside_a_batch(cluster: FakeCluster, client: Client) -> None:
    partitions = cluster.create("t", 2)
    for number in range(5):
        _fill(partitions[0], [b"a%d" % number, b"b%d" % number])
        _fill(partitions[1], [b"c%d" % number])
    with Reader(client, "t", {0: 3, 1: 0}) as reader:
        got = _read(reader, {0: 10, 1: 5})
    assert got[0] == partitions[0].values[3:]
    assert got[1] == partitions[1].values


def test_goes_on_at_another_node_when_one_dies(cluster: FakeCluster, client: Client) -> None:
    partition = cluster.create("t")[0]
    _fill(partition, [b"a"])
    with Reader(client, "t", {0: 0}) as reader:
        first = reader.poll(10)
        cluster.kill(1)
        _fill(partition, [b"b"])
        second = reader.poll(10)
        while second is not None and not list(second.batches()):
            second = reader.poll(10)
    assert first is not None
    assert second is not None
    assert [batch.decode().values() for fetched in (first, second) for batch in fetched.batches()] == [[b"a"], [b"b"]]


def test_an_offset_that_is_not_there_is_said_with_the_bounds(cluster: FakeCluster, client: Client) -> None:
    _fill(cluster.create("t")[0], [b"a"])
    with Reader(client, "t", {0: 7}) as reader, pytest.raises(OffsetOutOfRangeError) as caught:
        reader.poll(10)
    assert (caught.value.log_start_offset, caught.value.high_watermark) == (0, 1)


def test_a_batch_that_cannot_be_decoded_can_be_stepped_over(cluster: FakeCluster, client: Client) -> None:
    partition = cluster.create("t")[0]
    _fill(partition, [b"a"])
    bad = record_pb2.RecordBatch(record_count=2, codec=record_pb2.CODEC_ZSTD, value_lengths=[1, 1], columns=b"no")
    partition.append(bad, [None, None])
    _fill(partition, [b"z"])
    good: list[bytes | None] = []
    failures: list[UndecodableBatchError] = []
    with Reader(client, "t", {0: 0}) as reader:
        for fetched in iter_until(reader, {0: 4}, timeout=10):
            for batch in fetched.batches():
                try:
                    good += batch.decode().values()
                except UndecodableBatchError as error:
                    failures.append(error)
    assert good == [b"a", b"z"]
    assert [(error.base_offset, error.next_offset) for error in failures] == [(1, 3)]


def test_offsets_by_position_and_time(cluster: FakeCluster, client: Client) -> None:
    partition = cluster.create("t")[0]
    _fill(partition, [b"a", b"b"])
    _fill(partition, [b"c"])
    assert earliest_offsets(client, "t", [0]) == {0: 0}
    assert latest_offsets(client, "t", [0]) == {0: 3}
    assert offsets_at(client, "t", [0], 1_001) == {0: 2}
    with pytest.raises(FluxlogError, match="UNKNOWN_TOPIC"):
        latest_offsets(client, "other", [0])


def test_errors_carry_what_the_server_said(cluster: FakeCluster, client: Client) -> None:
    admin = Admin(client)
    admin.create_topic("t")
    with pytest.raises(FluxlogError) as caught:
        admin.create_topic("t")
    assert caught.value.reason == "TOPIC_EXISTS"
    assert caught.value.outcome is Outcome.REJECTED
    assert caught.value.from_server
    assert not admin.create_topic("t", if_not_exists=True).created


def test_a_dead_address_is_passed_over(cluster: FakeCluster) -> None:
    """Also by a call that must not be made twice: nothing was sent to the dead one."""
    cluster.kill(1)
    with Client([cluster.addresses[1], cluster.addresses[2]]) as client:
        assert Admin(client).create_topic("t").created
        assert client.learn_nodes().node_id == 2
        assert len(client.addresses()) == 3


def test_a_topic_is_unknown_only_when_every_node_says_so(cluster: FakeCluster) -> None:
    """A node that has just started may not have heard of it yet."""
    cluster.create("t")
    cluster.ignorant = {1}
    with Client([cluster.addresses[1]]) as client:
        assert Admin(client).describe_topic("t").name == "t"
        with pytest.raises(FluxlogError, match="UNKNOWN_TOPIC"):
            Admin(client).describe_topic("other")


def _kill_with_asyncio(cluster: FakeCluster, node_id: int) -> None:
    async def kill() -> None:
        async with AsyncAdmin(cluster.addresses[1]) as admin:
            await admin.kill_node(node_id)

    asyncio.run(kill())


def _kill(cluster: FakeCluster, node_id: int) -> None:
    with Client([cluster.addresses[1]]) as client:
        Admin(client).kill_node(node_id)


@pytest.mark.parametrize("kill", [_kill, _kill_with_asyncio])
def test_a_node_is_killed_only_when_it_was_reached(
    cluster: FakeCluster, kill: Callable[[FakeCluster, int], None]
) -> None:
    """No answer is what an ended process gives, but also a node that hangs, or is cut off."""
    kill(cluster, 2)
    cluster.kill_answer = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(FluxlogError) as caught:
        kill(cluster, 2)
    assert (caught.value.reason, caught.value.outcome) == ("DEADLINE_EXCEEDED", Outcome.UNKNOWN)
    cluster.kill(2)
    with pytest.raises(FluxlogError) as caught:
        kill(cluster, 2)
    assert (caught.value.reason, caught.value.outcome) == ("UNAVAILABLE", Outcome.REJECTED)


def test_no_node_at_all_is_one_clear_error(cluster: FakeCluster) -> None:
    cluster.kill(1)
    with Client([cluster.addresses[1]]) as client, pytest.raises(UnreachableError, match="no node answers"):
        Admin(client).list_topics()


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:99999", "host:1,other"])
def test_a_bad_bootstrap_address_is_refused(text: str) -> None:
    with pytest.raises(LocalError):
        parse_bootstrap(text)


def test_a_partition_for_which_nothing_is_committed_has_no_offset(cluster: FakeCluster, client: Client) -> None:
    cluster.coordinator.committed["t", 0] = 0
    cluster.coordinator.never_committed.append(partition_of("t", 1))
    assert Groups(client).offsets("g") == {("t", 0): 0}

    async def ask() -> Mapping[TopicPartition, int]:
        async with AsyncAdmin(list(cluster.addresses.values())) as admin:
            return await admin.groups.committed_offsets("g")

    assert asyncio.run(ask()) == {TopicPartition("t", 0): 0}
