"""A consumer as a member of a group whose partitions cannot all be read, behind real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fluxlog import Assigned, Connection, Consumer, ConsumerEvent, Lost, Producer, Revoked, TopicPartition
from fluxlog.errors import FluxlogError, LocalError
from fluxlog.v1 import groups_pb2
from tests.unit.fluxlog_fake import FakeCluster
from tests.unit.fluxlog_fake_groups import partition_of

KEPT, OTHER, DELETED = TopicPartition("kept", 0), TopicPartition("kept", 1), TopicPartition("deleted", 0)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """Two topics were assigned, and one of them is deleted before the member asks where it begins."""
    fake = FakeCluster(1)
    fake.create("kept", 2)
    fake.coordinator.assign(partition_of("kept", 0), committed=0)
    fake.coordinator.assign(partition_of("deleted"), partition_of("kept", 1))
    yield fake
    fake.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Asks until it is so; the whole scene is bounded in time."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


class Member:
    """A consumer, and what it was told."""

    def __init__(self, cluster: FakeCluster, connection: Connection | None = None, **options: Any) -> None:
        self.moves: list[Assigned | Revoked | Lost] = []
        self.consumer = Consumer(
            connection or list(cluster.addresses.values()), ["kept", "deleted"], group="g", on_event=self._note,
            commit_interval_ms=10, **options,
        )  # fmt: skip

    def _note(self, event: ConsumerEvent) -> None:
        if isinstance(event, Assigned | Revoked | Lost):
            self.moves.append(event)

    @property
    def waits(self) -> bool:
        """For the start of a partition that is its own."""
        group = self.consumer._group
        return group is not None and bool(group._unbegun)

    async def take(self) -> tuple[TopicPartition, bytes | None]:
        """The next record."""
        async for record in self.consumer:
            return TopicPartition(record.topic, record.partition), record.value
        raise AssertionError("the iteration ended")


def test_a_topic_that_was_deleted_is_left_out_and_the_others_are_read(cluster: FakeCluster) -> None:
    """Also those that were assigned with it; and when it is created again it is read."""

    async def scene() -> None:
        member, coordinator = Member(cluster), cluster.coordinator
        async with asyncio.timeout(20), Producer(list(cluster.addresses.values())) as producer, member.consumer:
            await producer.send("kept", b"1", partition=0)
            assert await member.take() == (KEPT, b"1")
            await until(lambda: coordinator.committed.get(("kept", 1)) == 0)
            await producer.send("kept", b"2", partition=1)
            assert await member.take() == (OTHER, b"2")
            assert member.consumer.assignment() == [KEPT, OTHER]
            coordinator.lose(partition_of("deleted"))
            await until(lambda: not member.waits)
            cluster.create("deleted")
            coordinator.assign(partition_of("deleted", generation=2))
            await until(lambda: coordinator.committed.get(("deleted", 0)) == 0)
            await producer.send("deleted", b"3")
            assert await member.take() == (DELETED, b"3")
            assert member.moves == [Assigned([KEPT]), Assigned([OTHER]), Assigned([DELETED])]
        assert coordinator.joins == 1

    asyncio.run(scene())


def test_a_partition_that_has_not_begun_is_given_up_when_that_is_asked_for(cluster: FakeCluster) -> None:
    async def scene() -> None:
        member, coordinator = Member(cluster), cluster.coordinator
        async with asyncio.timeout(20), member.consumer:
            coordinator.revoke(partition_of("deleted"))
            heard = await asyncio.to_thread(coordinator.heard.get, timeout=20)
            assert list(heard.released.partitions) == [partition_of("deleted")]
            cluster.create("deleted")  # whoever owns it now reads it
            coordinator.assign(partition_of("deleted", generation=2), committed=0)
            await until(lambda: DELETED in member.consumer.assignment())
            assert member.consumer._feed.tracks[DELETED].topic_id == partition_of("deleted", generation=2).topic_id

    asyncio.run(scene())


def test_a_member_that_cannot_ask_where_to_begin_leaves_and_hands_out_nothing_more(cluster: FakeCluster) -> None:
    """Each further iteration says so, too."""

    async def scene() -> None:
        member, coordinator = Member(cluster, start="sometime"), cluster.coordinator
        async with asyncio.timeout(20), member.consumer:
            for _ in range(2):
                with pytest.raises(LocalError, match="sometime"):
                    await member.take()
            assert member.consumer.assignment() == []
            assert member.moves == [Assigned([KEPT]), Lost([KEPT])]
            heard = await asyncio.to_thread(coordinator.heard.get, timeout=20)
            assert heard == groups_pb2.MemberMessage(leave=groups_pb2.Leave())

    asyncio.run(scene())


def test_a_member_whose_connection_is_closed_hands_out_nothing_more(cluster: FakeCluster) -> None:
    async def scene() -> None:
        connection = Connection(list(cluster.addresses.values()))
        member = Member(cluster, connection)
        async with asyncio.timeout(20), member.consumer:
            await until(lambda: member.consumer.assignment() == [KEPT, OTHER])
            cluster.coordinator.lose(partition_of("deleted"))
            await until(lambda: not member.waits)
            await connection.close()
            await until(lambda: member.consumer.assignment() == [])
            for _ in range(2):
                with pytest.raises(FluxlogError, match="closed"):
                    await member.take()

    asyncio.run(scene())


def test_what_is_to_be_given_up_waits_for_the_handler_of_an_earlier_event(cluster: FakeCluster) -> None:
    async def scene() -> None:
        said, may_return = list[str](), asyncio.Event()

        async def handle(event: ConsumerEvent) -> None:
            said.append(type(event).__name__)
            if isinstance(event, Assigned):
                await may_return.wait()
                said.append("returned")

        async def iterate() -> None:
            async for _ in consumer:
                pass

        consumer = Consumer(list(cluster.addresses.values()), ["kept"], group="g", on_event=handle)
        async with asyncio.timeout(20), consumer:
            iterating = asyncio.create_task(iterate())
            await until(lambda: said == ["Assigned"])
            cluster.coordinator.revoke(partition_of("kept"))
            await until(lambda: KEPT not in consumer.assignment())
            assert said == ["Assigned"]
            may_return.set()
            heard = await asyncio.to_thread(cluster.coordinator.heard.get, timeout=20)
            assert list(heard.released.partitions) == [partition_of("kept")]
            assert said[said.index("Revoked") - 1] == "returned"
            iterating.cancel()
            await asyncio.gather(iterating, return_exceptions=True)

    asyncio.run(scene())
