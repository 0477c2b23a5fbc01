"""Partitions that have lost their leader: their batches go out when a node tells the new one, or else after a pause."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from fluxlog import Consumer, Producer
from fluxlog import reader as reading
from fluxlog.aio import following
from fluxlog.client import Client
from fluxlog.delivery import Batch, BatchResult, PartitionQueue
from fluxlog.errors import FluxlogError, LocalError, Outcome
from fluxlog.leader_search import LeaderSearch
from fluxlog.lost_leaders import LostLeader, LostLeaders
from fluxlog.pipeline import Pipeline
from fluxlog.reader import Reader
from fluxlog.sender import Sender
from fluxlog.v1 import admin_pb2
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
            Addresses(), self._open, on_result=lambda batch: None, on_retry=None, clock=lambda: self.now,
            backoff_max=PAUSE_S,
        )  # fmt: skip
        self.pipeline.somebody_tells()
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


# ---- whom to ask


def search(scene: Scene) -> LeaderSearch:
    """For what has lost node a."""
    return LeaderSearch(scene.pipeline, lambda: list(Addresses.order), lambda: scene.now)


def test_who_did_not_answer_lately_is_asked_last_and_one_at_a_time() -> None:
    """The others hear the same question when one fails; what is told ends it."""
    scene = Scene()
    asked = search(scene)
    order = []
    while (question := asked.next()) is not None:
        assert [(each.topic, each.partition) for each in question.request.partitions] == [("t", 3)]
        assert asked.next() is None, "one call is under way"
        order.append(question.address)
        if question.address == "a:1":
            leader = admin_pb2.KnownLeader(topic="t", partition=3, node_id=3, address="c:1", leader_epoch=5)
            asked.take_answer(admin_pb2.AwaitLeadersResponse(leaders=[leader]))
            scene.pipeline.advance()
        else:
            asked.take_failure(FluxlogError("UNAVAILABLE", "not there", retriable=True))
    assert order == ["b:1", "c:1", "a:1"]
    assert scene.sent == ["a:1", "c:1"]


@pytest.mark.parametrize(("reason", "pause_s"), [("UNAVAILABLE", 1.0), ("UNIMPLEMENTED", 60.0)])
def test_nodes_that_cannot_tell_are_left_alone_for_a_while(reason: str, pause_s: float) -> None:
    """Those that do not know the call, for longer."""
    scene = Scene()
    asked = search(scene)
    for _ in Addresses.order:
        assert asked.next() is not None
        asked.take_failure(FluxlogError(reason, "no"))
    scene.pipeline.advance()
    assert scene.sent == ["a:1", "b:1"], "as if nobody had been asked"
    scene.break_stream()
    scene.now += pause_s * 0.9
    assert asked.next() is None
    scene.now += pause_s * 0.2
    assert asked.next() is not None


def test_a_node_that_knows_nothing_is_not_asked_without_end() -> None:
    """One that answers at once, since it does not know the topic."""
    scene = Scene()
    asked = search(scene)
    assert asked.next() is not None
    asked.take_answer(admin_pb2.AwaitLeadersResponse())
    assert asked.next() is None
    scene.now += 0.2
    assert asked.next() is not None


# ---- with nodes


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


class Sending:
    """A Sender that is used, and what it reported."""

    def __init__(self, cluster: FakeCluster, *, backoff_max: float) -> None:
        self.results: list[BatchResult] = []
        self.retried = threading.Event()
        self.client = Client(list(cluster.addresses.values()))
        self.sender = Sender(
            self.client, "t", on_result=self.results.append, on_retry=lambda retry: self.retried.set(),
            backoff_max=backoff_max,
        )  # fmt: skip

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.close()
        self.client.close()

    def send(self, value: bytes) -> None:
        """To each of the four partitions."""
        for number in range(4):
            self.sender.send(number, [value])


@pytest.mark.parametrize("tells", [True, False], ids=["told", "an older version"])
def test_a_sender_goes_on_with_the_new_leader(cluster: FakeCluster, tells: bool) -> None:
    """As the producer does, and without a thread more."""
    cluster.tells_leaders = tells
    with Sending(cluster, backoff_max=PAUSE_S) as sending:
        sending.send(b"before")
        assert sending.sender.flush(DEADLINE_S)
        cluster.kill(1)
        sending.send(b"after")
        assert sending.sender.flush(DEADLINE_S)
        assert {result.outcome for result in sending.results} == {Outcome.COMMITTED}
    assert [partition.values for partition in cluster.topics["t"]] == [[b"before", b"after"]] * 4
    assert (cluster.awaited > 0) == tells


def test_a_sender_waits_for_the_news_instead_of_trying(cluster: FakeCluster) -> None:
    """One call for all partitions is open; when it is answered each batch goes out once, however long the pause."""
    with Sending(cluster, backoff_max=10 * DEADLINE_S) as sending:
        sending.send(b"before")
        assert sending.sender.flush(DEADLINE_S)
        written = cluster.produced
        cluster.elected.clear()
        cluster.kill(1)
        sending.send(b"after")
        assert sending.retried.wait(DEADLINE_S)
        assert cluster.produced == written
        cluster.elected.set()
        assert sending.sender.flush(DEADLINE_S)
        assert cluster.produced == written + 4


def test_a_sender_is_closed_while_it_waits_for_the_news(cluster: FakeCluster) -> None:
    """Every batch has its outcome, and nothing is left running."""
    with Sending(cluster, backoff_max=10 * DEADLINE_S) as sending:
        sending.send(b"before")
        assert sending.sender.flush(DEADLINE_S)
        cluster.elected.clear()
        cluster.kill(1)
        sending.send(b"after")
        assert sending.retried.wait(DEADLINE_S)
    assert [result.outcome is Outcome.COMMITTED for result in sending.results] == [True] * 4 + [False] * 4
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("sender")]


def test_a_call_that_is_cancelled_says_so(cluster: FakeCluster) -> None:
    """Once; and none is begun on a client that is closed."""
    ends: list[object] = []
    ended = threading.Event()

    def end(outcome: object) -> None:
        ends.append(outcome)
        ended.set()

    client = Client(list(cluster.addresses.values()))
    cluster.elected.clear()
    request = admin_pb2.AwaitLeadersRequest(max_wait_ms=5_000)
    call = client.start_call(
        cluster.addresses[2], lambda node: node.admin.AwaitLeaders, request, timeout=DEADLINE_S, on_end=end
    )
    call.cancel()
    assert ended.wait(DEADLINE_S)
    assert [type(each) for each in ends] == [LocalError]
    client.close()
    with pytest.raises(LocalError):
        client.start_call(
            cluster.addresses[2], lambda node: node.admin.AwaitLeaders, request, timeout=DEADLINE_S, on_end=end
        )
    cluster.elected.set()


# ---- readers


def test_a_reader_is_told_each_leader_once() -> None:
    """And none that it knew: it would go there again and again."""
    told: list[str] = []
    waiting, lost = LostLeaders(), LostLeader("t", 3, told.append)
    lost.note(4)
    waiting.leader_told("t", 3, address="a:1", epoch=9)
    assert told == [], "it does not wait"
    waiting.add(lost)
    assert waiting.leaderless(10) == [lost]
    waiting.leader_told("t", 3, address="a:1", epoch=4)
    waiting.leader_told("t", 2, address="a:1", epoch=9)
    waiting.leader_told("t", 3, address="", epoch=9)
    assert told == []
    waiting.leader_told("t", 3, address="b:1", epoch=5)
    assert (told, waiting.leaderless(10)) == (["b:1"], [])
    waiting.add(lost)
    waiting.leader_told("t", 3, address="b:1", epoch=5)
    assert told == ["b:1"]


def test_who_waits_no_longer_takes_nobody_elses_place() -> None:
    """A partition that is read anew waits for itself."""
    waiting, old, new = LostLeaders(), LostLeader("t", 3), LostLeader("t", 3)
    waiting.add(old)
    waiting.add(new)
    waiting.discard(old)
    assert waiting.leaderless(10) == [new]


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A node that serves nothing, since there is no leader; clients whose pauses never end."""
    for module in (reading, following):
        monkeypatch.setattr(module, "_BACKOFF_MIN", 10 * DEADLINE_S)
        monkeypatch.setattr(module, "_BACKOFF_MAX", 10 * DEADLINE_S)
    fake = FakeCluster(1)
    fake.create("t", 3)
    fake.reads_need_leader = True
    fake.elected.clear()
    yield fake
    fake.elected.set()
    fake.stop()


def test_a_reader_that_nobody_serves_waits_for_the_news(unserved: FakeCluster) -> None:
    """One call for all partitions; each is asked for once more, when there is a leader."""
    with Client(list(unserved.addresses.values())) as client:
        with Reader(client, "t", dict.fromkeys(range(3), 0)) as reader:
            asked, give_up_at = 0, time.monotonic() + DEADLINE_S
            while asked < 3:
                assert reader.poll(0.1) is None
                assert time.monotonic() < give_up_at
                while not unserved.asked.empty():
                    asked = unserved.asked.get()
            unserved.elected.set()
            served: set[int] = set()
            while len(served) < 3:
                answer = reader.poll(DEADLINE_S)
                assert answer is not None
                served.add(answer.partition)
        assert unserved.refused == 3


async def nobody_serves(cluster: FakeCluster) -> None:
    """Until one call waits for all three partitions."""
    while await asyncio.to_thread(cluster.asked.get, timeout=DEADLINE_S) < 3:
        pass


def test_a_consumer_that_nobody_serves_waits_for_the_news(unserved: FakeCluster) -> None:
    """One call for all partitions; each is followed anew once, when there is a leader."""

    async def run() -> None:
        addresses = list(unserved.addresses.values())
        async with (
            asyncio.timeout(DEADLINE_S),
            Producer(addresses) as producer,
            Consumer(addresses, "t", start=0) as consumer,
        ):
            for number in range(3):
                await producer.send("t", b"%d" % number, partition=number)
            await nobody_serves(unserved)
            unserved.elected.set()
            records = aiter(consumer)
            assert {(await anext(records)).value for _ in range(3)} == {b"0", b"1", b"2"}
        assert (unserved.refused, len(unserved.following)) == (3, 6)

    asyncio.run(run())


def test_a_consumer_is_closed_while_it_waits_for_the_news(unserved: FakeCluster) -> None:
    """Nothing is left running."""

    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            async with Consumer(list(unserved.addresses.values()), "t", start=0):
                await nobody_serves(unserved)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
