"""An asyncio event loop on simulated time: one for each simulated process, all on one heap of events, in one thread.

Timers and ready callbacks run in the order of their time and of their making, so a run depends on nothing but its
seed. There are no sockets, threads or signals. Tasks and futures hash by the number of their making: asyncio keeps them
in sets, and the order of a set of plain objects is that of their addresses.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from tests.simulation.clock import Simulator

T = TypeVar("T")

_CLOSING_ATTEMPTS_MAX = 50


class _Numbers:
    """Of tasks and futures, in the order of their making."""

    last = 0

    @classmethod
    def next(cls) -> int:
        cls.last += 1
        return cls.last


class SimFuture(asyncio.Future[T]):
    """A future with a hash of its own."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        self._number = _Numbers.next()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class SimTask(asyncio.Task[T]):
    """A task with a hash of its own."""

    def __init__(self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **options: Any) -> None:
        self._number = _Numbers.next()
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class _Current:
    """The loop whose process did something last; asyncio takes it for the running one."""

    loop: SimLoop | None = None

    @classmethod
    def enter(cls, loop: SimLoop | None) -> None:
        """From now on it is this one."""
        cls.loop = loop
        events._set_running_loop(loop)


class SimLoop(asyncio.AbstractEventLoop):
    """The loop of one process.

    Args:
        on_event: called after each callback of the process.
        on_defect: called with what nobody caught.
        on_log: called with the level and the fields of what is logged.
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        on_event: Callable[[], None],
        on_defect: Callable[[str, object], None],
        on_log: Callable[[str, MutableMapping[str, Any]], None],
    ) -> None:
        self._simulator, self._on_event, self._on_defect, self.on_log = simulator, on_event, on_defect, on_log
        self.alive = True
        self.paused_until = 0.0
        self._backlog: deque[asyncio.Handle] = deque()
        """What came while the process stood still."""
        self._tasks: dict[int, SimTask[Any]] = {}
        self._tidy_at = 64

    # ---- scheduling

    def time(self) -> float:
        """Simulated seconds."""
        return self._simulator.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """At the present moment, behind what was asked for before."""
        handle = asyncio.Handle(callback, args, self, context)
        if self.alive:
            self._simulator.at(self._simulator.now, partial(self._fire, handle))
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there is one thread

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """After some seconds."""
        return self.call_at(self._simulator.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """At a time of `time()`."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if self.alive:
            self._simulator.at(when, partial(self._fire, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked for by TimerHandle; the heap passes over what was cancelled."""

    def _fire(self, handle: asyncio.Handle) -> None:
        if not self.alive or handle.cancelled():
            return
        if self._simulator.now < self.paused_until or self._backlog:
            self._backlog.append(handle)
            return
        self._run_now(handle)

    def _run_now(self, handle: asyncio.Handle) -> None:
        if _Current.loop is not self:  # to set it costs more than most callbacks
            _Current.enter(self)
        handle._run()
        if self.alive:
            self._on_event()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        self.paused_until = max(self.paused_until, self._simulator.now + seconds)
        self._simulator.at(self.paused_until, self._resume)

    def resume(self) -> None:
        """SIGCONT now."""
        self.paused_until = self._simulator.now
        self._resume()

    def _resume(self) -> None:
        """One at a time, in order; what comes meanwhile goes behind."""
        if self.alive and self._backlog and self._simulator.now >= self.paused_until:
            handle = self._backlog.popleft()
            if not handle.cancelled():
                self._run_now(handle)
            self._simulator.at(self._simulator.now, self._resume)

    @contextmanager
    def running(self) -> Iterator[None]:
        """What happens inside happens in this process."""
        before = _Current.loop
        _Current.enter(self)
        try:
            yield
        finally:
            _Current.enter(before)

    # ---- what asyncio asks of a loop

    def create_future(self) -> asyncio.Future[Any]:
        """Numbered."""
        return SimFuture(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Future[Any]:
        """Numbered. A dead process begins nothing: what it would have begun is cancelled."""
        if not self.alive:
            coro.close()
            cancelled = self.create_future()
            cancelled.cancel()
            return cancelled
        task: SimTask[Any] = SimTask(coro, loop=self, name=name, context=context)
        self._tasks[task._number] = task
        if len(self._tasks) > self._tidy_at:
            self._tasks = {number: known for number, known in self._tasks.items() if not known.done()}
            self._tidy_at = 64 + 2 * len(self._tasks)
        return task

    def get_debug(self) -> bool:
        """Off."""
        return False

    def is_running(self) -> bool:
        """While its process lives."""
        return self.alive

    def is_closed(self) -> bool:
        """Once its process has ended."""
        return not self.alive

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Something that nobody caught: a defect, unless the process is being torn down."""
        if self.alive:
            self._on_defect(str(context.get("message", "")), context.get("exception"))

    # ---- the end

    def die(self) -> None:
        """The process ends in the middle of what it does. Nothing that its coroutines do from here on, when they are
        taken down, reaches anybody.
        """
        if not self.alive:
            return
        self.alive = False
        with self.running():
            for task in self._tasks.values():
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close(task.get_coro())
        self._tasks.clear()


def _close(coroutine: Any) -> None:
    """Take a coroutine down, also one that waits while it is being taken down."""
    for _ in range(_CLOSING_ATTEMPTS_MAX):
        try:
            coroutine.close()
            return
        except BaseException:  # whatever a dead process does in its last moments is nobody's concern
            continue


def _finalize(generator: AsyncGenerator[Any, Any]) -> None:
    """An asynchronous generator that nobody holds any more is closed by a task of its loop, as asyncio does it."""
    loop = events._get_running_loop()
    if isinstance(loop, SimLoop) and loop.alive:
        loop.create_task(generator.aclose())
        return
    closing = generator.aclose()
    for _ in range(_CLOSING_ATTEMPTS_MAX):
        try:
            closing.send(None)
        except BaseException:
            return


@contextmanager
def generator_hooks() -> Iterator[None]:
    """While simulated loops run. Numbers begin anew: a run does not depend on what ran before it in this process."""
    _Numbers.last = 0
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=_finalize)
    try:
        yield
    finally:
        _Current.enter(None)
        sys.set_asyncgen_hooks(*before)
