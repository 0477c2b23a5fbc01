"""AwaitLeaders: answered when the leaders that were asked for are known here, and not with those that were lost."""

from __future__ import annotations

import asyncio

import pytest

from fluxd.broker.leader_waiting import LeaderWaiting
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import GroupId
from fluxlog.v1 import admin_pb2
from tests.unit.broker_fakes import Cluster, leads, partition

DEADLINE_S = 20.0
LONG_MS = limits.LEADER_WAIT_MS_MAX


class Scene:
    """Node 1, which has no replica of three partitions of "orders"."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.topic_id = self.cluster.topic("orders", *[partition(2, 3)] * 3)
        self.waiting = LeaderWaiting(self.cluster.view)

    def tell(self, node: int, **epochs: int) -> None:
        """A node leads partitions p0, p1, …, each with an epoch."""
        self.cluster.tell(
            node, *[leads(GroupId(self.topic_id, int(name[1:])), epoch) for name, epoch in epochs.items()]
        )

    def request(self, *asked: tuple[int, int], max_wait_ms: int = LONG_MS) -> admin_pb2.AwaitLeadersRequest:
        """Of partitions, each with the epoch that was lost."""
        return admin_pb2.AwaitLeadersRequest(
            partitions=[
                admin_pb2.AwaitedLeader(topic="orders", partition=number, after_epoch=epoch) for number, epoch in asked
            ],
            max_wait_ms=max_wait_ms,
        )

    async def ask(self, request: admin_pb2.AwaitLeadersRequest) -> set[tuple[int, int, str, int]]:
        """Partition, node, address and epoch of each that is told."""
        async with asyncio.timeout(DEADLINE_S):
            answer = await self.waiting.wait(request)
        assert {leader.topic for leader in answer.leaders} <= {"orders"}
        return {(leader.partition, leader.node_id, leader.address, leader.leader_epoch) for leader in answer.leaders}


def test_what_is_known_is_told_at_once() -> None:
    """Of all that were asked for."""
    scene = Scene()
    scene.tell(2, p0=5, p1=6)
    assert asyncio.run(scene.ask(scene.request((0, 0), (1, 5), max_wait_ms=0))) == {
        (0, 2, "host2:7000", 5),
        (1, 2, "host2:7000", 6),
    }


def test_the_leader_that_was_lost_is_not_told() -> None:
    """Nor an earlier one."""
    scene = Scene()
    scene.tell(2, p0=5)
    assert asyncio.run(scene.ask(scene.request((0, 5), (1, 0), max_wait_ms=0))) == set()


def test_who_waits_is_told_when_all_have_a_leader() -> None:
    """However long that would be waited for."""

    async def run() -> None:
        scene = Scene()
        scene.tell(2, p0=5, p1=5)
        task = asyncio.ensure_future(scene.ask(scene.request((0, 5), (1, 5))))
        await asyncio.sleep(0)
        assert not task.done()
        scene.tell(3, p0=6, p1=7)
        assert await task == {(0, 3, "host3:7000", 6), (1, 3, "host3:7000", 7)}

    asyncio.run(run())


def test_who_waits_for_many_is_told_of_those_that_are_known() -> None:
    """The others are asked for again."""

    async def run() -> None:
        scene = Scene()
        task = asyncio.ensure_future(scene.ask(scene.request((0, 0), (1, 0), (2, 0))))
        await asyncio.sleep(0)
        scene.tell(3, p1=6)
        assert await task == {(1, 3, "host3:7000", 6)}

    asyncio.run(run())


def test_the_time_is_bounded() -> None:
    """And nobody is left waiting behind it."""
    scene = Scene()
    assert asyncio.run(scene.ask(scene.request((0, 0), max_wait_ms=1))) == set()
    assert scene.cluster.view._watchers_of == {}


def test_what_the_node_does_not_know_is_not_waited_for() -> None:
    """A topic, and a partition that a topic does not have."""
    scene = Scene()
    request = scene.request((99, 0))
    request.partitions.add(topic="unknown", partition=0)
    assert asyncio.run(scene.ask(request)) == set()


@pytest.mark.parametrize(("partitions", "max_wait_ms"), [(limits.AWAITED_LEADERS_MAX + 1, 0), (1, LONG_MS + 1)])
def test_bounds(partitions: int, max_wait_ms: int) -> None:
    """Both are refused."""
    scene = Scene()
    request = scene.request(*[(0, 0)] * partitions, max_wait_ms=max_wait_ms)
    with pytest.raises(FluxError) as failure:
        asyncio.run(scene.ask(request))
    assert failure.value.reason is Reason.INVALID_ARGUMENT


def test_calls_that_wait_are_bounded() -> None:
    """One above the bound is refused, with a time to wait; what does not wait is answered."""

    async def run() -> None:
        scene = Scene()
        tasks = [asyncio.ensure_future(scene.ask(scene.request((0, 0)))) for _ in range(limits.LEADER_WAITS_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(FluxError) as failure:
            await scene.ask(scene.request((0, 0)))
        assert failure.value.reason is Reason.OVERLOADED
        assert await scene.ask(scene.request((0, 0), max_wait_ms=0)) == set()
        scene.tell(2, p0=1)
        assert await asyncio.gather(*tasks) == [{(0, 2, "host2:7000", 1)}] * limits.LEADER_WAITS_MAX

    asyncio.run(run())
