"""Fetch and Follow: committed entries from an offset, from any replica up to the high watermark that it knows.

A committed prefix is always true, so no leadership is needed to serve one, and reads go on without a quorum. What lies
outside of what this replica knows is another matter: an offset above its high watermark may be committed at the leader,
so the leader is asked, and only a leader that has just confirmed itself with a majority says OFFSET_OUT_OF_RANGE. That
an offset lies below the log start is true on any replica that knows it: the start has moved with a committed entry.

Frames go out as they stand in the file; nothing here parses a batch, except for clients that ask for plain records.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from fluxd.broker.answer import answer_of
from fluxd.broker.forward import Forwarder
from fluxd.broker.routes import LEADER_WAIT, Route, Routes
from fluxd.broker.waiting import WaitingRoom
from fluxd.core import limits
from fluxd.core.batch import UndecodableBatchError, records_from_frames
from fluxd.core.entry import PREFIX_BYTES, read_stamp
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxd.core.runtime import ReadingReactor
from fluxd.core.types import TOPIC_ID_BYTES, NodeId, Offset
from fluxd.raft.group import Group
from fluxd.storage.reader import FrameBlock
from fluxlog.v1 import log_pb2, record_pb2

FETCH = "/fluxlog.v1.Log/Fetch"
FOLLOW = "/fluxlog.v1.Log/Follow"
_HOP_SLACK = 5.0
_OFFSET_GROUPS = 9
"""Of seven bits: offsets have less than 64."""


@dataclass(frozen=True, slots=True)
class FetchCall:
    """A FetchRequest or FollowRequest, and how it came. Zeros mean the defaults of log.proto."""

    topic: str
    partition: int
    offset: int
    max_bytes: int
    max_wait_ms: int
    min_bytes: int
    as_records: bool
    topic_id: bytes
    raw: bytes
    forwarded: bool

    @property
    def bytes_max(self) -> int:
        """Of frames, or of records, in a response; but it has at least one."""
        return self.max_bytes or limits.FETCH_BYTES_DEFAULT


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Committed frames, and what was known when they were chosen."""

    frames: FrameBlock
    status: bytes
    """An encoded FetchStatus, but for where to go on."""


class Fetching:
    """Serves Fetch and Follow."""

    def __init__(self, reactor: ReadingReactor, routes: Routes, forwarder: Forwarder, room: WaitingRoom) -> None:
        self._reactor = reactor
        self._routes = routes
        self._forwarder = forwarder
        self._room = room

    async def fetch(self, call: FetchCall) -> bytes:
        """Answer one Fetch: an encoded FetchResponse.

        Raises:
            FluxError: OFFSET_OUT_OF_RANGE, UNKNOWN_TOPIC, NO_LEADER, …
        """
        _check_fields(call)
        deadline = self._reactor.now() + call.max_wait_ms / 1000
        route = await self._routes.find(call.topic, call.partition, call.topic_id)
        group = await self._local(route, call)
        if group is None:
            node = await self._elsewhere(route, call)
            timeout_s = call.max_wait_ms / 1000 + _HOP_SLACK
            return await self._forwarder.unary(node, FETCH, call.raw, timeout_s=timeout_s, writes=False)
        seen = group.high_watermark
        chunk = await self._read(route, group, Offset(call.offset), call.bytes_max)
        wanted = min(max(call.min_bytes, 1), call.bytes_max)
        while chunk.frames.size < wanted and (left := deadline - self._reactor.now()) > 0:
            # What was committed while it was read wakes nobody.
            if group.high_watermark == seen and not await self._room.wait(group, left):
                break
            group = self._still_served(route)
            seen = group.high_watermark
            chunk = await self._read(route, group, Offset(call.offset), call.bytes_max)
        response, _ = await self._encode(route, chunk, call, Offset(call.offset))
        return response

    async def follow(self, call: FetchCall) -> AsyncIterator[bytes]:
        """Answer a Follow: encoded FetchResponses, for as long as they are taken.

        Raises:
            FluxError: as `fetch`; also in the middle, when the partition is deleted or this replica stops.
        """
        _check_fields(call)
        route = await self._routes.find(call.topic, call.partition, call.topic_id)
        group = await self._local(route, call)
        if group is None:
            node = await self._elsewhere(route, call)
            async for response in self._forwarder.stream(node, FOLLOW, call.raw):
                yield response
            return
        offset = Offset(call.offset)
        while True:
            seen = group.high_watermark
            chunk = await self._read(route, group, offset, call.bytes_max)
            if chunk.frames.size:
                response, offset = await self._encode(route, chunk, call, offset)
                yield response
            elif group.high_watermark == seen:
                await self._room.wait(group, None)
            group = self._still_served(route)

    # ---- where

    async def _local(self, route: Route, call: FetchCall) -> Group | None:
        """This node's replica if it can answer; None when another node has to.

        Raises:
            FluxError: OFFSET_OUT_OF_RANGE, from a confirmed leader; or there is nobody who could tell.
        """
        group = self._routes.replica(route)
        if group is None or group.log_start_offset <= call.offset <= group.high_watermark:
            return group
        if call.offset < group.log_start_offset:
            raise _out_of_range(route, group, call.offset)  # that the start has moved is committed: true anywhere
        if self._routes.leading(route) is not None:
            await self._confirm(group, route)
            if group.log_start_offset <= call.offset <= group.high_watermark:
                return group
            raise _out_of_range(route, group, call.offset)
        leader = self._routes.leader(route)
        if not call.forwarded and leader is not None and leader.node_id != self._routes.node_id:
            return None
        return group  # it may become committed: wait for it, and answer "nothing yet" if it does not

    async def _confirm(self, group: Group, route: Route) -> None:
        error = await answer_of(group.read_index)
        if error is not None:
            raise self._routes.named(error, route)

    async def _elsewhere(self, route: Route, call: FetchCall) -> NodeId:
        """Another node that can answer: the leader, or without one any replica.

        Raises:
            FluxError: nobody.
        """
        if call.forwarded:
            raise self._routes.named(
                FluxError(
                    Reason.REPLICA_OFFLINE, f"node {self._routes.node_id} has no replica of {route.name} to read"
                ),
                route,
            )
        try:
            leader = await self._routes.await_leader(route, LEADER_WAIT)
        except FluxError:
            reachable = self._routes.reachable_replicas(route)
            if not reachable:
                raise
            return reachable[0]
        if leader.node_id == self._routes.node_id:
            raise self._routes.refusal(route)
        return leader.node_id

    def _still_served(self, route: Route) -> Group:
        group = self._routes.replica(route)
        if not self._routes.is_current(route):
            raise FluxError(Reason.UNKNOWN_TOPIC, f"topic {route.topic.name} was deleted")
        if group is None:
            raise self._routes.named(
                FluxError(Reason.REPLICA_OFFLINE, f"the replica of {route.name} on this node has stopped"), route
            )
        return group

    # ---- what

    async def _read(self, route: Route, group: Group, offset: Offset, max_bytes: int) -> _Chunk:
        if offset < group.log_start_offset:
            raise _out_of_range(route, group, offset)  # retention was faster than this reader
        status = log_pb2.FetchStatus(
            high_watermark=group.high_watermark,
            log_start_offset=group.log_start_offset,
            leader=self._routes.hint(route),
            served_by=self._routes.node_id,
        ).SerializeToString()
        room = len(_head(status, offset))
        if offset >= group.high_watermark:
            # Entries without records may stand there: they would be answered again and again.
            return _Chunk(FrameBlock.of(b"", room, offset), status)
        log = group.log
        try:
            plan = log.plan_read(offset, max_bytes=max_bytes, end_index=group.commit_index)
            if isinstance(plan, bytes):
                return _Chunk(FrameBlock.of(plan, room, _end_of(plan, offset)), status)
            frames = plan.read_if_cached(room)
            if frames is None:
                frames = await self._reactor.read(partial(plan.read, room))
        except (OSError, ValueError, CorruptDataError) as error:
            if offset < group.log_start_offset:  # its segment went while it was being read
                raise _out_of_range(route, group, offset) from error
            group.read_failed(error, log)
            raise FluxError(
                Reason.REPLICA_OFFLINE, f"{route.name} cannot be read at offset {offset} on this node: {error}"
            ) from error
        return _Chunk(frames, status)

    async def _encode(self, route: Route, chunk: _Chunk, call: FetchCall, offset: Offset) -> tuple[bytes, Offset]:
        """An encoded FetchResponse, and where to go on."""
        frames, next_offset = chunk.frames, chunk.frames.next_offset
        response = frames.behind(_head(chunk.status, next_offset))
        if not call.as_records:
            return response, next_offset
        records = await self._records(route, memoryview(response)[frames.room :], offset, call.bytes_max)
        if records:
            next_offset = Offset(records[-1].offset + 1)
        body = log_pb2.FetchResponse(records=records).SerializeToString()
        return _head(chunk.status, next_offset) + body, next_offset

    async def _records(
        self, route: Route, frames: memoryview, offset: Offset, max_bytes: int
    ) -> list[record_pb2.Record]:
        try:
            records = await self._reactor.read(lambda: records_from_frames(frames, offset, bytes_max=max_bytes))
        except UndecodableBatchError as error:
            raise _not_plain(Reason.CORRUPT_BATCH, route, str(error), error.base_offset, error.next_offset) from error
        except CorruptDataError as error:
            raise FluxError(
                Reason.REPLICA_OFFLINE, f"what this node has at offset {offset} is damaged: {error}"
            ) from error
        if records and (size := records[0].ByteSize()) > limits.PLAIN_RECORD_BYTES_MAX:  # then it is the only one
            first = records[0].offset
            why = (
                f"the record at offset {first} has {size} bytes, at most {limits.PLAIN_RECORD_BYTES_MAX} are delivered "
                "as a plain record: read it as an entry"
            )
            raise _not_plain(Reason.BATCH_TOO_LARGE, route, why, first, first + 1)
        return records


def _not_plain(reason: Reason, route: Route, why: str, base_offset: int, next_offset: int) -> FluxError:
    """What stands here cannot be delivered as plain records, now or later."""
    return FluxError(
        reason,
        f"{route.name}: {why}; go on at offset {next_offset}",
        metadata={"partition": route.name, "base_offset": str(base_offset), "next_offset": str(next_offset)},
    )


def _head(status: bytes, next_offset: Offset) -> bytes:
    """A FetchResponse up to its entries, of the same length for every offset: so there can be room for it before it is
    known. (An encoded message is its fields one after another, and a varint may be padded.)

    Args:
        status: encoded, without next_offset.
    """
    length = len(status) + 1 + _OFFSET_GROUPS
    status_field = bytes((0x0A, length & 0x7F | 0x80, length >> 7))
    padded = [next_offset >> shift & 0x7F | 0x80 for shift in range(0, 7 * _OFFSET_GROUPS, 7)]
    padded[-1] &= 0x7F
    return b"".join((status_field, status, b"\x18", bytes(padded)))


def _out_of_range(route: Route, group: Group, offset: int) -> FluxError:
    return FluxError(
        Reason.OFFSET_OUT_OF_RANGE,
        f"offset {offset} is not in {group.log_start_offset}..{group.high_watermark} of {route.name}",
        metadata={
            "partition": route.name,
            "log_start_offset": str(group.log_start_offset),
            "high_watermark": str(group.high_watermark),
        },
    )


def _end_of(frames: bytes, offset: Offset) -> Offset:
    """First offset after whole frames; only lengths are read on the way to the last one."""
    position, last, end = 0, -1, len(frames)
    while position < end:
        last = position
        head = frames[position : position + PREFIX_BYTES]
        length = head[1] & 0x7F | (head[2] & 0x7F) << 7 | (head[3] & 0x7F) << 14 | head[4] << 21
        position += PREFIX_BYTES + length
    return offset if last < 0 else read_stamp(frames, last).next_offset


def _check_fields(call: FetchCall) -> None:
    for name, value, bound in (
        ("max_bytes", call.max_bytes, limits.FETCH_BYTES_MAX),
        ("max_wait_ms", call.max_wait_ms, limits.FETCH_WAIT_MS_MAX),
    ):
        if value > bound:
            raise FluxError(Reason.INVALID_ARGUMENT, f"{name} {value} is above {bound}")
    if len(call.topic_id) not in (0, TOPIC_ID_BYTES):
        raise FluxError(Reason.INVALID_ARGUMENT, f"topic_id has {len(call.topic_id)} bytes, not {TOPIC_ID_BYTES}")
