"""Partitions that have lost their leader: their batches go out when a node tells the new one, or else after a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import pytest

from fluxlog import Producer
from fluxlog.delivery import Batch, PartitionQueue
from fluxlog.errors import FluxlogError
from fluxlog.pipeline import Pipeline
from tests.unit.fluxlog_fake import FakeCluster

DEADLINE_S = 20.0
PAUSE_S = 0.25


class Addresses:
    """Three nodes."""

    order = ("a:1", "b:1", "c:1")

    def remember(self, addresses: Iterable[str]) -> None:
        """They are all known."""
        assert set(addresses) <= set(self.order)

    def next_address(self, failed: str) -> str:
        """Round robin."""
        return self.order[(self.order.index(failed) + 1) % len(self.order)]


class FakeStream:
    """Notes to whom something was sent."""

    def __init__(self, address: str, sent: list[str]) -> None:
        self.address, self._sent = address, sent

    def send(self, correlation_id: int, request: bytes) -> None:
        """Queue one."""
        self._sent.append(self.address)

    def cancel(self) -> None:
        """Nothing runs."""


class Scene:
    """A pipeline with one batch whose leader, node a, has just broken the stream."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[str] = []
        self.streams: list[FakeStream] = []
        self.pipeline = Pipeline(
            Addresses(), self._open, on_result=lambda batch: None, on_retry=None, clock=lambda: self.now
        )
        self.pipeline.poll_pause = PAUSE_S
        self.queue: PartitionQueue = self.pipeline.partition("t", 3, target="a:1")
        self.pipeline.add(self.queue, Batch([b"x"], None, None, 1, self.now))
        self.pipeline.advance()
        self.break_stream()

    def _open(self, address: str) -> FakeStream:
        self.streams.append(FakeStream(address, self.sent))
        return self.streams[-1]

    def break_stream(self) -> None:
        """The last stream that was opened breaks."""
        self.pipeline.take_broken(self.streams[-1], FluxlogError("UNAVAILABLE", "broken", retriable=True))
        self.pipeline.advance()

    def pass_time(self, seconds: float) -> None:
        """And do what is due."""
        self.now += seconds
        self.pipeline.advance()

    def tell(self, address: str, epoch: int) -> None:
        """A node says who leads."""
        self.pipeline.leader_told("t", 3, address=address, epoch=epoch)
        self.pipeline.advance()


def test_what_waits_for_its_leader_goes_out_when_it_is_told() -> None:
    """At once, and to that node."""
    scene = Scene()
    assert scene.pipeline.leaderless(10) == [scene.queue]
    scene.tell("c:1", 5)
    assert scene.sent == ["a:1", "c:1"]
    assert scene.pipeline.leaderless(10) == []


def test_without_a_word_other_nodes_are_tried_after_the_pause() -> None:
    """Not before; and the one that did not answer is not among them."""
    scene = Scene()
    scene.pass_time(PAUSE_S / 2)
    assert scene.sent == ["a:1"]
    scene.pass_time(PAUSE_S / 2)
    assert scene.sent == ["a:1", "b:1"]
    assert scene.pipeline.leaderless(10) == [], "the node that has it waits for the same news"


def test_old_news_is_no_leader() -> None:
    """What is told once and turns out to be wrong is not believed again; a later epoch is."""
    scene = Scene()
    scene.tell("b:1", 5)
    scene.break_stream()
    assert scene.pipeline.leaderless(10) == [scene.queue]
    scene.tell("b:1", 5)
    scene.tell("c:1", 4)
    assert scene.sent == ["a:1", "b:1"]
    scene.tell("c:1", 6)
    assert scene.sent == ["a:1", "b:1", "c:1"]


def test_where_nobody_tells_what_waits_goes_on_as_ever() -> None:
    """At once, and from then on with the usual pauses."""
    scene = Scene()
    scene.pipeline.nobody_tells()
    scene.pipeline.advance()
    assert scene.sent == ["a:1", "b:1"]
    scene.break_stream()
    scene.pass_time(PAUSE_S / 2)
    assert scene.sent == ["a:1", "b:1", "c:1"], "node a, which did not answer before, was tried by nobody since"


def test_what_is_in_flight_stays_where_it_is() -> None:
    """A batch that is sent elsewhere meanwhile could overtake it."""
    scene = Scene()
    scene.pass_time(PAUSE_S)
    assert scene.sent == ["a:1", "b:1"]
    scene.tell("c:1", 5)
    assert scene.sent == ["a:1", "b:1"]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster(3)
    fake.create("t", 4)
    yield fake
    fake.stop()


@pytest.mark.parametrize("tells", [True, False], ids=["told", "an older version"])
def test_a_producer_goes_on_with_the_new_leader(cluster: FakeCluster, tells: bool) -> None:
    """Whether the nodes tell it or do not know the call; each record is written once."""
    cluster.tells_leaders = tells

    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S), Producer(list(cluster.addresses.values())) as producer:
            for number in range(4):
                await producer.send("t", b"before", partition=number)
            await asyncio.to_thread(cluster.kill, 1)
            await asyncio.gather(*[producer.send("t", b"after", partition=number) for number in range(4)])

    asyncio.run(run())
    assert [partition.values for partition in cluster.topics["t"]] == [[b"before", b"after"]] * 4
    assert (cluster.awaited > 0) == tells
