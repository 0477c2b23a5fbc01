"""Simulated time: one heap of events, one thread, and for each process a Reactor on it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

WALL_MS_AT_START = 1_700_000_000_000


class SimTimer:
    """A pending call; implements core.runtime.Timer."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the call."""
        self.callback = None


class Simulator:
    """The heap of events."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, SimTimer]] = []
        self._count = 0

    def at(self, when: float, callback: Callable[[], None]) -> SimTimer:
        """Call once when simulated time has come; events of one moment run in the order in which they were
        asked for.
        """
        timer = SimTimer(callback)
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, timer))
        return timer

    def step(self) -> bool:
        """Run the next event. False: there is none."""
        while self._heap:
            when, _, timer = heapq.heappop(self._heap)
            if timer.callback is None:
                continue
            self.now = when
            self.events += 1
            timer.callback()
            return True
        return False


class DiskSpeed:
    """How long a blocking step takes, seconds; `hung_until` > now: no step ends before; `straggles`: by so much longer
    the next one takes, alone."""

    def __init__(self) -> None:
        self.low, self.high = 0.0002, 0.003
        self.hung_until = self.straggles = 0.0


class SimReactor:
    """One process's Reactor. After `die` none of its callbacks runs."""

    def __init__(self, simulator: Simulator, rng: random.Random, disk: DiskSpeed) -> None:
        self._simulator, self._rng, self._disk = simulator, rng, disk
        self.alive = True
        self.paused_until = 0.0

    def die(self) -> None:
        """The process ends."""
        self.alive = False

    def now(self) -> float:
        """Simulated seconds."""
        return self._simulator.now

    def wall_ms(self) -> int:
        """Simulated Unix milliseconds."""
        return WALL_MS_AT_START + int(self._simulator.now * 1000)

    def random(self) -> float:
        """From the seed."""
        return self._rng.random()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """At the present moment, after what is already asked for."""
        self.call_at(self._simulator.now, callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> SimTimer:
        """Unless the process is dead then; later if it is paused."""

        def run() -> None:
            if not self.alive:
                return
            if self._simulator.now < self.paused_until:
                self._simulator.at(self.paused_until, run)
            else:
                callback()

        return self._simulator.at(when, run)

    def run_blocking(self, steps: list[Callable[[], None]], done: Callable[[BaseException | None], None]) -> None:
        """Each step takes time, and so does the news of its end: what is written in between is not covered."""
        pending = list(steps)

        def next_step() -> None:
            if not self.alive:
                return
            if not pending:
                self.call_soon(lambda: done(None))
                return
            try:
                pending.pop(0)()
            except Exception as error:
                failure = error
                self.call_soon(lambda: done(failure))
                return
            self._later(next_step)

        self._later(next_step)

    def _later(self, callback: Callable[[], None]) -> None:
        delay = self._disk.low + (self._disk.high - self._disk.low) * self._rng.random()
        straggles, self._disk.straggles = self._disk.straggles, 0.0
        self._simulator.at(max(self._simulator.now, self._disk.hung_until) + delay + straggles, callback)
