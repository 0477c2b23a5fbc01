"""One ProduceStream: what is appended at once, what waits, and that neither overtakes the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fluxd.broker.admission import Admission
from fluxd.broker.forward import ProduceAnswer
from fluxd.broker.produce import ProduceCall, Producing
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import Offset, Term
from fluxd.raft.proposal import Append, Committed
from fluxd.rpc.produce_stream import ProduceStream
from fluxlog.framing import answers_of
from fluxlog.v1 import log_pb2
from tests.unit.broker_fakes import Clock
from tests.unit.broker_lone import batch, lone, produce_call


def _request(number: int, topic: str = "solo", values: int = 1) -> bytes:
    """An encoded ProduceStreamRequest."""
    request = log_pb2.ProduceRequest.FromString(log_pb2.ProduceRequest(topic=topic).SerializeToString())
    request.batch.ParseFromString(batch([b"v"] * values))
    return log_pb2.ProduceStreamRequest(correlation_id=number, request=request).SerializeToString()


async def _requests(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def _collect(stream: ProduceStream, requests: AsyncIterator[bytes]) -> list[log_pb2.ProduceStreamResponse]:
    async with asyncio.timeout(20):
        return [log_pb2.ProduceStreamResponse.FromString(data) async for data in stream.serve(requests)]


def test_all_are_answered_before_the_stream_ends(tmp_path: Path) -> None:
    """Offsets are in the order of the requests; an unknown topic, and bytes that are none, cost their request only."""

    async def run() -> None:
        async with lone(tmp_path) as node:
            stream = ProduceStream(lambda: node.producing, "client", forwarded=False)
            broken = log_pb2.ProduceStreamRequest(correlation_id=9).SerializeToString() + b"\x12\x01\xff"
            requests = _requests(_request(1, values=2), broken, _request(2), _request(3, "nothing"), _request(4))
            answers = {answer.correlation_id: answer for answer in await _collect(stream, requests)}
            assert [answers[number].committed.base_offset for number in (1, 2, 4)] == [0, 2, 3]
            assert answers[3].error.reason == Reason.UNKNOWN_TOPIC.value
            assert answers[9].error.reason == Reason.INVALID_ARGUMENT.value
            assert len(answers) == 5
            assert node.admission.bytes_admitted == 0

    asyncio.run(run())


def test_answers_that_wait_together_leave_together_where_the_client_reads_them() -> None:
    """One message for all that were there when it was made, each answer once, at most 256; from the request on that
    says so."""

    async def run() -> None:
        late: list[Callable[[ProduceAnswer], None]] = []

        def start(_: ProduceCall, answered: Callable[[ProduceAnswer], None]) -> bool:
            late.append(answered)
            return True

        async def requests(count: int, *, accepts_more: bool) -> AsyncIterator[bytes]:
            for number in range(count):
                said = accepts_more and number == 1
                yield log_pb2.ProduceStreamRequest(correlation_id=number, accepts_more=said).SerializeToString()
            for answered in late:
                answered(log_pb2.ProduceResponse(base_offset=7))
            late.clear()

        async def numbers(count: int, *, accepts_more: bool = False) -> list[list[int]]:
            producing = cast(Producing, SimpleNamespace(start=start))
            stream = ProduceStream(lambda: producing, "client", forwarded=False)
            messages = await _collect(stream, requests(count, accepts_more=accepts_more))
            assert not any(answer.more for message in messages for answer in message.more)
            return [[answer.correlation_id for answer in answers_of(message)] for message in messages]

        assert await numbers(3) == [[0], [1], [2]]
        assert await numbers(3, accepts_more=True) == [[0, 1, 2]]
        assert await numbers(300, accepts_more=True) == [list(range(256)), list(range(256, 300))]

    asyncio.run(run())


class _Election:
    """Serves topic "a" at once, and any other when its leader is there."""

    def __init__(self) -> None:
        self.elected = asyncio.Event()
        self.order: list[tuple[str, int]] = []

    def start(self, call: ProduceCall, answered: Callable[[ProduceAnswer], None]) -> bool:
        """As `Producing.start`."""
        if call.topic != "a" and not self.elected.is_set():
            return False
        self.order.append((call.topic, call.base_sequence))
        answered(log_pb2.ProduceResponse(base_offset=len(self.order)))
        return True

    async def produce(self, call: ProduceCall, turn: Any) -> log_pb2.ProduceResponse:
        """As `Producing.produce`."""
        async with turn:
            await self.elected.wait()
            self.order.append((call.topic, call.base_sequence))
            await asyncio.sleep(0)
        return log_pb2.ProduceResponse(base_offset=len(self.order))


def test_nothing_overtakes_what_waits_for_a_leader() -> None:
    """Requests of a partition stay in order when its leader is known in the middle of them; others go on meanwhile,
    and once none waits the partition is served at once again."""

    async def run() -> None:
        producing = _Election()

        def numbered(topic: str, sequence: int) -> bytes:
            request = log_pb2.ProduceRequest(topic=topic, base_sequence=sequence)
            return log_pb2.ProduceStreamRequest(correlation_id=sequence, request=request).SerializeToString()

        async def requests() -> AsyncIterator[bytes]:
            yield numbered("b", 1)
            yield numbered("b", 2)
            yield numbered("a", 3)
            await asyncio.sleep(0)
            producing.elected.set()
            yield numbered("b", 4)
            for _ in range(10):
                await asyncio.sleep(0)
            yield numbered("b", 5)
            assert producing.order[-1] == ("b", 5), "served as it was read"

        stream = ProduceStream(lambda: cast(Producing, producing), "client", forwarded=False)
        answers = await _collect(stream, requests())
        assert sorted(answer.correlation_id for answer in answers) == [1, 2, 3, 4, 5]
        assert [sequence for topic, sequence in producing.order if topic == "b"] == [1, 2, 4, 5]
        assert producing.order[0] == ("a", 3)

    asyncio.run(run())


def test_what_cannot_be_read_does_not_cut_off_what_was_read() -> None:
    """The stream's end says that something was rejected: by then everything before it has its own answer."""

    async def run() -> None:
        producing = _Election()

        async def requests() -> AsyncIterator[bytes]:
            yield _request(1, "b")
            yield b"\xff\xff"
            raise AssertionError("nothing is read behind it")

        answers: list[log_pb2.ProduceStreamResponse] = []
        stream = ProduceStream(lambda: cast(Producing, producing), "client", forwarded=False)
        asyncio.get_running_loop().call_later(0.01, producing.elected.set)
        with pytest.raises(FluxError) as caught:
            async for message in stream.serve(requests()):
                answers.append(log_pb2.ProduceStreamResponse.FromString(message))
        assert caught.value.reason is Reason.INVALID_ARGUMENT
        assert [answer.correlation_id for answer in answers] == [1]
        assert answers[0].HasField("committed")

    asyncio.run(run())


def test_a_commit_that_does_not_come_is_a_timeout() -> None:
    """UNKNOWN when the call's timeout is over; the commit that comes later is not told, but frees its place."""
    clock, admission = Clock(), Admission()
    submitted: list[Append] = []
    answers: list[ProduceAnswer] = []
    route = SimpleNamespace(name="t-0")
    routes = SimpleNamespace(
        watch_leaders=lambda _: None,
        led_here=lambda *_: (route, SimpleNamespace(submit=submitted.append)),
        named=lambda error, _: error,
        own_hint=lambda _: log_pb2.LeaderHint(),
    )
    producing = Producing(clock.reactor, cast(Any, routes), cast(Any, None), admission)
    assert producing.start(produce_call("t", batch([b"v"]), timeout_ms=500), answers.append)
    clock.advance(0.49)
    assert not answers
    clock.advance(0.02)
    (answer,) = answers
    assert isinstance(answer, FluxError)
    assert answer.reason is Reason.TIMEOUT
    assert admission.bytes_admitted > 0
    submitted[0].done(Committed(Offset(0), 1, Term(1), 2))
    assert (len(answers), admission.bytes_admitted) == (1, 0)
