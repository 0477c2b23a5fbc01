"""Scenes with a producer of a fake cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fluxlog import Producer
from tests.unit.fluxlog_fake import FakeCluster

Scene = Callable[[Producer], Awaitable[None]]


def play(cluster: FakeCluster, scene: Scene, *, known: Sequence[str] = (), **options: Any) -> None:
    """Run a scene with a producer, bounded in time.

    Args:
        known: topics that the producer has heard of when it begins.
    """

    async def run() -> None:
        async with asyncio.timeout(20), Producer(list(cluster.addresses.values()), **options) as producer:
            for topic in known:
                await producer.prepare(topic)
            await scene(producer)

    asyncio.run(run())
