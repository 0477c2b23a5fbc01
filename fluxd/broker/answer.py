"""Awaiting what is told by calling back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


async def answer_of(ask: Callable[[Callable[[Answer], None]], None]) -> Answer:
    """What `ask` tells the function that it is given, now or later. Who is cancelled meanwhile does not hear it."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    ask(lambda answer: None if future.done() else future.set_result(answer))
    return await future
