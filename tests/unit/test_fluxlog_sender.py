"""The sender: three outcomes, order and exactly once through what can happen to a connection."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from fluxlog.client import Client, Node
from fluxlog.delivery import BatchResult, Retry
from fluxlog.errors import FluxlogError, LocalError, Outcome
from fluxlog.sender import Sender
from fluxlog.stream import ProduceStream
from fluxlog.v1 import admin_pb2
from tests.unit.fluxlog_fake import FakeCluster, Fault
from tests.unit.fluxlog_fake_partition import FakePartition

START = Callable[..., "Run"]


class Run:
    """A sender on a fake cluster, and what it reported."""

    def __init__(self, cluster: FakeCluster, **options: object) -> None:
        self.cluster = cluster
        self.partitions: list[FakePartition] = cluster.create("t", 2)
        self.results: list[BatchResult] = []
        self.retries: list[Retry] = []
        self.retried = threading.Event()
        self.client = Client(list(cluster.addresses.values()))
        self.sender = Sender(
            self.client, "t", on_result=self.results.append, on_retry=self._note, backoff_max=0.02, **options  # type: ignore[arg-type]
        )  # fmt: skip

    def _note(self, retry: Retry) -> None:
        self.retries.append(retry)
        self.retried.set()

    def send_numbered(self, count: int, partition: int = 0) -> list[bytes | None]:
        sent: list[bytes | None] = []
        for number in range(count):
            values = [b"%d.%d" % (number, record) for record in range(3)]
            sent += values
            self.sender.send(partition, values, context=number)
        return sent

    def outcomes(self) -> list[Outcome]:
        return [result.outcome for result in self.results]

    def close(self) -> None:
        self.sender.close()
        self.client.close()


@pytest.fixture
def start() -> Iterator[START]:
    runs: list[Run] = []

    def make(nodes: int = 1, **options: object) -> Run:
        runs.append(Run(FakeCluster(nodes), **options))
        return runs[-1]

    yield make
    for run in runs:
        run.close()
        run.cluster.stop()


def test_acknowledged_batches_come_back_in_order_with_dense_offsets(start: START) -> None:
    run = start()
    sent = run.send_numbered(50)
    assert run.sender.flush(10)
    assert run.partitions[0].values == sent
    assert [result.context for result in run.results] == list(range(50))
    assert [result.base_offset for result in run.results] == list(range(0, 150, 3))
    assert set(run.outcomes()) == {Outcome.COMMITTED}


def test_one_message_answers_several_batches(start: START) -> None:
    """The library asks for it (`accepts_more`) and finds each batch's own answer."""
    run = start()
    run.cluster.answers_together = 2
    run.sender.send(0, [b"a"], context="a")
    run.sender.send(1, [b"b"], context="b")
    assert run.sender.flush(10)
    assert {result.context: result.base_offset for result in run.results} == {"a": 0, "b": 0}
    assert set(run.outcomes()) == {Outcome.COMMITTED}


@pytest.mark.parametrize(
    "fault",
    [
        Fault.NO_QUORUM,
        Fault.NO_LEADER,
        Fault.OUTCOME_UNKNOWN_WRITTEN,
        Fault.OUTCOME_UNKNOWN_NOT_WRITTEN,
        Fault.BREAK_BEFORE,
        Fault.BREAK_AFTER,
    ],
)
def test_what_passes_is_sent_again_and_written_once_in_order(start: START, fault: Fault) -> None:
    """With several batches in flight, whichever of them fails and however."""
    run = start()
    for position in (0, 1, 5):
        run.cluster.faults[0].extend([*[None] * position, fault])  # type: ignore[list-item]
        sent = run.send_numbered(20)
        assert run.sender.flush(10)
        assert run.partitions[0].values[-60:] == sent
    assert len(run.partitions[0].values) == 180
    assert set(run.outcomes()) == {Outcome.COMMITTED}
    assert run.retries, "a retry is visible"


def test_a_killed_node_is_left_for_another(start: START) -> None:
    run = start(nodes=3)
    first = run.send_numbered(20)
    assert run.sender.flush(10)
    run.cluster.kill(1)
    second = run.send_numbered(20)
    assert run.sender.flush(10)
    assert run.partitions[0].values == first + second
    assert run.retries[-1].next_address != run.cluster.addresses[1]


def test_no_quorum_until_the_delivery_timeout_is_rejected(start: START) -> None:
    """Every attempt was refused, so nothing was written; the reason is the server's."""
    run = start(delivery_timeout=0.3)
    run.cluster.faults[0].extend([Fault.NO_QUORUM] * 10_000)
    run.send_numbered(5)
    assert run.sender.flush(10)
    assert run.outcomes() == [Outcome.REJECTED] * 5
    assert run.results[0].error is not None
    assert run.results[0].error.reason == "NO_QUORUM"
    assert run.partitions[0].values == []


def test_one_unclear_attempt_makes_the_outcome_unknown(start: START) -> None:
    """A refusal after an unclear answer does not make it clear."""
    run = start(delivery_timeout=0.3)
    run.cluster.faults[0].extend([Fault.OUTCOME_UNKNOWN_NOT_WRITTEN, *[Fault.NO_QUORUM] * 10_000])
    run.send_numbered(1)
    assert run.sender.flush(10)
    assert run.outcomes() == [Outcome.UNKNOWN]


def test_batches_behind_a_refused_one_are_still_written(start: START) -> None:
    run = start()
    run.cluster.faults[0].extend([Fault.INVALID_ARGUMENT])
    sent = run.send_numbered(20)
    assert run.sender.flush(10)
    assert run.outcomes() == [Outcome.REJECTED, *[Outcome.COMMITTED] * 19]
    assert run.partitions[0].values == sent[3:]


def test_an_oversize_batch_is_refused_here_and_costs_no_sequence(start: START) -> None:
    run = start()
    run.sender.send(0, [b"a"])
    run.sender.send(0, [b"x" * 1_100_000])
    run.sender.send(0, [b"b"])
    assert run.sender.flush(10)
    assert run.outcomes() == [Outcome.COMMITTED, Outcome.REJECTED, Outcome.COMMITTED]
    assert run.results[1].error is not None
    assert run.results[1].error.reason == "BATCH_TOO_LARGE"
    assert run.partitions[0].values == [b"a", b"b"]


def test_an_unknown_topic_is_believed_when_it_is_repeated(start: START) -> None:
    run = start(delivery_timeout=0.5)
    run.cluster.topics.clear()
    run.send_numbered(1)
    assert run.sender.flush(10)
    assert run.outcomes() == [Outcome.REJECTED]
    assert run.results[0].error is not None
    assert run.results[0].error.reason == "UNKNOWN_TOPIC"


def test_one_partition_in_trouble_does_not_hold_up_another(start: START) -> None:
    run = start(delivery_timeout=60)
    run.cluster.faults[0].extend([Fault.NO_QUORUM] * 1_000_000)
    run.send_numbered(3, partition=0)
    run.retried.wait(10)
    sent = run.send_numbered(30, partition=1)
    done = threading.Event()
    while not done.wait(0.01):
        if len(run.partitions[1].values) == len(sent):
            done.set()
    assert run.partitions[1].values == sent
    assert run.partitions[0].values == []


def test_closing_gives_every_batch_an_outcome(start: START) -> None:
    """Refused so far: REJECTED. Sent, without an answer: UNKNOWN."""
    run = start(delivery_timeout=60)
    run.cluster.faults[0].extend([Fault.NO_QUORUM] * 1_000_000)
    run.send_numbered(40)
    run.retried.wait(10)
    run.sender.close()
    assert len(run.results) == 40
    assert set(run.outcomes()) <= {Outcome.REJECTED, Outcome.UNKNOWN}
    assert run.outcomes()[-1] is Outcome.REJECTED


def test_the_buffer_is_bounded(start: START) -> None:
    """send() waits for room instead of growing a heap."""
    run = start(buffer_bytes=1_000)
    sent = run.send_numbered(500)
    assert run.sender.flush(10)
    assert run.partitions[0].values == sent


def test_a_client_that_is_closed_first_ends_what_is_sent_after_it(start: START) -> None:
    """Surely not written; and the sender goes on to answer."""
    run = start()
    run.client.close()
    run.send_numbered(3)
    assert run.sender.flush(10)
    run.send_numbered(1)
    assert run.sender.flush(10)
    assert run.outcomes() == [Outcome.REJECTED] * 4


class LateQueue(queue.SimpleQueue[Callable[[], None]]):
    """Lets what the thread "late" puts in arrive only when the one that reads has found nothing more, while closing."""

    held, closing, released = threading.Event(), threading.Event(), threading.Event()

    def put(self, item: Callable[[], None], block: bool = True, timeout: float | None = None) -> None:
        if threading.current_thread().name == "late":
            self.held.set()
            assert self.released.wait(20)
        super().put(item)

    def get_nowait(self) -> Callable[[], None]:
        try:
            return super().get_nowait()
        except queue.Empty:
            if self.closing.is_set():
                self.released.set()
            raise


def test_what_is_sent_at_the_moment_of_closing_is_answered(start: START, monkeypatch: pytest.MonkeyPatch) -> None:
    for event in (LateQueue.held, LateQueue.closing, LateQueue.released):
        event.clear()
    monkeypatch.setattr("fluxlog.sender.queue", SimpleNamespace(SimpleQueue=LateQueue, Empty=queue.Empty))
    run = start()
    late = threading.Thread(target=run.send_numbered, args=(1,), name="late", daemon=True)
    late.start()
    assert LateQueue.held.wait(20)
    LateQueue.closing.set()
    run.sender.close()
    late.join(20)
    assert run.outcomes() == [Outcome.REJECTED]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_keeps_nobody_waiting(start: START) -> None:
    """The sender ends, and says so to whoever waits for it."""
    run = start()

    def fail(_: BatchResult) -> None:
        raise ValueError("the callback's own")

    sender = Sender(run.client, "t", on_result=fail, buffer_bytes=100)
    with pytest.raises(FluxlogError, match="closed"):
        for _ in range(100):
            sender.send(0, [bytes(60)])
    with pytest.raises(FluxlogError, match="closed"):
        sender.flush()
    sender.close()


def test_a_client_that_is_closed_just_before_a_stream_is_opened_breaks_that_stream(start: START) -> None:
    """Nothing was sent, and it is told at once."""
    run = start()
    node = run.client.node(run.cluster.addresses[1])

    def ping(request: admin_pb2.DescribeClusterRequest, timeout: float) -> object:
        answer = node.admin.DescribeCluster(request, timeout=timeout)
        run.client.close()
        return answer

    closing = SimpleNamespace(address=node.address, channel=node.channel, admin=SimpleNamespace(DescribeCluster=ping))
    broken: queue.SimpleQueue[FluxlogError] = queue.SimpleQueue()
    ProduceStream(cast(Node, closing), lambda *_: None, lambda _, failure: broken.put(failure))
    assert broken.get(timeout=20).outcome is Outcome.REJECTED


def test_a_call_on_a_client_that_is_closed_just_before_fails_with_an_error_of_the_librarys(start: START) -> None:
    run = start()

    def method(node: Node) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        run.client.close()
        return node.admin.DescribeCluster

    with pytest.raises(LocalError, match="closed") as failure:
        run.client.call_node(run.cluster.addresses[1], method, admin_pb2.DescribeClusterRequest())
    assert failure.value.reason == "CANCELLED"
