"""Has a node tell the leaders of partitions that have lost theirs, on an event loop: see fluxlog/leader_search.py."""

from __future__ import annotations

import time
from collections.abc import Callable

from fluxlog.aio.connection import Connection
from fluxlog.aio.tasks import TaskSet
from fluxlog.errors import FluxlogError
from fluxlog.leader_search import ASK_TIMEOUT, LeaderSearch, Question, Waiting


class LeaderWatch:
    """See the module.

    Args:
        tasks: own what runs here.
        on_news: called when what waits has been told something, or that nobody tells.
    """

    def __init__(self, connection: Connection, waiting: Waiting, tasks: TaskSet, on_news: Callable[[], None]) -> None:
        self._connection, self._tasks, self._on_news = connection, tasks, on_news
        self._search = LeaderSearch(waiting, connection.addresses, time.monotonic)

    def look(self) -> None:
        """Ask when something waits for its leader; to be called whenever that may be."""
        question = self._search.next()
        if question is not None:
            self._tasks.start(self._ask(question), "await leaders")

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
