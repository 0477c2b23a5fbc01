"""A bounded number of bytes, given to those who wait in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """Room for bytes. Something larger than all of it is let in alone.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_take(self, size: int) -> bool:
        """Take it if there is room and nobody waits."""
        used = self.used
        if self._waiting or (used and used + size > self.limit):
            return False
        self.used = used + size
        return True

    async def take(self, size: int) -> None:
        """Wait for room and take it."""
        if self.try_take(size):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was given just then
                self.give(size)
            else:  # those behind may fit
                self.give(0)
            raise

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size
        while self._waiting:
            wanted, future = self._waiting[0]
            if future.cancelled():
                self._waiting.popleft()
                continue
            if self.used and self.used + wanted > self.limit:
                return
            self._waiting.popleft()
            self.used += wanted
            future.set_result(None)
