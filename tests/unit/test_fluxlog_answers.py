"""Every send is answered, with what became of it: through outages, closing, and what does not fit."""

from __future__ import annotations

import asyncio
import itertools
import socket
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from fluxlog import (
    BulkDeliveryError,
    Connection,
    Delivered,
    FluxlogError,
    Outcome,
    Producer,
    RejectedError,
)
from fluxlog.delivery import Retry
from fluxlog.errors import LocalError
from fluxlog.pipeline import IN_FLIGHT_MAX
from fluxlog.v1 import admin_pb2
from tests.unit import fluxlog_play
from tests.unit.fluxlog_fake import FakeCluster, Fault

SharedScene = Callable[[Producer, Connection], Awaitable[None]]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    fake.create("t", 2)
    yield fake
    fake.stop()


play = partial(fluxlog_play.play, known=["t"])


def play_shared(cluster: FakeCluster, scene: SharedScene, **options: Any) -> None:
    """The same, with a connection that is not the producer's own."""

    async def run() -> None:
        async with (
            asyncio.timeout(20),
            Connection(list(cluster.addresses.values())) as connection,
            Producer(connection, **options) as producer,
        ):
            await producer.prepare("t")
            await scene(producer, connection)

    asyncio.run(run())


async def outcomes(*sent: Awaitable[Delivered]) -> list[Outcome]:
    """What became of each."""
    answers = await asyncio.gather(*sent, return_exceptions=True)
    found = []
    for answer in answers:
        assert isinstance(answer, Delivered | FluxlogError), answer
        found.append(answer.outcome if isinstance(answer, FluxlogError) else Outcome.COMMITTED)
    return found


def test_records_behind_a_full_pipeline_are_answered_when_all_before_them_have_expired(cluster: FakeCluster) -> None:
    """They are in the open batch, and no answer of a node is left that would have it looked at."""
    cluster.faults[0].extend([Fault.DISK_FULL] * 100)  # to be tried again after an hour

    async def scene(producer: Producer) -> None:
        before = [producer.send_nowait("t", bytes(1_000), partition=0) for _ in range(IN_FLIGHT_MAX)]
        behind = producer.send_nowait("t", b"behind", partition=0)
        assert set(await outcomes(*before)) == {Outcome.REJECTED}
        assert await outcomes(behind) == [Outcome.REJECTED]

    play(cluster, scene, batch_bytes=1_024, delivery_timeout=0.1)
    assert cluster.topics["t"][0].values == []


class _InputError(Exception):
    """What a caller's own code may raise."""


async def turns() -> None:
    """What can run now has run."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_closing_answers_all_who_wait_for_room(cluster: FakeCluster) -> None:
    cluster.faults[0].extend([Fault.DISK_FULL] * 100)

    async def scene(producer: Producer) -> None:
        sends = [asyncio.ensure_future(producer.send("t", bytes(900), partition=0)) for _ in range(10)]
        await turns()
        await producer.close(flush=False)
        assert set(await outcomes(*sends)) <= {Outcome.REJECTED, Outcome.UNKNOWN}
        assert producer.buffered_bytes == 0

    play(cluster, scene, buffer_bytes=2_000)


def test_closing_answers_who_waits_for_a_topic_to_be_learned() -> None:
    """As an error: nobody has cancelled the send."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def run() -> None:
            producer = Producer(f"127.0.0.1:{silent.getsockname()[1]}")
            producer.open()
            sends = [asyncio.ensure_future(producer.send("t", b"x")) for _ in range(2)]
            await turns()
            sends[0].cancel()
            await producer.close()
            assert await outcomes(sends[1]) == [Outcome.REJECTED]
            await asyncio.gather(sends[0], return_exceptions=True)
            assert sends[0].cancelled()

        asyncio.run(asyncio.wait_for(run(), 20))


def test_a_shared_connection_that_is_closed_first_ends_what_is_sent_after_it(cluster: FakeCluster) -> None:
    """Surely not written; and the producer's own closing returns."""

    async def scene(producer: Producer, connection: Connection) -> None:
        await connection.close()
        deliveries = [producer.send_nowait("t", bytes(900), partition=number % 2) for number in range(50)]
        assert await outcomes(*deliveries) == [Outcome.REJECTED] * 50
        with pytest.raises(RejectedError, match="closed"):
            deliveries[0].result()

    play_shared(cluster, scene, batch_bytes=2_048)


def test_a_shared_connection_that_is_closed_leaves_what_is_on_its_way_in_doubt(cluster: FakeCluster) -> None:
    """Told at once, not when the node has been taken for hung."""
    cluster.faults[0].extend([Fault.SILENCE] * 2)
    failures: list[str] = []

    async def scene(producer: Producer, connection: Connection) -> None:
        first = producer.send_nowait("t", b"x", partition=0)
        assert await asyncio.to_thread(cluster.unanswered.wait, 20)
        behind = producer.send_nowait("t", b"y", partition=0)
        await connection.close()
        assert await outcomes(first) == [Outcome.UNKNOWN]
        assert set(await outcomes(behind)) <= {Outcome.REJECTED, Outcome.UNKNOWN}

    play_shared(cluster, scene, on_retry=lambda retry: failures.append(retry.error.reason))
    assert "DEADLINE_EXCEEDED" not in failures


def test_a_call_on_a_connection_that_is_closed_meanwhile_fails(cluster: FakeCluster) -> None:
    """With an error: who made it was not cancelled."""
    cluster.elected.clear()
    request = admin_pb2.AwaitLeadersRequest(max_wait_ms=5_000)
    request.partitions.add(topic="t", partition=0)

    async def scene(_: Producer, connection: Connection) -> None:
        call = asyncio.ensure_future(
            connection.call_node(connection.addresses()[0], lambda node: node.admin.AwaitLeaders, request)
        )
        assert await asyncio.to_thread(cluster.asked.get, timeout=20) == 1
        await connection.close()
        with pytest.raises(FluxlogError) as failure:
            await call
        assert (failure.value.reason, failure.value.outcome) == ("CANCELLED", Outcome.UNKNOWN)

    try:
        play_shared(cluster, scene)
    finally:
        cluster.elected.set()


@pytest.mark.parametrize("fault", [Fault.NO_QUORUM, Fault.BREAK_BEFORE])
def test_a_callback_that_raises_costs_no_record_its_outcome(cluster: FakeCluster, fault: Fault) -> None:
    """What it raises goes to the event loop's handler."""
    for partition in range(2):
        cluster.faults[partition].extend([fault] * 3)
    raised: list[BaseException | None] = []

    def on_retry(retry: Retry) -> None:
        raise _InputError(retry.error.reason)

    async def scene(producer: Producer) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: raised.append(told.get("exception")))
        sends = [producer.send("t", b"x", partition=number % 2) for number in range(20)]
        assert set(await outcomes(*sends)) == {Outcome.COMMITTED}

    play(cluster, scene, on_retry=on_retry)
    assert raised
    assert all(isinstance(error, _InputError) for error in raised)


@pytest.mark.parametrize("keyless", ["sticky", "round_robin"])
def test_a_large_record_never_makes_the_batch_of_others_too_large(cluster: FakeCluster, keyless: str) -> None:
    """Whichever open batch it is about to join: that of another partition, too, which may be nearly full."""

    async def scene(producer: Producer) -> None:
        others = [producer.send_nowait("t", bytes(1_000), partition=number % 2) for number in range(500)]
        large = [producer.send_nowait("t", bytes(900_000)) for _ in range(3)]
        assert set(await outcomes(*others, *large)) == {Outcome.COMMITTED}

    play(cluster, scene, keyless=keyless)


def test_a_records_size_is_that_of_its_bytes(cluster: FakeCluster) -> None:
    """A memoryview's length counts items."""
    numbers = memoryview(array("d", [0.5] * 110_000))  # 880,000 bytes

    async def scene(producer: Producer) -> None:
        others = [producer.send_nowait("t", bytes(1_000), partition=0) for _ in range(200)]
        large = producer.send_nowait("t", numbers, partition=0)  # type: ignore[arg-type]
        assert set(await outcomes(*others, large)) == {Outcome.COMMITTED}

    play(cluster, scene, batch_bytes=1_000_000)


def test_records_that_take_turns_do_so_also_when_they_fill_their_batches(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        deliveries = [producer.send_nowait("t", bytes(400)) for _ in range(20)]
        places = [(await delivery).partition for delivery in deliveries]
        assert places == places[:2] * 10
        assert places[0] != places[1]

    play(cluster, scene, keyless="round_robin", batch_bytes=1_024)


def _ends_badly() -> Iterator[bytes]:
    for _ in range(3_000):
        yield b"v" * 600
    raise _InputError("the file is gone")


_NUMBERS = [b"%d" % (number % 2) for number in range(9_000)]


@pytest.mark.parametrize(
    ("values", "keys", "cause"),
    [
        (_ends_badly(), None, _InputError),
        ([b"v" * 600] * 3_000 + ["text"], None, TypeError),
        ([b"v" * 600] * 9_001, [*_NUMBERS, b"9"], FluxlogError),
        ([b"v" * 600] * 9_001, _NUMBERS, ValueError),
    ],
    ids=["iterable", "value", "partitioner", "lengths"],
)
def test_many_that_cannot_be_taken_to_their_end_tell_what_became_of_those_that_were(
    cluster: FakeCluster, values: Iterable[bytes], keys: list[bytes] | None, cause: type[Exception]
) -> None:
    """They are written, and a caller who was told that nothing was sent would write them twice."""

    async def scene(producer: Producer) -> None:
        with pytest.raises(BulkDeliveryError) as failure:
            await producer.send_many("t", values, keys=keys)
        assert isinstance(failure.value.__cause__, cause)
        assert failure.value.outcome is Outcome.REJECTED, "what is not in the result was surely not written"
        assert not failure.value.failed
        written = sum(len(partition.values) for partition in cluster.topics["t"])
        assert failure.value.result.record_count == written > 0
        assert producer.buffered_bytes == 0

    play(cluster, scene, batch_bytes=8_192, partitioner=lambda key, _: int(key))


@pytest.mark.parametrize("flush", [True, False])
def test_many_that_a_closing_breaks_off_tell_what_became_of_those_that_were_sent(
    cluster: FakeCluster, flush: bool
) -> None:
    """Committed, in doubt, and surely not written are told apart."""
    closings: list[asyncio.Task[None]] = []
    if not flush:
        cluster.faults[0].extend([*[None] * 500, *[Fault.SILENCE] * 10_000])  # type: ignore[list-item]

    async def scene(producer: Producer) -> None:
        def values() -> Iterator[bytes]:
            for number in itertools.count():
                some_answered = producer.buffered_bytes < (number - 2_000) * 600
                if some_answered and not closings:
                    closings.append(asyncio.ensure_future(producer.close(flush=flush)))
                yield b"%d" % number + b" " * 600

        with pytest.raises(BulkDeliveryError, match="closed") as failure:
            await producer.send_many("t", values(), partition=0)
        await asyncio.gather(*closings)
        error = failure.value
        assert error.reason == "CANCELLED"
        unknown = [part for part in error.failed if part.error.outcome is Outcome.UNKNOWN]
        assert error.outcome is (Outcome.UNKNOWN if unknown else Outcome.REJECTED)
        assert unknown or flush
        written = {int(value or b"") for value in cluster.topics["t"][0].values}
        delivered = {number for part in error.result.delivered for number in part.numbers}
        assert delivered
        assert delivered <= written
        assert written <= delivered | {number for part in unknown for number in part.numbers}

    play(cluster, scene, batch_bytes=8_192)


def test_many_of_which_nothing_was_sent_fail_with_what_was_wrong(cluster: FakeCluster) -> None:
    async def scene(producer: Producer) -> None:
        with pytest.raises(TypeError):
            await producer.send_many("t", [b"good", "text"])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="shorter"):
            await producer.send_many("t", [b"1", b"2"], keys=[b"k"])
        await producer.close()
        with pytest.raises(LocalError, match="closed"):
            await producer.send_many("t", [b"1"])

    play(cluster, scene)
    assert [partition.values for partition in cluster.topics["t"]] == [[], []]
