"""Descriptions of consumer groups: state, members, and how far behind they are, in records and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from fluxd.broker.coordinator import Coordinator
from fluxd.broker.fetch import FetchCall
from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.groups import Group, Member
from fluxd.core.runtime import Reactor
from fluxd.core.types import GroupId as PartitionId
from fluxd.core.types import NodeId
from fluxlog.v1 import groups_pb2, log_pb2

_STUCK_MS = 30_000
"""A handler that takes longer than this while records wait is said to be stuck."""
_CONCURRENT = 16


class Offsets(Protocol):
    """Where partitions begin and end: `ListingOffsets`."""

    async def list_offsets(
        self, request: log_pb2.ListOffsetsRequest, *, forwarded: bool
    ) -> log_pb2.ListOffsetsResponse: ...


class Fetches(Protocol):
    """Reads: `Fetching`."""

    async def fetch(self, call: FetchCall) -> bytes: ...


class Describing:
    """See the module."""

    def __init__(self, reactor: Reactor, node_id: NodeId, offsets: Offsets, fetches: Fetches) -> None:
        self._reactor, self._node_id = reactor, node_id
        self._offsets, self._fetches = offsets, fetches

    def summary(self, coordinator: Coordinator, group: Group) -> groups_pb2.GroupSummary:
        """A group in a list."""
        return groups_pb2.GroupSummary(
            group=group.name,
            state=_state(coordinator, group),
            members=len(group.members),
            coordinator_node=self._node_id,
        )

    async def describe(self, coordinator: Coordinator, group: Group) -> groups_pb2.GroupDescription:
        """All that is known of a group. What partitions' leaders could not be asked for is missing, and said so."""
        out = groups_pb2.GroupDescription(
            group=group.name,
            state=_state(coordinator, group),
            coordinator_node=self._node_id,
            generation=group.generation,
            members=[_member(coordinator, group, member) for _, member in sorted(group.members.items())],
        )
        out.why = _why(coordinator, group, out.members)
        shown = sorted(group.offsets.keys() | group.owners.keys() | group.target.keys())
        ends = await self._ends([each for each in map(coordinator.named, shown) if each.topic])
        room = asyncio.Semaphore(_CONCURRENT)

        async def described(each: PartitionId) -> groups_pb2.GroupPartition:
            async with room:
                return await self._partition(coordinator.named(each), each, group, ends)

        out.partitions.extend(await asyncio.gather(*map(described, shown)))
        return out

    async def _ends(self, partitions: Sequence[groups_pb2.TopicPartition]) -> Mapping[tuple[str, int], tuple[int, int]]:
        """Log start and high watermark of each partition that could be asked."""
        queries = []
        for each in partitions:
            queries.append(log_pb2.OffsetQuery(topic=each.topic, partition=each.partition, earliest=True))
            queries.append(log_pb2.OffsetQuery(topic=each.topic, partition=each.partition, latest=True))
        results = list[log_pb2.OffsetResult]()
        for begin in range(0, len(queries), limits.LIST_OFFSETS_QUERIES_MAX):
            request = log_pb2.ListOffsetsRequest(queries=queries[begin : begin + limits.LIST_OFFSETS_QUERIES_MAX])
            results += (await self._offsets.list_offsets(request, forwarded=False)).results
        out = {}
        for first, last in zip(results[::2], results[1::2], strict=True):
            if first.HasField("found") and last.HasField("found"):
                out[first.topic, first.partition] = (first.found.offset, last.found.offset)
        return out

    async def _partition(
        self,
        named: groups_pb2.TopicPartition,
        each: PartitionId,
        group: Group,
        ends: Mapping[tuple[str, int], tuple[int, int]],
    ) -> groups_pb2.GroupPartition:
        out = groups_pb2.GroupPartition(partition=named)
        committed, owner = group.offsets.get(each), group.owners.get(each)
        if committed is not None:
            out.committed_offset, out.commit_time_ms = committed.offset, committed.commit_time_ms
        if owner is not None:
            out.owner_member_id = owner.member_id
        known = ends.get((named.topic, named.partition))
        if known is None:
            out.unknown_lag = True
            return out
        out.log_start_offset, out.high_watermark = known
        begin = max(known[0], committed.offset if committed is not None else 0)
        out.lag_records = max(0, known[1] - begin)
        if out.lag_records:
            out.lag_ms = await self._age_ms(named, begin)
        return out

    async def _age_ms(self, named: groups_pb2.TopicPartition, offset: int) -> int:
        """How long ago a record was appended; 0 where that cannot be found out now."""
        request = log_pb2.FetchRequest(topic=named.topic, partition=named.partition, offset=offset, max_bytes=1)
        call = FetchCall(
            named.topic, named.partition, offset, 1, 0, 0, as_records=False, topic_id=named.topic_id,
            raw=request.SerializeToString(), forwarded=False,
        )  # fmt: skip
        try:
            response = log_pb2.FetchResponse.FromString(await self._fetches.fetch(call))
        except FluxError:
            return 0
        if not response.entries:
            return 0
        return max(0, self._reactor.wall_ms() - response.entries[0].stamp.append_time_ms)


def _state(coordinator: Coordinator, group: Group) -> groups_pb2.GroupState.ValueType:
    if not group.members:
        return groups_pb2.GROUP_STATE_EMPTY
    return groups_pb2.GROUP_STATE_STABLE if coordinator.assigning.settled(group) else groups_pb2.GROUP_STATE_REBALANCING


def _member(coordinator: Coordinator, group: Group, member: Member) -> groups_pb2.MemberDescription:
    session = coordinator.session(group.name, member.member_id)
    away = coordinator.away_remaining_ms(group.name, member.member_id)
    return groups_pb2.MemberDescription(
        member_id=member.member_id,
        client_name=member.client_name,
        host=member.host,
        member_epoch=member.epoch,
        partitions=map(coordinator.named, sorted(group.owned(member.member_id))),
        away_remaining_ms=away,
        stuck_ms=session.stuck_ms if session is not None else 0,
        via_node=member.via_node,
    )


def _why(coordinator: Coordinator, group: Group, members: Sequence[groups_pb2.MemberDescription]) -> str:
    """What a person should know, in words."""
    said = []
    for member in members:
        name = member.client_name or member.member_id.hex()
        if member.HasField("away_remaining_ms"):
            said.append(f"member {name} is away and loses its partitions in {member.away_remaining_ms} ms")
        if member.stuck_ms >= _STUCK_MS:
            said.append(f"member {name} makes no progress since {member.stuck_ms // 1000} s")
    idle = [member.client_name or member.member_id.hex() for member in members if not member.partitions]
    if idle and group.stable:
        more = f"{len(group.members)} members, {len(group.owners)} partitions"
        said.append(f"idle: {', '.join(idle)} ({more})")
    unknown = coordinator.assigning.unknown_topics(group)
    if unknown:
        said.append(f"no such topic (yet): {', '.join(unknown)}")
    return "; ".join(said)
