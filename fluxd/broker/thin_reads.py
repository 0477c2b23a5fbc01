"""What thin consumers read: where a partition begins for one, and the records from there on, wherever they are.

What fails is tried again, since partitions move, nodes start again and topics go: a member hears of what it has lost
from its coordinator. Only what would fail for ever is told: records that cannot be delivered as plain ones.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from fluxd.broker.fetch import FetchCall
from fluxd.broker.thin_partition import ThinPartition
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_from_message
from fluxd.observability import get_logger
from fluxlog.v1 import consume_pb2, groups_pb2, log_pb2

log = get_logger()

_RETRY = 0.1
_FETCH_WAIT_MS = 5_000
_FETCH_BYTES = 256 * limits.KIB
_WARN_INTERVAL = 60.0
_WARNINGS_REMEMBERED = 1_000

T = TypeVar("T")


class Fetches(Protocol):
    """Reads: `Fetching`."""

    async def fetch(self, call: FetchCall) -> bytes: ...


class Offsets(Protocol):
    """Where partitions begin and end: `ListingOffsets`."""

    async def list_offsets(
        self, request: log_pb2.ListOffsetsRequest, *, forwarded: bool
    ) -> log_pb2.ListOffsetsResponse: ...


class ThinReads:
    """See the module."""

    def __init__(self, fetches: Fetches, offsets: Offsets) -> None:
        self._fetches, self._offsets = fetches, offsets
        self._warned: dict[tuple[str, bytes, int], float] = {}
        """When there was a warning of a group's partition."""

    async def begin(self, assignment: groups_pb2.Assignment, start_at: consume_pb2.StartAt.ValueType) -> int:
        """Where to begin: what is committed, else an end of the partition."""
        if assignment.HasField("committed_offset"):
            return assignment.committed_offset
        latest = start_at == consume_pb2.START_AT_LATEST
        return await _patiently(lambda: self._end_of(assignment.partition, latest=latest))

    async def fetch(self, group: str, owned: ThinPartition, *, as_batches: bool) -> log_pb2.FetchResponse:
        """What comes next; empty after a while when nothing does. Where records were removed before this group had read
        them, it goes on at the first one that is kept.

        Raises:
            FluxError: what comes next can never be delivered as plain records; metadata base_offset and next_offset.
        """
        try:
            return await _patiently(lambda: self._fetch(owned, as_batches=as_batches))
        except FluxError as error:
            self._warn(group, owned.partition, error)
            raise

    async def _fetch(self, owned: ThinPartition, *, as_batches: bool) -> log_pb2.FetchResponse:
        where = owned.partition
        request = log_pb2.FetchRequest(
            topic=where.topic, partition=where.partition, offset=owned.position, max_bytes=_FETCH_BYTES,
            max_wait_ms=_FETCH_WAIT_MS, as_records=not as_batches, topic_id=where.topic_id,
        )  # fmt: skip
        call = FetchCall(
            where.topic, where.partition, owned.position, _FETCH_BYTES, _FETCH_WAIT_MS, 0, request.as_records,
            where.topic_id, request.SerializeToString(), forwarded=False,
        )  # fmt: skip
        try:
            return log_pb2.FetchResponse.FromString(await self._fetches.fetch(call))
        except FluxError as error:
            if error.reason is Reason.OFFSET_OUT_OF_RANGE:
                owned.position = max(owned.position, await self._end_of(where, latest=False))
            raise

    def _warn(self, group: str, where: groups_pb2.TopicPartition, error: FluxError) -> None:
        """Once a minute for each partition of a group, however often clients come back to it."""
        now, key = asyncio.get_running_loop().time(), (group, where.topic_id, where.partition)
        if now < self._warned.get(key, -math.inf) + _WARN_INTERVAL:
            return
        if len(self._warned) >= _WARNINGS_REMEMBERED:
            self._warned.clear()
        self._warned[key] = now
        log.warning(
            "records_undeliverable",
            group=group,
            partition=f"{where.topic}-{where.partition}",
            base_offset=error.metadata.get("base_offset"),
            next_offset=error.metadata["next_offset"],
            reason=error.reason.name,
            message=error.message,
        )

    async def _end_of(self, where: groups_pb2.TopicPartition, *, latest: bool) -> int:
        query = log_pb2.OffsetQuery(topic=where.topic, partition=where.partition)
        if latest:
            query.latest = True
        else:
            query.earliest = True
        answer = await self._offsets.list_offsets(log_pb2.ListOffsetsRequest(queries=[query]), forwarded=False)
        if answer.results[0].HasField("error"):
            raise error_from_message(answer.results[0].error)
        return answer.results[0].found.offset


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Try until it succeeds; the task that waits is cancelled when nobody wants it any more.

    Raises:
        FluxError: it never will: see `ThinReads.fetch`.
    """
    while True:
        try:
            return await work()
        except FluxError as error:
            if "next_offset" in error.metadata:
                raise
            log.debug("thin_read_failed", reason=error.reason.name, message=error.message)
        await asyncio.sleep(_RETRY)
