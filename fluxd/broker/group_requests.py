"""Requests of the Groups service, on any node: those of a group go to its coordinator, here or one hop away.

A refusal because the coordinator is changing wrote nothing and is tried again for as long as an election takes;
everything else is the caller's to judge. `forwarded`: another node has passed the request on, so it is not passed on
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from fluxd.broker.coordinator import Coordinator
from fluxd.broker.coordinators import Coordinators
from fluxd.broker.currency import Calls
from fluxd.broker.group_describe import Describing
from fluxd.broker.routes import Route
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.groups import GroupResult
from fluxd.core.names import check_group_name
from fluxd.core.status import error_from_message, error_message
from fluxd.core.types import GroupId as PartitionId
from fluxd.core.types import NodeId
from fluxlog.v1 import group_log_pb2, groups_pb2

COORDINATOR_WAIT = limits.ELECTION_TIMEOUT_MAX + 1.0
_HOP_TIMEOUT = 10.0
RETRY_AFTER = 0.05
PASSING = (Reason.NOT_LEADER, Reason.NO_LEADER, Reason.STOPPING)

R = TypeVar("R", bound=Message)


class TopicRouting(Protocol):
    """From names to partitions: `Routes`."""

    async def find(self, topic: str, partition: int, topic_id: bytes) -> Route: ...
    async def find_all(self, partitions: Iterable[tuple[str, int, bytes]]) -> list[Route | FluxError]: ...


class GroupRequests:
    """See the module."""

    def __init__(self, coordinators: Coordinators, routes: TopicRouting, calls: Calls, describing: Describing) -> None:
        self.coordinators = coordinators
        self._routes, self._calls, self._describing = routes, calls, describing

    # ---- offsets

    async def commit_offsets(
        self, request: groups_pb2.CommitOffsetsRequest, *, forwarded: bool
    ) -> groups_pb2.CommitOffsetsResponse:
        """See groups.proto."""
        check_group_name(request.group)
        _check_count(len(request.offsets), 1, limits.OFFSET_COMMITS_MAX, "offsets")
        for item in request.offsets:
            if len(item.metadata.encode()) > limits.OFFSET_METADATA_BYTES_MAX:
                bound = f"{limits.OFFSET_METADATA_BYTES_MAX:,} bytes"
                raise _invalid(f"metadata of {item.topic}-{item.partition} is above {bound}")
        await self.coordinators.ensure_topic()

        async def commit(coordinator: Coordinator) -> groups_pb2.CommitOffsetsResponse:
            return await self._commit(coordinator, request)

        return await self._at_coordinator(
            request.group, "CommitOffsets", request, commit, groups_pb2.CommitOffsetsResponse, forwarded, writes=True
        )

    async def _commit(
        self, coordinator: Coordinator, request: groups_pb2.CommitOffsetsRequest
    ) -> groups_pb2.CommitOffsetsResponse:
        results = [
            groups_pb2.OffsetCommitResult(topic=each.topic, partition=each.partition) for each in request.offsets
        ]
        offsets, numbers = list[group_log_pb2.GroupOffset](), list[int]()
        routes = await self._routes.find_all((each.topic, each.partition, each.topic_id) for each in request.offsets)
        for number, (item, route) in enumerate(zip(request.offsets, routes, strict=True)):
            if isinstance(route, FluxError):
                results[number].error.CopyFrom(error_message(route, writes=True))
                continue
            numbers.append(number)
            offsets.append(
                group_log_pb2.GroupOffset(
                    topic_id=route.topic.topic_id, partition=item.partition, offset=item.offset, rewind=item.rewind,
                    metadata=item.metadata,
                )
            )  # fmt: skip
        if offsets:
            command = coordinator.commands.commit_offsets(
                request.group, request.member_id, request.member_epoch, offsets
            )
            answer = _accepted(await coordinator.log.ask(command))
            for number, committed in zip(numbers, answer.committed, strict=True):
                if committed is not None:
                    results[number].committed_offset = committed
                else:
                    results[number].error.CopyFrom(error_message(_fenced(results[number]), writes=True))
        return groups_pb2.CommitOffsetsResponse(results=results)

    async def fetch_offsets(
        self, request: groups_pb2.FetchOffsetsRequest, *, forwarded: bool
    ) -> groups_pb2.FetchOffsetsResponse:
        """See groups.proto."""
        check_group_name(request.group)
        _check_count(len(request.partitions), 0, limits.OFFSET_COMMITS_MAX, "partitions")

        async def fetch(coordinator: Coordinator) -> groups_pb2.FetchOffsetsResponse:
            group = (await coordinator.log.current()).groups.get(request.group)
            offsets = group.offsets if group is not None else {}
            wanted = [await self._partition(each) for each in request.partitions] or sorted(offsets)
            response = groups_pb2.FetchOffsetsResponse()
            for each in wanted:
                out = response.offsets.add(partition=coordinator.named(each))
                if (committed := offsets.get(each)) is not None:
                    out.offset, out.metadata = committed.offset, committed.metadata
                    out.commit_time_ms = committed.commit_time_ms
            return response

        if not self.coordinators.partition_count and not await self._has_groups():
            return groups_pb2.FetchOffsetsResponse(
                offsets=[groups_pb2.CommittedOffset(partition=each) for each in request.partitions]
            )
        return await self._at_coordinator(
            request.group, "FetchOffsets", request, fetch, groups_pb2.FetchOffsetsResponse, forwarded
        )

    async def reset_offsets(
        self, request: groups_pb2.ResetOffsetsRequest, *, forwarded: bool
    ) -> groups_pb2.ResetOffsetsResponse:
        """See groups.proto."""
        check_group_name(request.group)
        _check_count(len(request.resets), 1, limits.OFFSET_COMMITS_MAX, "resets")
        await self.coordinators.ensure_topic()

        async def reset(coordinator: Coordinator) -> groups_pb2.ResetOffsetsResponse:
            offsets, remove = list[group_log_pb2.GroupOffset](), list[PartitionId]()
            for each in request.resets:
                partition = await self._partition(each.partition)
                if each.HasField("offset"):
                    offsets.append(
                        group_log_pb2.GroupOffset(
                            topic_id=partition.topic_id, partition=partition.partition, offset=each.offset
                        )
                    )
                else:
                    remove.append(partition)
            _accepted(await coordinator.log.ask(coordinator.commands.reset_offsets(request.group, offsets, remove)))
            return groups_pb2.ResetOffsetsResponse()

        return await self._at_coordinator(
            request.group, "ResetOffsets", request, reset, groups_pb2.ResetOffsetsResponse, forwarded, writes=True
        )

    async def _partition(self, each: groups_pb2.TopicPartition) -> PartitionId:
        return (await self._routes.find(each.topic, each.partition, each.topic_id)).group_id

    # ---- groups

    async def delete_group(
        self, request: groups_pb2.DeleteGroupRequest, *, forwarded: bool
    ) -> groups_pb2.DeleteGroupResponse:
        """See groups.proto."""
        check_group_name(request.group)
        await self._check_any_group(request.group)

        async def delete(coordinator: Coordinator) -> groups_pb2.DeleteGroupResponse:
            _accepted(await coordinator.log.ask(coordinator.commands.remove_group(request.group)))
            return groups_pb2.DeleteGroupResponse()

        return await self._at_coordinator(
            request.group, "DeleteGroup", request, delete, groups_pb2.DeleteGroupResponse, forwarded, writes=True
        )

    async def describe_groups(
        self, request: groups_pb2.DescribeGroupsRequest, *, forwarded: bool
    ) -> groups_pb2.DescribeGroupsResponse:
        """See groups.proto."""
        _check_count(len(request.groups), 1, limits.GROUPS_DESCRIBED_MAX, "groups")
        response = groups_pb2.DescribeGroupsResponse()
        for name in dict.fromkeys(request.groups):
            try:
                response.groups.append(await self._describe(name, forwarded=forwarded))
            except FluxError as error:
                error.metadata.setdefault("group", name)
                response.errors.append(error_message(error, writes=False))
        return response

    async def _describe(self, name: str, *, forwarded: bool) -> groups_pb2.GroupDescription:
        check_group_name(name)
        await self._check_any_group(name)
        request = groups_pb2.DescribeGroupsRequest(groups=[name])

        async def describe(coordinator: Coordinator) -> groups_pb2.DescribeGroupsResponse:
            group = (await coordinator.log.current()).groups.get(name)
            if group is None:
                raise _unknown_group(name)
            return groups_pb2.DescribeGroupsResponse(groups=[await self._describing.describe(coordinator, group)])

        answer = await self._at_coordinator(
            name, "DescribeGroups", request, describe, groups_pb2.DescribeGroupsResponse, forwarded
        )
        if answer.errors:
            raise error_from_message(answer.errors[0])
        return answer.groups[0]

    async def list_groups(
        self, request: groups_pb2.ListGroupsRequest, *, forwarded: bool
    ) -> groups_pb2.ListGroupsResponse:
        """See groups.proto. Passed on, it is about the groups that this node coordinates."""
        if not self.coordinators.partition_count and not (not forwarded and await self._has_groups()):
            return groups_pb2.ListGroupsResponse()
        missing = set(range(self.coordinators.partition_count))
        response = groups_pb2.ListGroupsResponse()
        for number, coordinator in self.coordinators.here().items():
            try:
                groups = (await coordinator.log.current()).groups
            except FluxError:
                continue
            missing.discard(number)
            response.groups.extend(self._describing.summary(coordinator, group) for group in groups.values())
        if not forwarded:
            for node in await self._coordinating(missing):
                await self._list_at(node, response, missing)
        response.groups.sort(key=lambda group: group.group)
        response.missing_partitions.extend(sorted(missing))
        return response

    async def _coordinating(self, partitions: Iterable[int]) -> list[NodeId]:
        nodes = set()
        for partition in sorted(partitions):
            try:
                nodes.add(await self.coordinators.node_of(await self.coordinators.partition_route(partition)))
            except FluxError:
                continue
        return sorted(nodes - {self.coordinators.node_id})

    async def _list_at(self, node: NodeId, response: groups_pb2.ListGroupsResponse, missing: set[int]) -> None:
        try:
            answer = await self._call(node, "ListGroups", groups_pb2.ListGroupsRequest(), writes=False)
        except FluxError:
            return
        theirs = groups_pb2.ListGroupsResponse.FromString(answer)
        response.groups.extend(theirs.groups)
        missing.intersection_update(theirs.missing_partitions)

    async def _has_groups(self) -> bool:
        """Whether __consumer_offsets is there; this node's metadata may be behind."""
        try:
            await self.coordinators.partition_route(0)
        except FluxError as error:
            if error.reason is Reason.UNKNOWN_TOPIC:
                return False
            raise
        return True

    async def _check_any_group(self, name: str) -> None:
        if not await self._has_groups():
            raise _unknown_group(name)

    # ---- to the coordinator

    async def _at_coordinator(
        self,
        group: str,
        method: str,
        request: Message,
        local: Callable[[Coordinator], Awaitable[R]],
        response_type: type[R],
        forwarded: bool,
        *,
        writes: bool = False,
    ) -> R:
        """Have a group's coordinator serve a request: here, or on the node that is it."""
        deadline = asyncio.get_running_loop().time() + COORDINATOR_WAIT
        while True:
            try:
                route = await self.coordinators.route(group)
                if forwarded:
                    return await local(await self.coordinators.serving(route))
                node = await self.coordinators.node_of(route)
                if node == self.coordinators.node_id:
                    return await local(await self.coordinators.serving(route))
                return response_type.FromString(await self._call(node, method, request, writes=writes))
            except FluxError as error:
                if forwarded or error.reason not in PASSING or asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(RETRY_AFTER)

    async def _call(self, node: NodeId, method: str, request: Message, *, writes: bool) -> bytes:
        return await self._calls.unary(
            node, f"/fluxlog.v1.Groups/{method}", request.SerializeToString(), timeout_s=_HOP_TIMEOUT, writes=writes
        )


def _accepted(answer: GroupResult) -> GroupResult:
    """What a command did; raises FluxError, REJECTED, when it did nothing."""
    if answer.reason is not None:
        raise FluxError(answer.reason, answer.message, metadata=answer.metadata)
    return answer


def _fenced(result: groups_pb2.OffsetCommitResult) -> FluxError:
    return FluxError(
        Reason.FENCED_MEMBER, f"{result.topic}-{result.partition} is not this member's, or it is no member any more"
    )


def _unknown_group(name: str) -> FluxError:
    return FluxError(Reason.UNKNOWN_GROUP, f"there is no group {name!r}")


def _invalid(message: str) -> FluxError:
    return FluxError(Reason.INVALID_ARGUMENT, message)


def _check_count(count: int, least: int, most: int, what: str) -> None:
    if not least <= count <= most:
        raise _invalid(f"{count} {what} are not {least}..{most}")
