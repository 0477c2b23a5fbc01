"""Builds the commands of the groups' log, each with a fresh id and its proposer's time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from fluxd.core.groups import GROUP_COMMAND_VERSION, Group, Member
from fluxd.core.metadata import random_id
from fluxd.core.types import GroupId as PartitionId
from fluxlog.v1 import group_log_pb2, state_pb2


@dataclass(frozen=True, slots=True)
class GroupCommands:
    """Makes commands with a fresh id and the proposer's time.

    Args:
        random: uniform in [0, 1).
        wall_ms: the proposer's clock, Unix milliseconds.
    """

    random: Callable[[], float]
    wall_ms: Callable[[], int]

    def join_member(self, group: str, join: group_log_pb2.JoinMember) -> group_log_pb2.GroupCommand:
        """A new member, or one that is back."""
        return self._new(group, join_member=join)

    def remove_member(self, group: str, member: Member, *, lapsed: bool) -> group_log_pb2.GroupCommand:
        """The member goes, unless it has come over another stream since."""
        remove = group_log_pb2.RemoveMember(member_id=member.member_id, stream_epoch=member.stream_epoch, lapsed=lapsed)
        return self._new(group, remove_member=remove)

    def assign_partitions(self, group: Group, target: Mapping[PartitionId, bytes]) -> group_log_pb2.GroupCommand:
        """Who is to have what, worked out for the group as it is."""
        by_member: dict[bytes, list[PartitionId]] = {}
        for partition, member_id in target.items():
            by_member.setdefault(member_id, []).append(partition)
        assign = group_log_pb2.AssignPartitions(base_generation=group.generation)
        for member_id, partitions in sorted(by_member.items()):
            assign.members.add(member_id=member_id, topics=partition_lists(partitions))
        return self._new(group.name, assign_partitions=assign)

    def free_partitions(
        self, group: str, member: Member, partitions: Iterable[PartitionId], *, taken: bool
    ) -> group_log_pb2.GroupCommand:
        """The member gives partitions up, or they are taken from it."""
        free = group_log_pb2.FreePartitions(
            member_id=member.member_id, member_epoch=member.epoch, taken=taken, topics=partition_lists(partitions)
        )
        return self._new(group, free_partitions=free)

    def commit_offsets(
        self, group: str, member_id: bytes, member_epoch: int, offsets: Collection[group_log_pb2.GroupOffset]
    ) -> group_log_pb2.GroupCommand:
        """Offsets of a member, or of nobody (no member id)."""
        commit = group_log_pb2.CommitGroupOffsets(member_id=member_id, member_epoch=member_epoch, offsets=offsets)
        return self._new(group, commit_offsets=commit)

    def reset_offsets(
        self, group: str, offsets: Iterable[group_log_pb2.GroupOffset], remove: Iterable[PartitionId]
    ) -> group_log_pb2.GroupCommand:
        """Offsets of a group without members, in any direction."""
        reset = group_log_pb2.ResetGroupOffsets(set=offsets, remove=partition_lists(remove))
        return self._new(group, reset_offsets=reset)

    def remove_group(self, group: str, *, idle_since_ms: int | None = None) -> group_log_pb2.GroupCommand:
        """The group is deleted, or has expired (idle since then)."""
        return self._new(group, remove_group=group_log_pb2.RemoveGroup(idle_since_ms=idle_since_ms))

    def forget_topics(self, topic_ids: Iterable[bytes]) -> group_log_pb2.GroupCommand:
        """These topics were deleted."""
        return self._new("", forget_topics=group_log_pb2.ForgetTopics(topic_ids=sorted(topic_ids)))

    def state_chunk(self, chunk: state_pb2.StateChunk) -> group_log_pb2.GroupCommand:
        """A part of the whole state."""
        return self._new("", state_chunk=chunk)

    def _new(self, group: str, **command: object) -> group_log_pb2.GroupCommand:
        return group_log_pb2.GroupCommand(
            version=GROUP_COMMAND_VERSION,
            command_id=random_id(self.random),
            time_ms=self.wall_ms(),
            group=group,
            **command,  # type: ignore[arg-type]
        )


def partition_lists(partitions: Iterable[PartitionId]) -> list[group_log_pb2.PartitionList]:
    """Partitions by topic, in order."""
    by_topic: dict[bytes, list[int]] = {}
    for partition in sorted(partitions):
        by_topic.setdefault(partition.topic_id, []).append(partition.partition)
    return [
        group_log_pb2.PartitionList(topic_id=topic_id, partitions=numbers) for topic_id, numbers in by_topic.items()
    ]
