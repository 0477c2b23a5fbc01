"""Has a node tell the leaders of partitions that have lost theirs, while something waits for them.

A hint that comes early, no more: what waits is tried again all the same, with the pauses of the pipeline. Where no node
can tell (an older version), that is all there is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from fluxlog.aio.connection import Connection
from fluxlog.aio.tasks import TaskSet
from fluxlog.delivery import PartitionQueue
from fluxlog.errors import FluxlogError
from fluxlog.pipeline import BACKOFF_MAX_DEFAULT, Pipeline
from fluxlog.v1 import admin_pb2

_WAIT_MS = 200
"""Of one call: what loses its leader meanwhile is asked for with the next one."""
_TIMEOUT = 2.0
_ASKED_MAX = 10_000
_AGAIN = 1.0
"""Seconds until another attempt when no node could tell."""
_AGAIN_UNKNOWN = 60.0
"""The same when that is because they do not know the call."""


class LeaderWatch:
    """See the module.

    Args:
        tasks: own what runs here.
        on_told: called when the pipeline has been told something.
    """

    def __init__(self, connection: Connection, pipeline: Pipeline, tasks: TaskSet, on_told: Callable[[], None]) -> None:
        self._connection, self._pipeline, self._tasks, self._on_told = connection, pipeline, tasks, on_told
        self._asking = False
        self._not_before = 0.0
        pipeline.poll_pause = BACKOFF_MAX_DEFAULT

    def look(self) -> None:
        """Begin to ask when something waits for its leader; to be called after the pipeline did something."""
        if not self._asking and self._pipeline.leaderless(1) and time.monotonic() >= self._not_before:
            self._asking = True
            self._tasks.start(self._ask_while_needed(), "await leaders")

    async def _ask_while_needed(self) -> None:
        try:
            while lost := self._pipeline.leaderless(_ASKED_MAX):
                began = time.monotonic()
                answer = await self._ask(lost)
                if answer is None:
                    return
                for leader in answer.leaders:
                    self._pipeline.leader_told(
                        leader.topic, leader.partition, address=leader.address, epoch=leader.leader_epoch
                    )
                self._on_told()
                if not answer.leaders:  # a node that knows none of the topics answers at once
                    await asyncio.sleep(max(0.0, began + _WAIT_MS / 1000 - time.monotonic()))
        finally:
            self._asking = False

    async def _ask(self, lost: Sequence[PartitionQueue]) -> admin_pb2.AwaitLeadersResponse | None:
        """The answer of the first node that gives one."""
        request = admin_pb2.AwaitLeadersRequest(max_wait_ms=_WAIT_MS)
        for partition in lost:
            request.partitions.add(
                topic=partition.topic, partition=partition.number, after_epoch=partition.leader_epoch
            )
        reasons = set()
        for address in self._addresses({partition.avoid for partition in lost}):
            try:
                answer = await self._connection.call_node(
                    address, lambda node: node.admin.AwaitLeaders, request, timeout_s=_TIMEOUT
                )
            except FluxlogError as failure:
                reasons.add(failure.reason)
                continue
            self._pipeline.poll_pause = BACKOFF_MAX_DEFAULT
            return answer
        self._pipeline.nobody_tells()
        self._on_told()
        self._not_before = time.monotonic() + (_AGAIN_UNKNOWN if "UNIMPLEMENTED" in reasons else _AGAIN)
        return None

    def _addresses(self, avoided: set[str]) -> list[str]:
        """Those that did not answer lately come last."""
        return sorted(self._connection.addresses(), key=lambda address: address in avoided)
