"""Consumer groups as tools see them. Answers are the messages of groups.proto themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fluxlog.aio.connection import Connection
from fluxlog.aio.consumed import TopicPartition
from fluxlog.attempts import Effect
from fluxlog.errors import from_error_message
from fluxlog.v1 import groups_pb2

_DESCRIBED_AT_ONCE = 100


class GroupAdmin:
    """Groups of one cluster through any of its nodes. Every method raises FluxlogError.

    Args:
        patience: seconds in which a call is tried again while a group has no coordinator (an election).
    """

    def __init__(self, connection: Connection, *, patience: float) -> None:
        self._connection, self._patience = connection, patience

    async def list(self) -> groups_pb2.ListGroupsResponse:
        """All groups, by name, as far as their coordinators could be asked (see missing_partitions)."""
        request = groups_pb2.ListGroupsRequest()
        answer = await self._connection.call(lambda node: node.groups.ListGroups, request, patience=self._patience)
        answer.groups.sort(key=lambda group: group.group)
        return answer

    async def describe(self, names: Iterable[str]) -> Sequence[groups_pb2.GroupDescription]:
        """Members, assignment, committed offsets and lag.

        Raises:
            FluxlogError: UNKNOWN_GROUP for the first name that does not exist.
        """
        wanted, found = list(names), list[groups_pb2.GroupDescription]()
        for first in range(0, len(wanted), _DESCRIBED_AT_ONCE):
            request = groups_pb2.DescribeGroupsRequest(groups=wanted[first : first + _DESCRIBED_AT_ONCE])
            answer = await self._connection.call(
                lambda node: node.groups.DescribeGroups, request, patience=self._patience
            )
            if answer.errors:
                raise from_error_message(answer.errors[0])
            found += answer.groups
        return found

    async def delete(self, name: str) -> None:
        """Delete a group and what it has committed.

        Raises:
            FluxlogError: GROUP_NOT_EMPTY while it has members; UNKNOWN_GROUP.
        """
        request = groups_pb2.DeleteGroupRequest(group=name)
        await self._connection.call(
            lambda node: node.groups.DeleteGroup, request, patience=self._patience, effect=Effect.ANOTHER
        )

    async def committed_offsets(self, name: str) -> Mapping[TopicPartition, int]:
        """Next offset to be read, of each partition for which one is committed."""
        request = groups_pb2.FetchOffsetsRequest(group=name)
        answer = await self._connection.call(lambda node: node.groups.FetchOffsets, request, patience=self._patience)
        return {
            TopicPartition(each.partition.topic, each.partition.partition): each.offset
            for each in answer.offsets
            if each.HasField("offset")
        }

    async def reset_offsets(self, name: str, offsets: Mapping[TopicPartition, int | None]) -> None:
        """Set committed offsets, backwards too, or (None) remove them.

        Raises:
            FluxlogError: GROUP_NOT_EMPTY while it has members.
        """
        resets = []
        for where, offset in offsets.items():
            partition = groups_pb2.TopicPartition(topic=where.topic, partition=where.partition)
            resets.append(groups_pb2.OffsetReset(partition=partition, offset=offset))
        request = groups_pb2.ResetOffsetsRequest(group=name, resets=resets)
        await self._connection.call(
            lambda node: node.groups.ResetOffsets, request, patience=self._patience, effect=Effect.ANOTHER
        )

    async def commit_offsets(
        self, name: str, offsets: Mapping[TopicPartition, int], *, member_id: bytes = b"", member_epoch: int = 0
    ) -> None:
        """Commit the next offsets to be read, of a member, or of nobody's while the group has none.

        Raises:
            FluxlogError: FENCED_MEMBER and others, for the first partition that was refused.
        """
        items = [
            groups_pb2.OffsetCommit(topic=where.topic, partition=where.partition, offset=offset)
            for where, offset in offsets.items()
        ]
        request = groups_pb2.CommitOffsetsRequest(
            group=name, member_id=member_id, member_epoch=member_epoch, offsets=items
        )
        answer = await self._connection.call(
            lambda node: node.groups.CommitOffsets, request, patience=self._patience, effect=Effect.SAME
        )
        for result in answer.results:
            if result.WhichOneof("result") == "error":
                raise from_error_message(result.error)
