"""What a thin consumer reads: where a partition begins for it, and the records from there on, wherever they are."""

from __future__ import annotations

from typing import Protocol

from fluxd.broker.fetch import FetchCall
from fluxd.broker.thin_partition import ThinPartition
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_from_message
from fluxlog.v1 import consume_pb2, groups_pb2, log_pb2

_FETCH_WAIT_MS = 5_000
_FETCH_BYTES = 256 * limits.KIB


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

    async def begin(self, assignment: groups_pb2.Assignment, start_at: consume_pb2.StartAt.ValueType) -> int:
        """Where to begin: what is committed, else an end of the partition.

        Raises:
            FluxError: it cannot be learned now.
        """
        if assignment.HasField("committed_offset"):
            return assignment.committed_offset
        return await self._end_of(assignment.partition, latest=start_at == consume_pb2.START_AT_LATEST)

    async def fetch(self, owned: ThinPartition, *, as_batches: bool) -> log_pb2.FetchResponse:
        """What comes next; empty after a while when nothing does.

        Raises:
            FluxError: not now. Where records were removed before this group had read them, the next call goes on at
            the first one that is kept.
        """
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
