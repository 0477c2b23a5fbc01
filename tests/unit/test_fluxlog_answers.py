"""Every send is answered, with what became of it: through outages, closing, and what does not fit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fluxlog import Delivered, FluxlogError, Outcome, Producer
from fluxlog.pipeline import IN_FLIGHT_MAX
from tests.unit.fluxlog_fake import FakeCluster, Fault

Scene = Callable[[Producer], Awaitable[None]]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    fake.create("t", 2)
    yield fake
    fake.stop()


def play(cluster: FakeCluster, scene: Scene, **options: Any) -> None:
    """Run a scene with a producer that knows the topic, bounded in time."""

    async def run() -> None:
        async with asyncio.timeout(20), Producer(list(cluster.addresses.values()), **options) as producer:
            await producer.prepare("t")
            await scene(producer)

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
