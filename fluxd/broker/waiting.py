"""Reads that wait for the high watermark: the purgatory. Nothing here polls; a commit or a change of role wakes the
readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason


class Watched(Protocol):
    """A group, as far as waiting readers see it."""

    on_commit: list[Callable[[], None]]
    on_role: list[Callable[[], None]]


class _Bench:
    """The readers that wait for one group."""

    def __init__(self, group: Watched) -> None:
        self._group = group
        self.waiting: set[asyncio.Future[bool]] = set()
        group.on_commit.append(self._wake)
        group.on_role.append(self._wake)

    def _wake(self) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_result(True)

    def leave(self) -> None:
        """Stop listening."""
        self._group.on_commit.remove(self._wake)
        self._group.on_role.remove(self._wake)


class WaitingRoom:
    """All waiting reads of a node, at most limits.WAITING_READS_MAX."""

    def __init__(self, places: int = limits.WAITING_READS_MAX) -> None:
        self._places = places
        self._benches: dict[int, _Bench] = {}
        self.waiting = 0

    async def wait(self, group: Watched, seconds: float | None) -> bool:
        """Wait until something was committed in a group, or its role changed.

        Args:
            seconds: at most this long; None: until it happens.

        Returns:
            False when the time is over.

        Raises:
            FluxError: OVERLOADED: the room is full.
        """
        if self.waiting >= self._places:
            raise FluxError(
                Reason.OVERLOADED,
                f"{self.waiting} reads wait on this node, the bound is {self._places}",
                retry_after_ms=limits.OVERLOADED_RETRY_MS,
            )
        bench = self._benches.get(id(group))
        if bench is None:
            bench = self._benches[id(group)] = _Bench(group)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        bench.waiting.add(future)
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
            bench.waiting.discard(future)
            if not bench.waiting:
                bench.leave()
                del self._benches[id(group)]
