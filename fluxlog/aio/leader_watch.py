"""Has a node tell the leaders of partitions that have lost theirs, on an event loop: see fluxlog/leader_search.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fluxlog.aio.connection import Connection
from fluxlog.aio.tasks import TaskSet
from fluxlog.errors import FluxlogError
from fluxlog.leader_search import ASK_TIMEOUT, WAIT_MS_DEFAULT, LeaderSearch, Question, Waiting
from fluxlog.lost_leaders import WAIT_MS, LostLeader, LostLeaders


class LeaderWatch:
    """See the module.

    Args:
        tasks: own what runs here.
        on_news: called when what waits has been told something, or that nobody tells.
        wait_ms: of one call.
    """

    def __init__(
        self,
        connection: Connection,
        waiting: Waiting,
        tasks: TaskSet,
        on_news: Callable[[], None],
        *,
        wait_ms: int = WAIT_MS_DEFAULT,
    ) -> None:
        self._connection, self._tasks, self._on_news = connection, tasks, on_news
        self._search = LeaderSearch(waiting, connection.addresses, time.monotonic, wait_ms=wait_ms)
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Ask when something waits for its leader; to be called whenever that may be."""
        question = self._search.next()
        if question is not None:
            self._task = self._tasks.start(self._ask(question), "await leaders")

    def close(self) -> None:
        """Cancel what is asked; nothing is asked any more."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self, question: Question) -> None:
        try:
            answer = await self._connection.call_node(
                question.address, lambda node: node.admin.AwaitLeaders, question.request, timeout_s=ASK_TIMEOUT
            )
        except FluxlogError as failure:
            self._search.take_failure(failure)
        else:
            self._search.take_answer(answer)
        self._on_news()
        self.look()


class LeaderNews:
    """Tells readers new leaders: one call for all partitions that wait.

    Args:
        tasks: own what runs here.
    """

    def __init__(self, connection: Connection, tasks: TaskSet) -> None:
        self._lost = LostLeaders()
        self._watch = LeaderWatch(connection, self._lost, tasks, lambda: None, wait_ms=WAIT_MS)

    def close(self) -> None:
        """Tell nothing more."""
        self._watch.close()

    async def wait(self, lost: LostLeader, seconds: float) -> str:
        """The leader's address as soon as it is told; empty after so many seconds."""
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(address: str) -> None:
            if not told.done():  # its time has just come to an end
                told.set_result(address)

        lost.on_told = take
        self._lost.add(lost)
        self._watch.look()
        try:
            async with asyncio.timeout(seconds):
                return await told
        except TimeoutError:
            return ""
        finally:
            self._lost.discard(lost)
