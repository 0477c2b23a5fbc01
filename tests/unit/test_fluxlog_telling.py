"""Events are handled one at a time, in order, whoever has them told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fluxlog import Assigned, ConsumerEvent, Lost, Revoked, TopicPartition
from fluxlog.aio.telling import Telling

WHERE = TopicPartition("t", 0)
ASSIGNED, REVOKED, LOST = Assigned([WHERE]), Revoked([WHERE]), Lost([WHERE])


class Handler:
    """Notes when it is called and when it returns, and holds `Assigned` until it may go on."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.may_return = asyncio.Event()
        self.telling = Telling(self)

    async def __call__(self, event: ConsumerEvent) -> None:
        name = type(event).__name__
        self.said.append(f"{name} begins")
        if isinstance(event, Assigned):
            await self.may_return.wait()
        self.said.append(f"{name} ends")


async def turns() -> None:
    """Whoever can go on does."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scene()

    asyncio.run(bounded())


@pytest.mark.parametrize("together", [False, True], ids=["by those who wait", "by the first one"])
def test_an_event_waits_for_the_one_before(together: bool) -> None:
    """And whoever has it told waits until it has been handled, though another one calls the handler."""

    async def scene() -> None:
        handler = Handler()
        telling = handler.telling
        telling.add(ASSIGNED)
        first = asyncio.create_task(telling.tell_queued())
        await turns()
        telling.add(LOST)
        others = [asyncio.create_task(telling.tell(REVOKED)), asyncio.create_task(telling.tell_queued())]
        await turns()
        assert handler.said == ["Assigned begins"]
        assert not any(task.done() for task in others)
        if not together:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        handler.may_return.set()
        await asyncio.gather(*others)
        begun = ["Assigned begins", "Assigned ends"] if together else ["Assigned begins"]
        assert handler.said == [*begun, "Lost begins", "Lost ends", "Revoked begins", "Revoked ends"]

    run(scene)


def test_whoever_iterates_does_not_wait_for_a_handler_when_nothing_is_queued() -> None:
    """That handler may be waiting for what is handed out meanwhile."""

    async def scene() -> None:
        handler = Handler()
        task = asyncio.create_task(handler.telling.tell(ASSIGNED))
        await turns()
        await handler.telling.tell_queued()
        assert handler.said == ["Assigned begins"]
        handler.may_return.set()
        await task

    run(scene)


def test_a_handler_that_iterates_does_not_wait_for_itself() -> None:
    async def scene() -> None:
        said: list[ConsumerEvent] = []

        async def handle(event: ConsumerEvent) -> None:
            if isinstance(event, Assigned):
                telling.add(LOST)
                await telling.tell_queued()
            said.append(event)

        telling = Telling(handle)
        await telling.tell(ASSIGNED)
        assert said == [ASSIGNED, LOST]

    run(scene)


def test_a_handler_that_closes_waits_for_nobody_who_waits_for_it() -> None:
    async def scene() -> None:
        said: list[ConsumerEvent] = []

        async def handle(event: ConsumerEvent) -> None:
            if isinstance(event, Assigned):
                release = asyncio.create_task(telling.tell(REVOKED))
                await turns()
                assert not release.done()
                telling.end()
                await release
            said.append(event)

        telling = Telling(handle)
        await telling.tell(ASSIGNED)
        assert said == [ASSIGNED, REVOKED]

    run(scene)
