"""A simulated host, and the process that runs on it, if any: what can be killed, paused, cut off or lose its power."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

from tests.cluster.loop import SimLoop
from tests.simulation.clock import Simulator


class SimProcess:
    """One process, from its start to its end, on one host.

    Args:
        on_event: called after everything that it does.
        on_defect: called with a line for people.
        on_end: called once, when it has ended.
    """

    def __init__(
        self,
        host: SimHost,
        *,
        on_event: Callable[[SimProcess], None],
        on_defect: Callable[[SimProcess, str], None],
        on_log: Callable[[SimProcess, str, MutableMapping[str, Any]], None],
        on_end: Callable[[SimProcess], None],
    ) -> None:
        host.processes += 1
        self.host, self.number = host, host.processes
        self._on_end, self._on_defect = on_end, on_defect
        self.loop = SimLoop(  # type: ignore[abstract]  # no sockets, no signals
            host.simulator, on_event=lambda: on_event(self),
            on_defect=lambda message, error: on_defect(self, f"{message}: {error!r}"),
            on_log=lambda level, fields: on_log(self, level, fields),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.host.name}.{self.number}"

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self.loop.alive

    @property
    def paused(self) -> bool:
        """It stands still."""
        return self.host.simulator.now < self.loop.paused_until

    def start(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine; the process ends when it returns."""

        async def run() -> None:
            try:
                await main()
            except Exception as error:
                if not self.alive:
                    return
                self._on_defect(self, f"ended with {type(error).__name__}: {error}")
            self.host.simulator.at(self.host.simulator.now, self.end)

        with self.loop.running():
            self.loop.create_task(run())

    def end(self) -> None:
        """Now, whatever it does."""
        if self.alive:
            self.loop.die()
            if self.host.process is self:
                self.host.process = None
            self._on_end(self)


class SimHost:
    """A machine with an address. Its clock may be wrong."""

    def __init__(self, name: str, simulator: Simulator, rng: random.Random) -> None:
        self.name, self.simulator, self.rng = name, simulator, rng
        self.process: SimProcess | None = None
        self.processes = 0
        self.powered = True
        """False: nobody answers at its address, not even with a refusal."""
        self.clock_offset_ms = 0

    @property
    def address(self) -> str:
        """host:port of the one port."""
        return f"{self.name}:9640"

    def __repr__(self) -> str:
        return self.name
