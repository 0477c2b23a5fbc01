"""What the outside hands in: time, randomness, and a way to be called later.

The raft, storage and peer code knows only these. In production they are the asyncio loop and the machine; in the
simulation one thread, simulated time and a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

NEVER: Final = float("-inf")
"""A moment of the reactor's clock: it has not happened."""
NEVER_DUE: Final = float("inf")
"""It will not happen."""


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Forget the call; harmless when it has happened or been cancelled."""


class Reactor(Protocol):
    """The one thread on which all state changes. No method may be called from another thread."""

    def now(self) -> float:
        """Monotonic seconds; the origin means nothing."""

    def wall_ms(self) -> int:
        """Unix milliseconds. May jump in either direction."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call once, after the current step, before any later timer."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call once when now() >= when."""

    def run_blocking(self, steps: list[Callable[[], None]], done: Callable[[BaseException | None], None]) -> None:
        """Run blocking steps one after another off the loop (a thread of a small pool), then `done` on the loop.

        `done` gets the exception of the first step that failed (later ones are not run) or None. In the simulation time
        passes, and power may be cut, before and between the steps.
        """


class ReadingReactor(Reactor, Protocol):
    """A reactor for coroutines, too."""

    async def read(self, step: Callable[[], T]) -> T:
        """Run one blocking read off the loop and wait for what it returns or raises."""
