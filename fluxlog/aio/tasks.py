"""Tasks with an owner: none outlives it, and none fails unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class TaskSet:
    """Tasks that end with their owner. Unlike a TaskGroup it spans several calls: from opening to closing."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run it until it ends or `close`. It has to handle the errors that can be expected."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, *, grace: float = 0.0) -> None:
        """Cancel all and wait for their end.

        Args:
            grace: seconds in which those that have been told to may end by themselves.
        """
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if tasks and grace:
            await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # a defect: said, since nobody awaits it
            context = {"message": f"task {task.get_name()} failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)


def was_cancelled() -> bool:
    """Whether a CancelledError in hand is meant for the task that runs, not for something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
