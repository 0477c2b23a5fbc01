"""One partition's committed entries, streamed from a replica; another is asked when that one fails.

What comes is handed on in order and without a gap: after a failure the stream begins again at the next offset wanted.
When no node serves the partition, its new leader is told (fluxlog/lost_leaders.py); beside that the nodes are asked
again, with pauses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc import aio

from fluxlog.aio.connection import Connection
from fluxlog.aio.consumed import TopicPartition
from fluxlog.aio.leader_watch import LeaderNews
from fluxlog.aio.room import Room
from fluxlog.aio.tasks import was_cancelled
from fluxlog.entry import CorruptResponseError, FetchedBatch, batches_of, parse_response
from fluxlog.errors import FluxlogError, from_rpc_error
from fluxlog.lost_leaders import LostLeader
from fluxlog.v1 import log_pb2

_FOLLOW = "/fluxlog.v1.Log/Follow"
_BACKOFF_MIN = 0.02
_BACKOFF_MAX = 0.5
# A node may not have heard yet of a new topic.
_DOUBTFUL = frozenset({"UNKNOWN_TOPIC", "UNKNOWN_PARTITION"})
_DOUBT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """One response: whole entries from the wanted offset on."""

    batches: list[FetchedBatch]
    next_offset: int
    high_watermark: int
    """Exclusive, as far as the node that answered knew."""
    size: int
    """Bytes, taken from the room; whoever gets this gives them back."""


class Following:
    """Follows one partition until it is stopped, or fails for good.

    Args:
        target: address to begin with.
        leaders: tells a new leader.
        room: bounds what has arrived and was not taken, over all partitions.
        on_arrived: called with each response, in order.
        on_trouble: called when nobody serves the partition at the moment (an error), and when it is served again
            (None).
        on_failed: called once with an error that does not pass; following has ended then.
    """

    def __init__(
        self,
        connection: Connection,
        where: TopicPartition,
        topic_id: bytes,
        offset: int,
        *,
        target: str,
        leaders: LeaderNews,
        room: Room,
        max_bytes: int,
        on_arrived: Callable[[Following, Arrived], None],
        on_trouble: Callable[[Following, FluxlogError | None], None],
        on_failed: Callable[[Following, FluxlogError], None],
    ) -> None:
        self._connection, self.where, self._topic_id = connection, where, topic_id
        self.offset = offset
        """Next one wanted from the node."""
        self.heard_at = time.monotonic()
        self.suspect_offset = -1
        """There should have been something at this offset already (see Feed)."""
        self._target, self._leaders, self._room, self._max_bytes = target, leaders, room, max_bytes
        self._lost = LostLeader(where.topic, where.partition)
        self._on_arrived, self._on_trouble, self._on_failed = on_arrived, on_trouble, on_failed
        self._call: aio.UnaryStreamCall[log_pb2.FollowRequest, bytes] | None = None
        self._stopped = self._leaving = self._waits_for_room = False
        self._failures = 0
        self._doubted_since = 0.0
        self._task: asyncio.Task[None] | None = None

    def started(self, task: asyncio.Task[None]) -> None:
        """The task that runs `run`."""
        self._task = task

    def stop(self) -> None:
        """End it; nothing is handed on any more."""
        self._stopped = True
        if self._call is not None and not self._waits_for_room:
            self._call.cancel()  # not the task: gRPC's operations are to end before it
        elif self._task is not None:
            self._task.cancel()

    def leave_node(self) -> None:
        """Ask another node: this one knows less than there is."""
        self._leaving = True
        if self._call is not None:
            self._call.cancel()

    async def run(self) -> None:
        """Follow."""
        while not self._stopped:
            try:
                await self._read()
                self._target = self._connection.next_address(self._target)  # told to leave the node
            except FluxlogError as failure:
                if not await self._went_on(failure):
                    return

    async def _read(self) -> None:
        """Read one stream until it ends; returns when this node is to be left.

        Raises:
            FluxlogError: it ended for another reason.
        """
        request = log_pb2.FollowRequest(
            topic=self.where.topic, partition=self.where.partition, offset=self.offset, max_bytes=self._max_bytes,
            topic_id=self._topic_id,
        )  # fmt: skip
        # The answer's own bytes, since its checksums are over them.
        method: aio.UnaryStreamMultiCallable[log_pb2.FollowRequest, bytes] = self._connection.node(
            self._target
        ).channel.unary_stream(_FOLLOW, log_pb2.FollowRequest.SerializeToString)
        try:
            self._call = call = method(request)
        except aio.UsageError as error:
            raise FluxlogError("CANCELLED", str(error)) from error
        try:
            while isinstance(data := await call.read(), bytes):
                if self._stopped:
                    return
                await self._take(data)
        except asyncio.CancelledError:
            if self._leaving or self._stopped:
                self._leaving = False
                return
            if was_cancelled():
                raise
            closed = (
                f"the connection to {self._target} was closed while {self.where.topic}-{self.where.partition} was read"
            )
            raise FluxlogError("CANCELLED", closed, address=self._target) from None
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=self._target) from error
        finally:
            call.cancel()
            self._call = None
        raise FluxlogError("UNAVAILABLE", f"{self._target} ended the stream", retriable=True, address=self._target)

    async def _take(self, data: bytes) -> None:
        try:
            response = parse_response(data)
        except CorruptResponseError as error:
            corrupt = f"{self._target} sent {self.where.topic}-{self.where.partition} damaged: {error}"
            raise FluxlogError("CORRUPT_RESPONSE", corrupt, retriable=True, address=self._target) from error
        if self._failures:
            self._on_trouble(self, None)
        self._failures, self._doubted_since, self.heard_at = 0, 0.0, time.monotonic()
        status = response.status
        if status.leader.address:
            self._connection.remember([status.leader.address])
            self._lost.note(status.leader.leader_epoch)
        batches = list(batches_of(response.entries, self.offset))
        if not self._room.try_take(len(data)):
            self._waits_for_room = True
            try:
                await self._room.take(len(data))
            finally:
                self._waits_for_room = False
        if self._stopped:
            self._room.give(len(data))
            return
        self.offset = max(status.next_offset, self.offset)
        self._on_arrived(self, Arrived(batches, self.offset, status.high_watermark, len(data)))

    async def _went_on(self, failure: FluxlogError) -> bool:
        """After a pause; False: there is no going on."""
        if self._stopped:
            return False
        if not self._may_pass(failure):
            self._on_failed(self, failure)
            return False
        await self._back_off(failure)
        return True

    def _may_pass(self, failure: FluxlogError) -> bool:
        if failure.reason in _DOUBTFUL:
            now = time.monotonic()
            self._doubted_since = self._doubted_since or now
            return now - self._doubted_since < _DOUBT_SECONDS
        return failure.retriable

    async def _back_off(self, failure: FluxlogError) -> None:
        self._failures += 1
        self._lost.avoid = "" if failure.from_server else self._target
        nodes = len(self._connection.addresses())
        if self._failures > nodes:
            self._on_trouble(self, failure)
        wait = min(_BACKOFF_MIN * 2 ** min(self._failures, 8), _BACKOFF_MAX)
        wait = max(wait, failure.retry_after_ms / 1000)
        leader = failure.leader_address
        if leader and leader != self._target:
            self._connection.remember([leader])
            self._target = leader
        else:
            self._target = self._connection.next_address(self._target)
            if self._failures >= nodes:
                leader = await self._leaders.wait(self._lost, wait)
                if leader:  # if it does not answer yet, the others are to be asked soon
                    self._target, self._failures = leader, 1
                return
        await asyncio.sleep(wait)
