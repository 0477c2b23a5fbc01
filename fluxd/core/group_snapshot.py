"""The groups of one partition of __consumer_offsets as bytes and back, so that the log before may be dropped
(`state_chunks`).
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from fluxd.core.errors import CorruptDataError
from fluxd.core.group_commands import partition_lists
from fluxd.core.groups import (
    CommittedOffset,
    Group,
    GroupsState,
    Member,
    Ownership,
    UnknownGroupCommand,
    partition_ids,
)
from fluxd.core.types import GroupId as PartitionId
from fluxd.core.types import NodeId, Offset
from fluxlog.v1 import group_log_pb2

SNAPSHOT_VERSION = 1


def snapshot(state: GroupsState) -> bytes:
    """Encode a state; the same state gives the same bytes on every replica. Inverse of `restore`."""
    message = group_log_pb2.GroupsSnapshot(
        version=SNAPSHOT_VERSION,
        applied_offset=state.applied_offset,
        groups=[_group_message(state.groups[name]) for name in sorted(state.groups)],
    )
    return message.SerializeToString(deterministic=True)


def restore(data: bytes) -> GroupsState:
    """Decode a state.

    Raises:
        CorruptDataError: not a snapshot.
        UnknownGroupCommand: written by a later version.
    """
    try:
        message = group_log_pb2.GroupsSnapshot.FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{len(data)} bytes are not a snapshot of groups: {error}") from error
    if message.version != SNAPSHOT_VERSION:
        raise UnknownGroupCommand(f"snapshot of groups, version {message.version}: this node reads {SNAPSHOT_VERSION}")
    return GroupsState(Offset(message.applied_offset), {each.group: _group(each) for each in message.groups})


def _group_message(group: Group) -> group_log_pb2.GroupSnapshot:
    message = group_log_pb2.GroupSnapshot(
        group=group.name, generation=group.generation, idle_since_ms=group.idle_since_ms
    )
    for _, member in sorted(group.members.items()):
        joined = group_log_pb2.JoinMember(
            member_id=member.member_id, client_name=member.client_name, host=member.host, via_node=member.via_node,
            topics=member.topics, session_timeout_ms=member.session_timeout_ms,
            rebalance_timeout_ms=member.rebalance_timeout_ms,
        )  # fmt: skip
        message.members.add(joined=joined, member_epoch=member.epoch, stream_epoch=member.stream_epoch)
    for member_id in sorted(set(group.target.values())):
        wanted = [partition for partition, target in group.target.items() if target == member_id]
        message.target.add(member_id=member_id, topics=partition_lists(wanted))
    for partition, owner in sorted(group.owners.items()):
        message.owners.add(
            topic_id=partition.topic_id, partition=partition.partition, member_id=owner.member_id,
            since_generation=owner.since_generation, revoking=owner.revoking,
        )  # fmt: skip
    for partition, committed in sorted(group.offsets.items()):
        message.offsets.add(
            topic_id=partition.topic_id, partition=partition.partition, offset=committed.offset,
            metadata=committed.metadata, commit_time_ms=committed.commit_time_ms,
        )  # fmt: skip
    return message


def _group(message: group_log_pb2.GroupSnapshot) -> Group:
    return Group(
        name=message.group,
        generation=message.generation,
        members={each.joined.member_id: _member(each) for each in message.members},
        target={partition: each.member_id for each in message.target for partition in partition_ids(each.topics)},
        owners={
            PartitionId(each.topic_id, each.partition): Ownership(each.member_id, each.since_generation, each.revoking)
            for each in message.owners
        },
        offsets={
            PartitionId(each.topic_id, each.partition): CommittedOffset(
                Offset(each.offset), each.metadata, each.commit_time_ms
            )
            for each in message.offsets
        },
        idle_since_ms=message.idle_since_ms,
    )


def _member(message: group_log_pb2.MemberSnapshot) -> Member:
    joined = message.joined
    return Member(
        joined.member_id, message.member_epoch, message.stream_epoch, joined.client_name, joined.host,
        NodeId(joined.via_node), tuple(joined.topics), joined.session_timeout_ms, joined.rebalance_timeout_ms,
    )  # fmt: skip
