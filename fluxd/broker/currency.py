"""Makes this node's metadata current: at least what was committed when it was asked for.

The end of the metadata log comes from its leader, which makes sure with a majority that it is one (read index): here,
or by ListOffsets on the node that leads. Then this node's own follower has to get there.

A node whose own replica of the metadata does not take part, or that has none, fetches the log from the leader
(`fetch_metadata`).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from fluxd.broker.answer import answer_of
from fluxd.broker.cluster import ClusterView
from fluxd.broker.controller import MetadataGroup
from fluxd.broker.metadata import MetadataFollower
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_from_message
from fluxd.core.types import METADATA_TOPIC, NodeId, Offset
from fluxd.observability import get_logger
from fluxd.raft.spec import Role
from fluxlog.v1 import log_pb2

log = get_logger()

_HOP_TIMEOUT = 1.0
_FETCH_WAIT_MS = 5_000
_RETRY_AFTER = 0.5


class Calls(Protocol):
    """Calls to other nodes."""

    async def unary(self, node: NodeId, method: str, request: bytes, *, timeout_s: float, writes: bool) -> bytes:
        """Pass on one call."""


class MetadataCurrency:
    """See the module.

    Args:
        group: this node's replica of the metadata group, if it has one.
    """

    def __init__(
        self, view: ClusterView, follower: MetadataFollower, group: MetadataGroup | None, calls: Calls
    ) -> None:
        self._view, self._follower, self._calls = view, follower, calls
        self.group = group
        """Replaced when a copy has become this node's replica."""
        self._lock = asyncio.Lock()
        self._rounds = 0
        self._last_error: FluxError | None = None

    async def refresh(self) -> None:
        """As `confirm`, but what this node knows is good enough where that fails, or takes over NO_QUORUM_ANSWER."""
        try:
            async with asyncio.timeout(limits.NO_QUORUM_ANSWER):
                await self.confirm()
        except (FluxError, TimeoutError):
            pass

    async def confirm(self) -> None:
        """Return once the image holds all that was committed before the call. Calls at the same time share one round.

        Raises:
            FluxError: nobody could be asked, or not in time. Retriable.
        """
        asked_at = self._rounds
        async with self._lock:
            if self._rounds == asked_at:  # else a round that began after this call has ended meanwhile
                self._rounds += 1
                self._last_error = FluxError(Reason.NO_CONTROLLER, "the metadata could not be confirmed in time")
                try:
                    async with asyncio.timeout(2 * _HOP_TIMEOUT):
                        await self._follower.wait_applied(await self._latest())
                    self._last_error = None
                except TimeoutError:
                    pass
                except FluxError as error:
                    self._last_error = error
            if self._last_error is not None:
                raise self._last_error

    async def confirm_at_last(self) -> None:
        """`confirm`, tried until it succeeds."""
        while True:
            try:
                await self.confirm()
                return
            except FluxError:
                await asyncio.sleep(_RETRY_AFTER)

    async def fetch_metadata(self) -> None:
        """Whenever this node's own replica takes no part: keep the follower up to date from the leader, until
        cancelled.
        """
        while True:
            await self._own_replica_out()
            self._follower.leave_replica()
            while (group := self.group) is None or group.role is Role.FAILED:
                try:
                    await self._fetch_once()
                except FluxError as error:
                    if not self._is_trimmed(error):
                        log.debug("metadata_fetch_failed", reason=error.reason.name, message=error.message)
                        await asyncio.sleep(_RETRY_AFTER)
            self._follower.follow(group)

    async def _own_replica_out(self) -> None:
        """Return when there is no replica here, or it has stopped itself."""
        group = self.group
        if group is None:
            return
        changed = asyncio.Event()
        group.on_role.append(changed.set)
        try:
            while group.role is not Role.FAILED:
                await changed.wait()
                changed.clear()
        finally:
            group.on_role.remove(changed.set)

    async def _latest(self) -> Offset:
        group = self.group
        if group is not None and group.role is Role.LEADER:
            error = await answer_of(group.read_index)
            if error is not None:
                raise error
            return group.high_watermark
        query = log_pb2.OffsetQuery(topic=METADATA_TOPIC, partition=0, latest=True)
        request = log_pb2.ListOffsetsRequest(queries=[query])
        answer = await self._calls.unary(
            self._controller(),
            "/fluxlog.v1.Log/ListOffsets",
            request.SerializeToString(),
            timeout_s=_HOP_TIMEOUT,
            writes=False,
        )
        result = log_pb2.ListOffsetsResponse.FromString(answer).results[0]
        if result.HasField("error"):
            raise error_from_message(result.error)
        return Offset(result.found.offset)

    async def _fetch_once(self) -> None:
        request = log_pb2.FetchRequest(
            topic=METADATA_TOPIC, offset=self._follower.position, max_wait_ms=_FETCH_WAIT_MS, as_records=True
        )
        answer = await self._calls.unary(
            self._controller(),
            "/fluxlog.v1.Log/Fetch",
            request.SerializeToString(),
            timeout_s=_FETCH_WAIT_MS / 1000 + _HOP_TIMEOUT,
            writes=False,
        )
        self._follower.feed(log_pb2.FetchResponse.FromString(answer).records)

    def _is_trimmed(self, error: FluxError) -> bool:
        """What the follower would read next is gone: from now on it looks for the state behind it."""
        before = self._follower.position
        if error.reason is Reason.OFFSET_OUT_OF_RANGE:
            self._follower.begin_behind(Offset(int(error.metadata.get("log_start_offset", "0"))))
        return self._follower.position > before

    def _controller(self) -> NodeId:
        hint = self._view.controller()
        if hint is None or hint.node_id == self._view.local.node_id:
            raise FluxError(
                Reason.NO_CONTROLLER, "no controller is known: an election is under way, or it lacks a majority"
            )
        return hint.node_id
