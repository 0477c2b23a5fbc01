"""The library for threads: every call returns, whichever thread closes what it uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fluxlog import Assigned, ConsumerEvent, FluxlogError, Outcome
from fluxlog.sync import Consumer, Producer
from tests.unit.fluxlog_fake import FakeCluster, Fault
from tests.unit.fluxlog_fake_groups import partition_of

THREADS = 150
"""More than there are turns of the loop in closing."""


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    fake.create("t", 1)
    yield fake
    fake.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    """Until it holds, for 20 s at most."""
    pause, end = threading.Event(), time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.01)


def test_closing_in_one_thread_answers_the_sends_of_all_others(cluster: FakeCluster) -> None:
    """They wait for room, and are told one after the other; the event loop does not end before the last of them."""
    cluster.faults[0].extend([Fault.DISK_FULL] * 1_000)
    outcomes: list[Outcome] = []

    def send(producer: Producer) -> None:
        try:
            producer.send("t", bytes(900))
        except FluxlogError as failure:
            outcomes.append(failure.outcome)

    with pytest.raises(KeyboardInterrupt), Producer(cluster.addresses[1], buffer_bytes=2_000) as producer:
        threads = [threading.Thread(target=send, args=(producer,), daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(producer._inner._room._waiting) == THREADS - 2)
        raise KeyboardInterrupt  # ends without a flush
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == THREADS
    assert set(outcomes) <= {Outcome.REJECTED, Outcome.UNKNOWN}


def test_what_is_used_after_it_was_closed_says_so(cluster: FakeCluster) -> None:
    with Producer(cluster.addresses[1]) as producer:
        assert producer.send("t", b"x").offset == 0
    with pytest.raises(FluxlogError, match="closed") as failure:
        producer.send("t", b"y")
    assert failure.value.outcome is Outcome.REJECTED
    with Producer(cluster.addresses[1]), pytest.raises(FluxlogError, match="closed"):
        producer.send("t", b"z")


def test_a_handler_of_events_that_calls_is_told_that_it_cannot(cluster: FakeCluster) -> None:
    """It runs on the thread that would have to answer. The consumer goes on."""
    told: list[FluxlogError] = []

    def handle(event: ConsumerEvent) -> None:
        if isinstance(event, Assigned):
            for call in (consumer.commit, lambda: consumer.seek("t", 0, 0), Producer(cluster.addresses[1]).__enter__):
                try:
                    call()
                except FluxlogError as failure:
                    told.append(failure)

    cluster.coordinator.assign(partition_of("t"), committed=0)
    with Producer(cluster.addresses[1]) as producer:
        producer.send("t", b"x")
    with Consumer(cluster.addresses[1], "t", group="g", on_event=handle) as consumer:
        assert next(iter(consumer)).value == b"x"
    assert [failure.reason for failure in told] == ["WRONG_THREAD"] * 3


def test_sending_what_a_consumer_reads_as_it_is_read_says_that_it_cannot(cluster: FakeCluster) -> None:
    cluster.create("out", 1)
    with Producer(cluster.addresses[1]) as producer, Consumer(cluster.addresses[1], "t", start=0) as consumer:
        producer.send_many("t", [b"1", b"2"])
        with pytest.raises(FluxlogError, match="own background thread") as failure:
            producer.send_many("out", (record.value for record in consumer))
        assert failure.value.reason == "WRONG_THREAD"
        assert cluster.topics["out"][0].values == []
        producer.send_many("out", [record.value for record in next(consumer.batches())])
    assert cluster.topics["out"][0].values == [b"1", b"2"]
