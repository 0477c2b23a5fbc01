"""Clients whose partitions have lost their leader are told the new one, instead of asking again and again.

What is told is what this node knows: a hint, as every other leader that is told. Who acts on it is refused, or passed
on, when it has become old news meanwhile.
"""

from __future__ import annotations

import asyncio
from functools import partial

from fluxd.broker.cluster import ClusterView, LeaderHint
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import GroupId
from fluxlog.v1 import admin_pb2

_GATHER = 0.02
"""Seconds for others to follow when the first leader is known: hundreds that are elected at once are told in a few
answers."""


class LeaderWaiting:
    """The calls of AwaitLeaders on one node."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._waiting = 0

    async def wait(self, request: admin_pb2.AwaitLeadersRequest) -> admin_pb2.AwaitLeadersResponse:
        """See admin.proto.

        Raises:
            FluxError: INVALID_ARGUMENT; OVERLOADED: too many wait.
        """
        _check(request)
        search = _Search(self._view, request)
        if not search.complete and request.max_wait_ms:
            if self._waiting >= limits.LEADER_WAITS_MAX:
                raise FluxError(
                    Reason.OVERLOADED,
                    f"{self._waiting} calls wait for leaders on this node already",
                    retry_after_ms=limits.OVERLOADED_RETRY_MS,
                )
            self._waiting += 1
            try:
                await search.wait(request.max_wait_ms / 1000)
            finally:
                self._waiting -= 1
        return search.response()


class _Search:
    """What one call asks for, and what is known of it."""

    def __init__(self, view: ClusterView, request: admin_pb2.AwaitLeadersRequest) -> None:
        self._view = view
        self._wanted: dict[GroupId, admin_pb2.AwaitedLeader] = {}
        self._found: dict[GroupId, LeaderHint] = {}
        self._some, self._all = asyncio.Event(), asyncio.Event()
        for asked in request.partitions:
            topic = view.topic(asked.topic)
            if topic is not None and asked.partition < len(topic.partitions):
                self._wanted[topic.group_id(asked.partition)] = asked
        for group_id in self._wanted:
            self._look(group_id)

    @property
    def complete(self) -> bool:
        """Nothing is left to be waited for."""
        return len(self._found) == len(self._wanted)

    async def wait(self, seconds: float) -> None:
        """Until all leaders are known; not much longer when some are; never above this time."""
        unwatch = [self._view.watch_leader(group_id, partial(self._look, group_id)) for group_id in self._wanted]
        try:
            async with asyncio.timeout(seconds):
                await self._some.wait()
                async with asyncio.timeout(_GATHER):
                    await self._all.wait()
        except TimeoutError:
            pass
        finally:
            for end in unwatch:
                end()

    def response(self) -> admin_pb2.AwaitLeadersResponse:
        """What was found."""
        response = admin_pb2.AwaitLeadersResponse()
        for group_id, hint in self._found.items():
            asked = self._wanted[group_id]
            response.leaders.add(
                topic=asked.topic, partition=asked.partition, node_id=hint.node_id, address=hint.address,
                leader_epoch=hint.epoch,
            )  # fmt: skip
        return response

    def _look(self, group_id: GroupId) -> None:
        hint = self._view.leader(group_id)
        if hint is not None and hint.epoch > self._wanted[group_id].after_epoch:
            self._found[group_id] = hint
            self._some.set()
            if self.complete:
                self._all.set()


def _check(request: admin_pb2.AwaitLeadersRequest) -> None:
    if len(request.partitions) > limits.AWAITED_LEADERS_MAX:
        why = f"{len(request.partitions)} partitions are above the bound {limits.AWAITED_LEADERS_MAX}"
        raise FluxError(Reason.INVALID_ARGUMENT, why)
    if request.max_wait_ms > limits.LEADER_WAIT_MS_MAX:
        why = f"max_wait_ms {request.max_wait_ms} is above the bound {limits.LEADER_WAIT_MS_MAX}"
        raise FluxError(Reason.INVALID_ARGUMENT, why)
