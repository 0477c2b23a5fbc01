"""The rules by which batches get an outcome, without any node: every answer is given here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fluxlog.addresses import AddressBook
from fluxlog.delivery import Batch, BatchResult
from fluxlog.errors import Outcome
from fluxlog.pipeline import Pipeline
from fluxlog.v1 import log_pb2
from tests.unit.fluxlog_fake_partition import FakeError


class NotedStream:
    """Notes what it was to send."""

    address = "a:1"

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.cancelled = False

    def send(self, correlation_id: int, request: bytes) -> None:
        """Queue one."""
        self.sent.append(correlation_id)

    def cancel(self) -> None:
        """Nothing runs."""
        self.cancelled = True


class Refused:
    """A pipeline to one node, whose answers are given here, by a clock that stands still between them."""

    def __init__(self, batches: int) -> None:
        self.now, self.results, self.stream = 100.0, list[BatchResult](), NotedStream()
        self.pipeline = Pipeline(
            AddressBook([self.stream.address]), lambda _: self.stream, on_result=self._take, on_retry=None,
            clock=lambda: self.now,
        )  # fmt: skip
        self.queue = self.pipeline.partition("t", 0, target=self.stream.address, topic_id=b"a" * 16)
        for _ in range(batches):
            self.pipeline.add(self.queue, Batch([b"x"], None, None, 1, self.now))

    def _take(self, batch: Batch) -> None:
        assert batch.result is not None
        self.results.append(batch.result)

    def answer(self, error: FakeError) -> None:
        """Answer the oldest request of the present round, after what is left of earlier ones. Everything that can be
        sent is sent before, whenever that is."""
        in_round = False
        while not in_round:
            self.pipeline.advance()
            while not self.stream.sent:
                assert self.queue.batches, "all have their outcome"
                self.now = self.pipeline.deadline
                self.pipeline.advance()
            answer = log_pb2.ProduceStreamResponse(correlation_id=self.stream.sent.pop(0))
            pending = self.pipeline._pending[self.stream][answer.correlation_id]
            in_round = not pending.stale and pending.attempt == self.queue.attempt
            answer.error.CopyFrom(error.message())
            self.pipeline.take_answer(self.stream, answer)

    def refuse(self, error: FakeError, *, until: Callable[[], bool]) -> None:
        """Everything, until it is so."""
        for _ in range(10_000):
            if until():
                return
            self.answer(error)
        raise AssertionError("it never is")


@pytest.mark.parametrize("reason", ["UNKNOWN_TOPIC", "UNKNOWN_PARTITION", "TOPIC_ID_MISMATCH"])
def test_what_waits_for_a_topic_that_is_gone_is_doubted_once(reason: str) -> None:
    refused = Refused(batches=30)
    refused.refuse(FakeError(reason), until=lambda: len(refused.results) == 1)
    assert refused.now >= 104.0
    believed_at = refused.now
    refused.refuse(FakeError(reason), until=lambda: len(refused.results) == 30)
    assert refused.now == believed_at
    assert {result.outcome for result in refused.results} == {Outcome.REJECTED}
    assert all(result.error is not None and result.error.reason == reason for result in refused.results)


def test_the_doubt_of_a_topic_that_is_gone_is_not_that_of_other_failures() -> None:
    """The next batch meets one that passes, and after that it is doubted anew."""
    refused = Refused(batches=2)
    refused.refuse(FakeError("UNKNOWN_TOPIC"), until=lambda: len(refused.results) == 1)
    refused.answer(FakeError("NO_LEADER", retriable=True))
    again_at = refused.now
    refused.refuse(FakeError("UNKNOWN_TOPIC"), until=lambda: len(refused.results) == 2)
    assert refused.now >= again_at + 4.0


def test_the_doubt_of_a_topic_that_is_gone_is_not_that_of_another_one_of_its_name() -> None:
    refused = Refused(batches=2)
    refused.refuse(FakeError("TOPIC_ID_MISMATCH"), until=lambda: len(refused.results) == 1)
    refused.pipeline.partition("t", 0, target=refused.stream.address, topic_id=b"b" * 16)
    again_at = refused.now
    refused.refuse(FakeError("TOPIC_ID_MISMATCH"), until=lambda: len(refused.results) == 2)
    assert refused.now >= again_at + 4.0


def test_what_may_have_been_written_before_its_topic_was_gone_is_unknown() -> None:
    """Of those in flight; what was never sent is rejected, like what is surely not written."""
    refused = Refused(batches=20)
    refused.answer(FakeError("OUTCOME_UNKNOWN", outcome="UNKNOWN", retriable=True))
    refused.refuse(FakeError("UNKNOWN_TOPIC"), until=lambda: len(refused.results) == 20)
    outcomes = [result.outcome for result in refused.results]
    assert outcomes[0] is Outcome.UNKNOWN
    assert set(outcomes[-4:]) == {Outcome.REJECTED}


def test_a_node_that_never_knows_the_producer_is_not_asked_without_a_pause() -> None:
    """A new producer id is taken once; a node that refuses that, too, is tried again like others, and believed in the
    end."""
    now, outcomes, stream = 100.0, list[Outcome](), NotedStream()

    def take_result(batch: Batch) -> None:
        assert batch.result is not None
        outcomes.append(batch.result.outcome)

    pipeline = Pipeline(
        AddressBook([stream.address]), lambda _: stream, on_result=take_result, on_retry=None, clock=lambda: now
    )
    pipeline.add(pipeline.partition("t", 0, target=stream.address), Batch([b"x"], None, None, 1, now))
    pauses = answered = 0
    while not outcomes:
        pipeline.advance()
        if not stream.sent:
            pauses += 1
            now = pipeline.deadline
            continue
        answer = log_pb2.ProduceStreamResponse(correlation_id=stream.sent.pop())
        answer.error.CopyFrom(FakeError("UNKNOWN_PRODUCER").message())
        pipeline.take_answer(stream, answer)
        answered += 1
        assert answered < 1_000
    assert outcomes == [Outcome.REJECTED]
    assert now >= 104.0
    assert pauses > 10


def test_a_node_that_answers_others_is_not_taken_for_hung() -> None:
    """A slow link: the answers of one partition come one after the other, and another one waits for its first. When
    nothing comes any more, the node is hung."""
    now, stream, outcomes = 100.0, NotedStream(), list[Outcome]()

    def take_result(batch: Batch) -> None:
        assert batch.result is not None
        outcomes.append(batch.result.outcome)

    pipeline = Pipeline(
        AddressBook([stream.address]), lambda _: stream, on_result=take_result, on_retry=None, clock=lambda: now
    )
    for number in (0, 1, 1, 1, 1):
        pipeline.add(pipeline.partition("t", number, target=stream.address), Batch([b"x"], None, None, 1, now))
    pipeline.advance()
    for correlation_id in stream.sent[1:]:
        now += 4.0
        pipeline.advance()
        assert not stream.cancelled
        answer = log_pb2.ProduceStreamResponse(correlation_id=correlation_id)
        answer.committed.record_count = 1
        pipeline.take_answer(stream, answer)
        pipeline.advance()
    assert outcomes == [Outcome.COMMITTED] * 4
    assert pipeline.deadline <= now + 5.0
    now += 5.0
    pipeline.advance()
    assert stream.cancelled
