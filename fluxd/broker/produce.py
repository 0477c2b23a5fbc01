"""Produce: from a request to the partition's leader, here or one hop away, and the one answer.

Bytes are touched once: the batch is checked where it is appended and nowhere else; on the way it is passed on as it
came. A request waits for two things only, both bounded: an election that is under way (LEADER_WAIT), and the commit
(its own timeout).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from crc32c import crc32c

from fluxd.broker.admission import Admission, Ticket
from fluxd.broker.forward import Forwarder, ProduceAnswer
from fluxd.broker.routes import LEADER_WAIT, Route, Routes
from fluxd.core import limits
from fluxd.core.batch import BatchInfo, batch_from_records, check_batch
from fluxd.core.errors import FluxError, Reason
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import TOPIC_ID_BYTES, GroupId, NodeId, Offset
from fluxd.raft.group import Group
from fluxd.raft.proposal import Append, AppendResult, Committed
from fluxlog.v1 import log_pb2, record_pb2

_REPLACED_GRACE = 0.25
"""The old leader's answers may still be on their way when the new one is known."""


@dataclass(frozen=True, slots=True, eq=False)
class _Hop:
    """A request at another node."""

    node: NodeId
    future: asyncio.Future[ProduceAnswer]


class ProduceCall(NamedTuple):
    """A ProduceRequest with its batch still encoded, and how it came."""

    topic: str
    partition: int
    batch: bytes | memoryview
    """Empty: there is none."""
    batch_crc32c: int | None
    expected_offset: int | None
    timeout_ms: int
    topic_id: bytes
    records: Sequence[record_pb2.Record]
    producer_id: bytes
    base_sequence: int
    raw: bytes | memoryview
    """The whole encoded ProduceRequest."""
    connection: str
    forwarded: bool


class Producing:
    """Serves Produce and each request of ProduceStream."""

    def __init__(self, reactor: Reactor, routes: Routes, forwarder: Forwarder, admission: Admission) -> None:
        self._reactor = reactor
        self._routes = routes
        self._forwarder = forwarder
        self._admission = admission
        self._hops: dict[GroupId, dict[_Hop, None]] = {}
        """Requests that were passed on and are not answered, in their order."""
        routes.watch_leaders(self._leader_changed)

    def start(self, call: ProduceCall, answered: Callable[[ProduceAnswer], None]) -> bool:
        """Append one batch at once, where this node leads the partition and nothing has to be waited for first.

        Args:
            answered: called once, on the loop, perhaps before this returns: with the commit, or with an error, the
                latest when the call's timeout is over.

        Returns:
            False when nothing was done and `answered` will not be called: `produce` is the way then.

        Raises:
            FluxError: REJECTED, and `answered` will not be called.
        """
        timeout_ms = _check_fields(call)
        led = self._routes.led_here(call.topic, call.partition, call.topic_id)
        if led is None:
            return False
        route, group = led
        ticket = self._admission.admit(call.connection, len(call.raw) + limits.REQUEST_OVERHEAD_BYTES)
        waiting = _Waiting(self._routes, route, timeout_ms, answered)
        try:
            self._submit(group, call, ticket, waiting.answer)
        except FluxError:
            ticket.release()
            raise
        waiting.limit(self._reactor)
        return True

    async def produce(
        self, call: ProduceCall, turn: AbstractAsyncContextManager[object] | None = None
    ) -> log_pb2.ProduceResponse:
        """Append one batch, here or at its leader, and wait until it is on disk on a majority.

        Args:
            turn: held until the batch is on its way: keeps a stream's requests to one partition in order.

        Raises:
            FluxError: REJECTED or UNKNOWN, by its reason.
        """
        if turn is None:
            started: asyncio.Future[ProduceAnswer] = asyncio.get_running_loop().create_future()
            if self.start(call, partial(_settle, started)):
                return _value(await started)
        arrived = self._reactor.now()
        timeout_ms = _check_fields(call)
        ticket = self._admission.admit(call.connection, len(call.raw) + limits.REQUEST_OVERHEAD_BYTES)
        handed_on = False
        try:
            async with turn or nullcontext():
                route = await self._routes.find(call.topic, call.partition, call.topic_id)
                if route.topic.internal:
                    raise FluxError(Reason.PERMISSION_DENIED, f"topic {call.topic} belongs to the cluster")
                leader = await self._routes.await_leader(route, arrived + LEADER_WAIT - self._reactor.now())
                group = self._routes.leading(route)
                if group is not None:
                    future = self._append(group, call, ticket)
                    handed_on = True
                elif call.forwarded or leader.node_id == self._routes.node_id:
                    raise self._not_leader(route)
                else:
                    future = self._pass_on(route, leader.node_id, call)
            answer = await self._await(future, route, arrived + timeout_ms / 1000 - self._reactor.now(), timeout_ms)
        finally:
            if not handed_on:
                ticket.release()
        return _value(self._routes.named(answer, route) if isinstance(answer, FluxError) else answer)

    def _not_leader(self, route: Route) -> FluxError:
        error = FluxError(Reason.NOT_LEADER, f"node {self._routes.node_id} does not lead {route.name}")
        return self._routes.named(error, route)

    def _append(self, group: Group, call: ProduceCall, ticket: Ticket) -> asyncio.Future[ProduceAnswer]:
        """Check the batch and hand it to this node's own leader. The ticket is released when Raft has answered."""
        future: asyncio.Future[ProduceAnswer] = asyncio.get_running_loop().create_future()
        self._submit(group, call, ticket, partial(_settle, future))
        return future

    def _submit(
        self, group: Group, call: ProduceCall, ticket: Ticket, answered: Callable[[ProduceAnswer], None]
    ) -> None:
        batch, info = _checked(call, self._reactor.wall_ms())

        def done(result: AppendResult) -> None:
            ticket.release()
            answered(self._response(result))

        group.submit(
            Append(
                batch,
                info.record_count,
                done,
                producer_id=info.producer_id,
                base_sequence=info.base_sequence,
                expected_offset=None if call.expected_offset is None else Offset(call.expected_offset),
            )
        )

    def _pass_on(self, route: Route, node: NodeId, call: ProduceCall) -> asyncio.Future[ProduceAnswer]:
        """Hand the request to another node. It is given up, UNKNOWN, when that one has been replaced as the leader."""
        future = self._forwarder.produce(node, bytes(call.raw))
        hop = _Hop(node, future)
        hops = self._hops.setdefault(route.group_id, {})
        hops[hop] = None

        def forget(_: object) -> None:
            hops.pop(hop, None)
            if not hops and self._hops.get(route.group_id) is hops:
                del self._hops[route.group_id]

        future.add_done_callback(forget)
        return future

    def _leader_changed(self, group_id: GroupId) -> None:
        hops = self._hops.get(group_id)
        leader = self._routes.leader_of_group(group_id) if hops else None
        if hops and leader is not None and any(hop.node != leader for hop in hops):
            when = self._reactor.now() + _REPLACED_GRACE
            self._reactor.call_at(when, lambda: self._give_up(group_id))

    def _give_up(self, group_id: GroupId) -> None:
        leader = self._routes.leader_of_group(group_id)  # it may have come back
        for hop in tuple(self._hops.get(group_id, ())):
            if leader is not None and hop.node != leader and not hop.future.done():
                why = f"passed on to node {hop.node}, which did not answer until node {leader} had become the leader"
                hop.future.set_result(FluxError(Reason.OUTCOME_UNKNOWN, why))

    def _response(self, result: AppendResult) -> ProduceAnswer:
        if not isinstance(result, Committed):
            return result
        return log_pb2.ProduceResponse(
            base_offset=result.base_offset,
            record_count=result.record_count,
            leader_epoch=result.leader_epoch,
            copies_on_disk=result.copies_on_disk,
            duplicate=result.duplicate,
            leader=self._routes.own_hint(result.leader_epoch),
        )

    async def _await(
        self, future: asyncio.Future[ProduceAnswer], route: Route, seconds: float, timeout_ms: int
    ) -> ProduceAnswer:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                return await future
        except TimeoutError:
            return _timed_out(route, timeout_ms)


class _Waiting:
    """Passes on one answer: the commit's, or that it did not come in time."""

    __slots__ = ("_answered", "_route", "_routes", "_timeout_ms", "_timer")

    def __init__(
        self, routes: Routes, route: Route, timeout_ms: int, answered: Callable[[ProduceAnswer], None]
    ) -> None:
        self._routes, self._route, self._timeout_ms = routes, route, timeout_ms
        self._answered: Callable[[ProduceAnswer], None] | None = answered
        self._timer: Timer | None = None

    def limit(self, reactor: Reactor) -> None:
        """Wait no longer than the timeout from now on."""
        if self._answered is not None:
            deadline = reactor.now() + self._timeout_ms / 1000
            self._timer = reactor.call_at(deadline, lambda: self.answer(_timed_out(self._route, self._timeout_ms)))

    def answer(self, answer: ProduceAnswer) -> None:
        """The first one counts."""
        answered, self._answered = self._answered, None
        if answered is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        answered(self._routes.named(answer, self._route) if isinstance(answer, FluxError) else answer)


def _settle(future: asyncio.Future[ProduceAnswer], answer: ProduceAnswer) -> None:
    if not future.done():
        future.set_result(answer)


def _value(answer: ProduceAnswer) -> log_pb2.ProduceResponse:
    if isinstance(answer, FluxError):
        raise answer
    return answer


def _timed_out(route: Route, timeout_ms: int) -> FluxError:
    return FluxError(
        Reason.TIMEOUT, f"{route.name} did not confirm the batch within {timeout_ms} ms; it may still be written"
    )


def _check_fields(call: ProduceCall) -> int:
    """Bounds of the small fields; returns the timeout."""
    if call.timeout_ms > limits.PRODUCE_TIMEOUT_MS_MAX:
        raise _invalid(f"timeout_ms {call.timeout_ms} is above {limits.PRODUCE_TIMEOUT_MS_MAX}")
    if len(call.topic_id) not in (0, TOPIC_ID_BYTES):
        raise _invalid(f"topic_id has {len(call.topic_id)} bytes, not {TOPIC_ID_BYTES}")
    if bool(call.batch) == bool(call.records):
        raise _invalid("either batch or records must be given, and not both")
    return call.timeout_ms or limits.PRODUCE_TIMEOUT_MS_DEFAULT


def _checked(call: ProduceCall, now_ms: int) -> tuple[bytes | memoryview, BatchInfo]:
    """The batch to append, checked. Raises FluxError, REJECTED."""
    if call.records:
        batch = batch_from_records(call.records, call.producer_id, call.base_sequence, now_ms)
        return batch, BatchInfo(len(call.records), call.producer_id, call.base_sequence)
    if call.producer_id or call.base_sequence:
        raise _invalid("producer_id and base_sequence of a batch stand inside it")
    if call.batch_crc32c is not None and (actual := crc32c(call.batch)) != call.batch_crc32c:
        raise FluxError(
            Reason.WRONG_CHECKSUM,
            f"batch_crc32c is {call.batch_crc32c:#010x}, the {len(call.batch)} bytes that arrived have {actual:#010x}",
        )
    return call.batch, check_batch(call.batch)


def _invalid(message: str) -> FluxError:
    return FluxError(Reason.INVALID_ARGUMENT, message)
