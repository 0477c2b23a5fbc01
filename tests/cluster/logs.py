"""What product code logs goes to the simulated process that runs at that moment."""

from __future__ import annotations

from asyncio import events
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from tests.cluster.loop import SimLoop


def _capture(_: Any, method: str, event: Any) -> Any:
    loop = events._get_running_loop()
    if isinstance(loop, SimLoop) and loop.alive:
        error = event.get("exc_info")
        if isinstance(error, BaseException):
            event["exc_info"] = repr(error)
        loop.on_log(method, event)
    raise structlog.DropEvent


@contextmanager
def captured() -> Iterator[None]:
    """While simulated processes run."""
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, _capture], cache_logger_on_first_use=False,
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )  # fmt: skip
    try:
        yield
    finally:
        structlog.configure(**before)
