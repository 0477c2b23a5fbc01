"""ListOffsets: where a partition begins and ends, and where a time is, for many partitions in one call.

Answered by leaders that have just confirmed themselves with a majority. "Earliest" and times are also answered by any
replica when there is no leader: the log start and what was appended long ago are true anyway, and reads go on without a
quorum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fluxd.broker.answer import answer_of
from fluxd.broker.forward import Forwarder
from fluxd.broker.routes import LEADER_WAIT, Route, Routes
from fluxd.core import limits
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxd.core.runtime import ReadingReactor
from fluxd.core.status import error_message
from fluxd.core.types import NodeId
from fluxd.raft.group import Group
from fluxlog.v1 import log_pb2

LIST_OFFSETS = "/fluxlog.v1.Log/ListOffsets"
_HOP_TIMEOUT = 5.0
_CONCURRENT = 64


class ListingOffsets:
    """Serves ListOffsets."""

    def __init__(self, reactor: ReadingReactor, routes: Routes, forwarder: Forwarder) -> None:
        self._reactor = reactor
        self._routes = routes
        self._forwarder = forwarder

    async def list_offsets(
        self, request: log_pb2.ListOffsetsRequest, *, forwarded: bool
    ) -> log_pb2.ListOffsetsResponse:
        """One result per query, in order; what fails, fails for its partition alone.

        Raises:
            FluxError: INVALID_ARGUMENT: the number of queries.
        """
        queries = request.queries
        if not 1 <= len(queries) <= limits.LIST_OFFSETS_QUERIES_MAX:
            raise FluxError(
                Reason.INVALID_ARGUMENT, f"{len(queries)} queries are not 1..{limits.LIST_OFFSETS_QUERIES_MAX}"
            )
        results: list[log_pb2.OffsetResult | None] = [None] * len(queries)
        elsewhere: dict[NodeId, list[int]] = {}
        room = asyncio.Semaphore(_CONCURRENT)

        async def answer_here(number: int) -> None:
            async with room:
                answer = await self._answer(queries[number], forwarded=forwarded)
            if isinstance(answer, log_pb2.OffsetResult):
                results[number] = answer
            else:
                elsewhere.setdefault(answer, []).append(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(len(queries)):
                tasks.create_task(answer_here(number))
        async with asyncio.TaskGroup() as tasks:
            for node, numbers in elsewhere.items():
                tasks.create_task(self._ask(node, queries, numbers, results))
        return log_pb2.ListOffsetsResponse(results=[result for result in results if result is not None])

    async def _answer(self, query: log_pb2.OffsetQuery, *, forwarded: bool) -> log_pb2.OffsetResult | NodeId:
        """The result, or the node that has to be asked."""
        try:
            if query.WhichOneof("at") is None:
                raise FluxError(Reason.INVALID_ARGUMENT, "a query needs one of earliest, latest, time_ms")
            route = await self._routes.find(query.topic, query.partition, b"")
            return await self._answer_route(query, route, forwarded=forwarded)
        except FluxError as error:
            return _failed(query, error)

    async def _answer_route(
        self, query: log_pb2.OffsetQuery, route: Route, *, forwarded: bool
    ) -> log_pb2.OffsetResult | NodeId:
        group = self._routes.leading(route)
        if group is not None:
            error = await answer_of(group.read_index)
            if error is not None and query.HasField("latest"):
                raise self._routes.named(error, route)
            return await self._look(query, group)
        own = self._routes.replica(route)
        try:
            leader = await self._routes.await_leader(route, LEADER_WAIT)
        except FluxError:
            if query.HasField("latest"):
                raise
            if own is not None:
                return await self._look(query, own)
            reachable = self._routes.reachable_replicas(route)
            if forwarded or not reachable:
                raise
            return reachable[0]
        if leader.node_id == self._routes.node_id or forwarded:
            if own is not None and not query.HasField("latest"):
                return await self._look(query, own)
            error = FluxError(Reason.NOT_LEADER, f"node {self._routes.node_id} does not lead {route.name}")
            raise self._routes.named(error, route)
        return leader.node_id

    async def _look(self, query: log_pb2.OffsetQuery, group: Group) -> log_pb2.OffsetResult:
        found = log_pb2.OffsetFound(offset=group.high_watermark, leader_epoch=group.term)
        if query.HasField("earliest"):
            found.offset = group.log_start_offset
        elif query.HasField("time_ms"):
            log, commit_index, time_ms = group.log, group.commit_index, query.time_ms
            try:
                entry = await self._reactor.read(lambda: log.find_time(time_ms, commit_index))
            except (OSError, ValueError, CorruptDataError) as error:
                group.read_failed(error, log)
                raise FluxError(
                    Reason.REPLICA_OFFLINE, f"{query.topic}-{query.partition} cannot be read on this node: {error}"
                ) from error
            if entry is not None:
                found.offset, found.append_time_ms = entry
        return log_pb2.OffsetResult(topic=query.topic, partition=query.partition, found=found)

    async def _ask(
        self,
        node: NodeId,
        queries: Sequence[log_pb2.OffsetQuery],
        numbers: list[int],
        results: list[log_pb2.OffsetResult | None],
    ) -> None:
        request = log_pb2.ListOffsetsRequest(queries=[queries[number] for number in numbers]).SerializeToString()
        try:
            data = await self._forwarder.unary(node, LIST_OFFSETS, request, timeout_s=_HOP_TIMEOUT, writes=False)
            answers = log_pb2.ListOffsetsResponse.FromString(data).results
            for number, answer in zip(numbers, answers, strict=True):
                results[number] = answer
        except FluxError as error:
            for number in numbers:
                results[number] = _failed(queries[number], error)


def _failed(query: log_pb2.OffsetQuery, error: FluxError) -> log_pb2.OffsetResult:
    return log_pb2.OffsetResult(topic=query.topic, partition=query.partition, error=error_message(error, writes=False))
