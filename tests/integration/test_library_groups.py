"""The library's consumers as members of groups, against real nodes."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fluxlog import Admin, Assigned, Consumer, ConsumerEvent, FluxlogError, Lost, Producer, Revoked, TopicPartition
from tests.integration.cluster import Cluster

pytestmark = pytest.mark.slow

_names = itertools.count(1)
_SECONDS = 60
PARTITIONS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("library-groups")) as running:
        yield running


@pytest.fixture
def topic(cluster: Cluster) -> str:
    name = f"shared-{next(_names)}"
    cluster.create_topic(name, partitions=PARTITIONS)
    return name


def addresses(cluster: Cluster) -> list[str]:
    return [node.address for node in cluster.nodes]


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(_SECONDS):
            await scene()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Asks until it is so; the whole scene is bounded in time."""
    while True:
        answer = condition()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        await asyncio.sleep(0.02)


class Worker:
    """A member that notes what it handles."""

    def __init__(self, cluster: Cluster, topic: str, group: str, **options: object) -> None:
        self.events: list[ConsumerEvent] = []
        self.handled: list[tuple[int, int]] = []
        self.hold = asyncio.Event()
        """Handlers return while it is set."""
        self.hold.set()
        self.consumer = Consumer(
            addresses(cluster), topic, group=group, start="earliest", on_event=self._note, **options  # type: ignore[arg-type]
        )  # fmt: skip
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Worker:
        self._task = asyncio.ensure_future(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        async with self.consumer:
            async for record in self.consumer:
                await self.hold.wait()
                self.handled.append((record.partition, record.offset))

    def _note(self, event: ConsumerEvent) -> None:
        self.events.append(event)

    def owned(self) -> set[TopicPartition]:
        return set(self.consumer.assignment())


async def settled(*workers: Worker) -> None:
    """Until the partitions are shared evenly."""
    share = PARTITIONS // len(workers)
    await until(lambda: all(len(worker.owned()) == share for worker in workers))


def test_a_group_is_a_queue_and_what_was_handled_is_committed(cluster: Cluster, topic: str) -> None:
    """Each record goes to one member; a second one gets its share without a record lost or twice; the next generation
    of the group begins where the last one ended."""

    async def scene() -> None:
        async with Producer(addresses(cluster)) as producer, Admin(addresses(cluster)) as admin:
            await producer.send_many(topic, [b"x"] * 400, keys=[b"%d" % n for n in range(400)])
            async with Worker(cluster, topic, "queue") as first:
                await until(lambda: len(first.handled) == 400)
                async with Worker(cluster, topic, "queue") as second:
                    await settled(first, second)
                    assert first.owned().isdisjoint(second.owned())
                    assert sum(len(event.partitions) for event in first.events if isinstance(event, Revoked)) == 2
                    await producer.send_many(topic, [b"y"] * 400, keys=[b"%d" % n for n in range(400)])
                    await until(lambda: len(first.handled) + len(second.handled) == 800)
                    assert second.handled
                    assert not set(first.handled) & set(second.handled)
                described = (await admin.groups.describe(["queue"]))[0]
                assert [len(member.partitions) for member in described.members][-1] >= 2
            committed = await admin.groups.committed_offsets("queue")
            ends = await admin.latest_offsets(topic)
            assert {where.partition: offset for where, offset in committed.items()} == ends
            async with Worker(cluster, topic, "queue") as third:
                last = await producer.send(topic, b"z")
                await until(lambda: bool(third.handled))
                assert third.handled == [(last.partition, last.offset)]
            await admin.groups.delete("queue")
            with pytest.raises(FluxlogError) as failure:
                await admin.groups.describe(["queue"])
            assert failure.value.reason == "UNKNOWN_GROUP"

    run(scene)


def test_a_record_that_was_not_handled_is_delivered_again(cluster: Cluster, topic: str) -> None:
    """However long it takes, no timer commits it; a handler that breaks off has not handled its record."""

    async def scene() -> None:
        async with Producer(addresses(cluster)) as producer, Admin(addresses(cluster)) as admin:
            await producer.send_many(topic, [b"x"] * 10, partition=0)

            async def committed_six() -> bool:
                return (await admin.groups.committed_offsets("again")).get(TopicPartition(topic, 0)) == 6

            options = {"group": "again", "start": "earliest", "commit_interval_ms": 10}
            async with Consumer(addresses(cluster), topic, **options) as consumer:  # type: ignore[arg-type]
                async for record in consumer:
                    if record.offset == 6:
                        await until(committed_six)
                        break
            assert (await admin.groups.committed_offsets("again"))[TopicPartition(topic, 0)] == 6
            async with Consumer(addresses(cluster), topic, **options) as consumer:  # type: ignore[arg-type]
                async for record in consumer:
                    assert record.offset == 6
                    await consumer.commit()  # says that this one is handled, too
                    break
            assert (await admin.groups.committed_offsets("again"))[TopicPartition(topic, 0)] == 7

    run(scene)


def test_a_seek_backwards_is_committed(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        where = TopicPartition(topic, 0)
        async with Producer(addresses(cluster)) as producer, Admin(addresses(cluster)) as admin:
            await producer.send_many(topic, [b"x"] * 10, partition=0)
            options = {"group": "back", "start": "earliest"}
            async with Consumer(addresses(cluster), topic, **options) as consumer:  # type: ignore[arg-type]
                async for record in consumer:
                    if record.offset == 9:
                        await consumer.commit()
                        assert (await admin.groups.committed_offsets("back"))[where] == 10
                        consumer.seek(topic, 0, 3)
                        await consumer.commit()
                        break
            assert (await admin.groups.committed_offsets("back"))[where] == 3

    run(scene)


def test_a_partition_is_given_up_when_the_handler_has_returned(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        async with Producer(addresses(cluster)) as producer:
            for partition in range(PARTITIONS):
                await producer.send_many(topic, [b"x"] * 3, partition=partition)
            async with Worker(cluster, topic, "patient") as first:
                first.hold.clear()
                await until(lambda: first.consumer._hand.chunk is not None or bool(first.owned()))
                async with Worker(cluster, topic, "patient") as second:
                    first.hold.set()
                    await until(lambda: len(first.handled) + len(second.handled) >= 3 * PARTITIONS)
                    await settled(first, second)
                    counted = Counter(first.handled + second.handled)
                    assert set(counted.values()) == {1}
                    assert len(counted) == 3 * PARTITIONS

    run(scene)


def test_members_go_on_when_the_coordinator_is_killed(cluster: Cluster, topic: str) -> None:
    """The group keeps its assignment, and no handled record comes again, since commits are tried again."""

    async def scene() -> None:
        async with (
            Producer(addresses(cluster)) as producer,
            Admin(addresses(cluster)) as admin,
            Worker(cluster, topic, "moved", session_timeout_ms=10_000) as worker,
        ):
            await settled(worker)
            await producer.send_many(topic, [b"x"] * 100, partition=1)
            await until(lambda: len(worker.handled) == 100)
            coordinator = (await admin.groups.describe(["moved"]))[0].coordinator_node
            await asyncio.to_thread(cluster.node(coordinator).kill)
            await producer.send_many(topic, [b"y"] * 100, partition=1)
            await until(lambda: len(worker.handled) == 200)
            assert not [event for event in worker.events if isinstance(event, Lost | Revoked)]
            assert len([event for event in worker.events if isinstance(event, Assigned)]) == 1

            async def committed_all() -> bool:
                return (await admin.groups.committed_offsets("moved")).get(TopicPartition(topic, 1)) == 200

            await until(committed_all)
        assert worker.handled == [(1, offset) for offset in range(200)]

    try:
        run(scene)
    finally:
        for node in cluster.nodes:
            if not node.running:
                node.start()
        cluster.wait_ready()


class MemberProcess:
    """A member in a process of its own, and what it has handled."""

    def __init__(self, cluster: Cluster, topic: str, group: str, path: Path) -> None:
        self._path = path
        with path.open("wb") as out:
            arguments = [",".join(addresses(cluster)), topic, group]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.library_member", *arguments], stdout=out
            )

    def handled(self) -> list[tuple[int, int]]:
        lines = self._path.read_text().splitlines(keepends=True)
        return [(int(line.split()[0]), int(line.split()[1])) for line in lines if line.endswith("\n")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_members_are_killed_and_no_record_is_skipped(cluster: Cluster, topic: str, tmp_path: Path) -> None:
    """While records come in, two of three members are killed, one after the other. Each record is handled; each member
    saw every partition in order; nothing that was committed when a member died is handled again."""

    async def scene() -> None:
        members = [MemberProcess(cluster, topic, "killed", tmp_path / f"member-{number}") for number in range(3)]
        admin = Admin(addresses(cluster))
        try:
            enough = asyncio.Event()

            async def committed() -> dict[int, int]:
                offsets = await admin.groups.committed_offsets("killed")
                return {where.partition: offset for where, offset in offsets.items()}

            async def produce() -> int:
                sent = 0
                async with Producer(addresses(cluster)) as producer:
                    while not enough.is_set():
                        sent += (await producer.send_many(topic, [b"x"] * 100)).record_count
                        await asyncio.sleep(0.05)
                return sent

            producing = asyncio.ensure_future(produce())
            deaths = []
            for victim in members[:2]:

                async def committed_some(victim: MemberProcess = victim) -> bool:
                    offsets = await committed()
                    return any(offset < offsets.get(partition, 0) for partition, offset in victim.handled())

                await until(committed_some)
                victim.kill()
                kept = await committed()
                deaths.append((kept, [len(member.handled()) for member in members]))
            await until(lambda: len(members[2].handled()) > 0)
            enough.set()
            sent = await producing
            await until(lambda: _union(members) == sent)
            ends = await admin.latest_offsets(topic)

            async def all_committed() -> bool:
                return await committed() == ends

            await until(all_committed)
            every = {place for member in members for place in member.handled()}
            assert every == {(partition, offset) for partition, end in ends.items() for offset in range(end)}
            for kept, handled_before in deaths:
                for member, count in zip(members, handled_before, strict=True):
                    again = [
                        (partition, offset)
                        for partition, offset in member.handled()[count:]
                        if offset < kept.get(partition, 0)
                    ]
                    assert not again, "only what was not committed comes again"
            for member in members:
                for partition in ends:
                    seen = [offset for place, offset in member.handled() if place == partition]
                    assert seen == sorted(set(seen))
        finally:
            for member in members:
                member.kill()
            await admin.close()

    run(scene)


def _union(members: list[MemberProcess]) -> int:
    return len({place for member in members for place in member.handled()})


def test_a_member_that_cannot_know_stops_handing_out(cluster: Cluster, topic: str) -> None:
    """All nodes stand still: when the session may be over, the next record is not handed out, although it is there."""

    async def scene() -> None:
        async with (
            Producer(addresses(cluster)) as producer,
            Worker(cluster, topic, "lapsed") as worker,
        ):
            await until(lambda: len(worker.owned()) == PARTITIONS)
            await producer.send_many(topic, [b"x"], partition=1)
            await until(lambda: len(worker.handled) == 1)
            worker.hold.clear()
            await producer.send_many(topic, [b"x"] * 100, partition=1)
            await until(lambda: worker.consumer.position(topic, 1) == 2)
            pids = [node.process.pid for node in cluster.nodes if node.process is not None]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                await until(lambda: worker.consumer._feed.suspended)
                worker.hold.set()
                await until(lambda: len(worker.handled) == 2)  # the one that was in hand
                for _ in range(100):
                    await asyncio.sleep(0)
                assert len(worker.handled) == 2
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await until(lambda: set(worker.handled) == {(1, offset) for offset in range(101)})

    run(scene)
    cluster.wait_ready()


def test_more_members_than_partitions_leave_some_idle(cluster: Cluster, topic: str) -> None:
    async def scene() -> None:
        workers = [Worker(cluster, topic, "many") for _ in range(PARTITIONS + 1)]
        async with Admin(addresses(cluster)) as admin:
            for worker in workers:
                await worker.__aenter__()

            async def one_is_idle() -> bool:
                members = (await admin.groups.describe(["many"]))[0].members
                return len(members) == len(workers) and sum(not member.partitions for member in members) == 1

            await until(lambda: sum(len(worker.owned()) for worker in workers) == PARTITIONS)
            await until(one_is_idle)
            assert sum(len(worker.owned()) for worker in workers) == PARTITIONS
            for worker in workers:
                await worker.stop()

    run(scene)
