"""What a simulated node is handed: reactor, disk, network, randomness."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

from tests.cluster.process import SimProcess
from tests.simulation.clock import WALL_MS_AT_START, DiskSpeed
from tests.simulation.disk import SimDisk

T = TypeVar("T")


class ProcessReactor:
    """`core.runtime.ReadingReactor` of one simulated process. Blocking steps take time."""

    def __init__(self, process: SimProcess, rng: random.Random, speed: DiskSpeed) -> None:
        self._process, self._loop, self._rng, self._speed = process, process.loop, rng, speed
        self._simulator = process.host.simulator

    def now(self) -> float:
        """Simulated seconds."""
        return self._loop.time()

    def wall_ms(self) -> int:
        """Simulated Unix milliseconds; this host's clock may be wrong."""
        return WALL_MS_AT_START + int(self._loop.time() * 1000) + self._process.host.clock_offset_ms

    def random(self) -> float:
        """From the seed."""
        return self._rng.random()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """In the next turn."""
        self._loop.call_soon(callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        """Once it is that time."""
        return self._loop.call_at(when, callback)

    def run_blocking(self, steps: list[Callable[[], None]], done: Callable[[BaseException | None], None]) -> None:
        """Each step takes time, and so does the news of its end; power may be cut in between."""
        pending = list(steps)

        def next_step() -> None:
            if not self._process.alive:
                return
            if self._process.paused:
                self._simulator.at(self._loop.paused_until, next_step)
                return
            if not pending:
                self._loop.call_soon(done, None)
                return
            try:
                pending.pop(0)()
            except Exception as error:
                self._loop.call_soon(done, error)
                return
            self._later(next_step)

        self._later(next_step)

    async def read(self, step: Callable[[], T]) -> T:
        """The same for one step that returns something."""
        found: list[T] = []
        future = self._loop.create_future()

        def done(error: BaseException | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        self.run_blocking([lambda: found.append(step())], done)
        await future
        return found[0]

    def _later(self, callback: Callable[[], None]) -> None:
        delay = self._speed.low + (self._speed.high - self._speed.low) * self._rng.random()
        self._simulator.at(max(self._simulator.now, self._speed.hung_until) + delay, callback)


class ProcessDisk:
    """A host's disk as one process sees it: gone when the process has ended. Implements `filesystem.FileSystem`."""

    def __init__(self, disk: SimDisk, process: SimProcess) -> None:
        self._disk, self._process = disk, process

    def __getattr__(self, name: str) -> Any:
        if not self._process.alive:
            raise OSError(f"{self._process} has ended")
        return getattr(self._disk, name)
