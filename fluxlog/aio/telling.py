"""Tells a consumer's events to its handler: in order, one at a time, whoever has them told."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable

from fluxlog.aio.consumed import ConsumerEvent

EventHandler = Callable[[ConsumerEvent], Awaitable[None] | None]

_EVENTS_MAX = 1_000
"""Of those that nobody has iterated for."""


class Telling:
    """Events that wait for their handler. Whoever iterates has them told between two records; whoever gives up
    partitions, at once.

    Args:
        handler: may be a coroutine function.
    """

    def __init__(self, handler: EventHandler) -> None:
        self._handler = handler
        self._events: deque[ConsumerEvent] = deque(maxlen=_EVENTS_MAX)
        self._teller: asyncio.Task[object] | None = None
        """Runs the handler."""
        self._freed = asyncio.Event()
        self._ended = False

    def add(self, event: ConsumerEvent) -> None:
        """Queue one."""
        self._events.append(event)

    async def tell_queued(self) -> None:
        """Have handled what is queued, if anything is."""
        if self._events:
            await self._tell_all()

    async def tell(self, event: ConsumerEvent) -> None:
        """Have this handled, after what is queued. Returns when it has been, by whomever."""
        self.add(event)
        await self._tell_all()

    async def _tell_all(self) -> None:
        """A handler that comes here itself (it iterates, or closes the consumer) does not wait for itself: what is
        queued is told when it returns."""
        task = asyncio.current_task()
        while self._teller is not None:
            if self._teller is task or self._ended:
                return
            self._freed.clear()
            await self._freed.wait()
        self._teller = task
        try:
            while self._events:
                result = self._handler(self._events.popleft())
                if inspect.isawaitable(result):
                    await result
        finally:
            self._teller = None
            self._freed.set()

    def end(self) -> None:
        """The consumer is being closed. Where its handler does that, nobody waits for the handler any more: closing
        waits for those who give up partitions."""
        if self._teller is not None and self._teller is asyncio.current_task():
            self._ended = True
            self._freed.set()
