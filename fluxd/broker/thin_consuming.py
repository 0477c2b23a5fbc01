"""Serves Consume: one `ThinConsumer` for each stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fluxd.broker.group_membership import MemberClient, Membership
from fluxd.broker.group_requests import GroupRequests
from fluxd.broker.thin_consumer import Requests, ThinConsumer
from fluxd.broker.thin_reads import Fetches, Offsets, ThinReads
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import random_id
from fluxd.core.runtime import Reactor
from fluxlog.v1 import consume_pb2


class ThinConsuming:
    """See the module."""

    def __init__(
        self, reactor: Reactor, membership: Membership, groups: GroupRequests, fetches: Fetches, offsets: Offsets
    ) -> None:
        self._reactor, self._membership, self._groups = reactor, membership, groups
        self._reads = ThinReads(fetches, offsets)

    async def consume(
        self, subscribe: consume_pb2.Subscribe, requests: Requests, client: MemberClient
    ) -> AsyncIterator[consume_pb2.ConsumeResponse]:
        """Be a consumer for as long as the stream lasts.

        Args:
            requests: what comes after Subscribe.

        Raises:
            FluxError: INVALID_…: of Subscribe; otherwise the stream ends with what cannot be got over.
        """
        consumer = ThinConsumer(
            self._membership, self._groups, self._reads, self._complete(subscribe), client, self._new_id
        )
        works = (consumer.be_member(), consumer.commit_all(), consumer.obey(requests))
        tasks = [asyncio.ensure_future(work) for work in works]
        for task in tasks:
            task.add_done_callback(consumer.task_ended)
        try:
            while (response := await consumer.next_response()) is not None:
                yield response
        finally:
            consumer.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _complete(self, subscribe: consume_pb2.Subscribe) -> consume_pb2.Subscribe:
        """With defaults; what `Membership` checks is left to it."""
        out = consume_pb2.Subscribe()
        out.CopyFrom(subscribe)
        out.credits = out.credits or limits.THIN_CREDITS_DEFAULT
        out.rebalance_timeout_ms = out.rebalance_timeout_ms or limits.THIN_REBALANCE_TIMEOUT_MS
        out.member_id = out.member_id or self._new_id()
        if out.credits > limits.THIN_CREDITS_MAX:
            raise FluxError(Reason.INVALID_ARGUMENT, f"credits {out.credits} are above {limits.THIN_CREDITS_MAX}")
        return out

    def _new_id(self) -> bytes:
        return random_id(self._reactor.random)
