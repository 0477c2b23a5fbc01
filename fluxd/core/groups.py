"""Consumer groups, as a value: members, who owns which partition, what is committed.

The log of a partition of __consumer_offsets holds commands. `apply` is the only way from one state to the next: pure,
the same on every replica, no clock, no randomness. A command that cannot be done is an answer (`GroupResult.reason`),
since every replica must find the same. One that is not understood is `UnknownGroupCommand`.

    target   who is to have a partition: worked out by the coordinator, written by AssignPartitions
    owners   who has it: one member, from when it was given until it was freed (FreePartitions), or until that member
             was removed

A partition whose owner is not the one it is to go to is `revoking`, and stays so until it is freed: the owner has been
told to give it up, so even if it is to keep it after all, it is freed and given again. Only then the next one owns it.
So a partition never has two owners, whatever is written and in whatever order.

States are never changed: applying copies what changes (one group, and the table of pointers) and shares the rest.

Deliberately absent: streams, timers and deadlines (the coordinator's), and how partitions are divided (`assignor`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from fluxd.core import limits
from fluxd.core.errors import Reason
from fluxd.core.types import GroupId as PartitionId
from fluxd.core.types import NodeId, Offset
from fluxlog.v1 import group_log_pb2

GROUP_COMMAND_VERSION = 1
"""Highest feature level that this code understands."""

MEMBER_ID_BYTES = 16


_START = Offset(0)


class UnknownGroupCommand(Exception):
    """A command of a higher feature level, or bytes that are no command. Nothing was applied."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a group."""

    member_id: bytes
    epoch: int
    """Given when it joined; goes with every commit."""
    stream_epoch: int
    """Grows with each stream that it comes over."""
    client_name: str
    host: str
    via_node: NodeId
    topics: tuple[str, ...]
    session_timeout_ms: int
    rebalance_timeout_ms: int


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who has a partition."""

    member_id: bytes
    since_generation: int
    revoking: bool = False
    """It is to give the partition up."""


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """The next offset to be read."""

    offset: Offset
    metadata: str
    commit_time_ms: int


@dataclass(frozen=True, slots=True)
class Group:
    """One group.

    Invariant: everybody in `target` and `owners` is a member.
    """

    name: str
    generation: int = 0
    """Grows with every change of members, target or owners."""
    members: Mapping[bytes, Member] = field(default_factory=dict)
    target: Mapping[PartitionId, bytes] = field(default_factory=dict)
    owners: Mapping[PartitionId, Ownership] = field(default_factory=dict)
    offsets: Mapping[PartitionId, CommittedOffset] = field(default_factory=dict)
    idle_since_ms: int = 0
    """Without members: when the last one went, or when somebody committed after that."""

    @property
    def stable(self) -> bool:
        """Every partition is with whom it is to be."""
        return len(self.owners) == len(self.target) and not any(owner.revoking for owner in self.owners.values())

    def owned(self, member_id: bytes) -> dict[PartitionId, Ownership]:
        """What a member has."""
        return {partition: owner for partition, owner in self.owners.items() if owner.member_id == member_id}


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What a command did: nothing, when `reason` is set."""

    reason: Reason | None = None
    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    member: Member | None = None
    """Of JoinMember."""
    resumed: bool = False
    committed: tuple[Offset | None, ...] = ()
    """Of CommitGroupOffsets, per item: what is committed now; None: the partition is not this member's."""


@dataclass(frozen=True, slots=True)
class GroupsState:
    """All groups of one partition of __consumer_offsets, at one point of its log."""

    applied_offset: Offset = _START
    """First offset that is not applied: exclusive."""
    groups: Mapping[str, Group] = field(default_factory=dict)


def decode_group_command(value: bytes) -> group_log_pb2.GroupCommand:
    """Decode the value of one record.

    Raises:
        UnknownGroupCommand: not a command at all.
    """
    try:
        return group_log_pb2.GroupCommand.FromString(value)
    except (DecodeError, UnicodeDecodeError) as error:
        raise UnknownGroupCommand(f"{len(value)} bytes in the groups' log are not a command: {error}") from error


def apply_group_command(
    state: GroupsState, command: group_log_pb2.GroupCommand
) -> tuple[GroupsState, GroupResult, tuple[str, ...]]:
    """Apply the command at `state.applied_offset`.

    Returns:
        The state after it, what it did, and the names of the groups that changed.

    Raises:
        UnknownGroupCommand: the version is not 1..GROUP_COMMAND_VERSION, or the command is none that this code knows.
    """
    kind = command.WhichOneof("command")
    if not 1 <= command.version <= GROUP_COMMAND_VERSION or kind is None:
        raise UnknownGroupCommand(
            f"group command {kind or 'of an unknown kind'}, version {command.version}: "
            f"this node understands versions up to {GROUP_COMMAND_VERSION}"
        )
    number = state.applied_offset + 1
    if kind == "state_chunk":  # for those who begin behind the log's first records: `state_chunks.StateSearch`
        return GroupsState(Offset(number), state.groups), GroupResult(), ()
    if kind == "forget_topics":
        groups = _forget_topics(state.groups, frozenset(command.forget_topics.topic_ids), number, command.time_ms)
        changed = tuple(name for name in state.groups if groups.get(name) is not state.groups[name])
        return GroupsState(Offset(number), groups if changed else state.groups), GroupResult(), changed
    before = state.groups.get(command.group) or Group(command.group)
    after, result = _APPLY[kind](before, command, number)
    if after is before:
        return GroupsState(Offset(number), state.groups), result, ()
    groups = dict(state.groups)
    if after.members or after.offsets:
        groups[command.group] = after
    else:  # nothing is left that anybody could miss
        groups.pop(command.group, None)
    return GroupsState(Offset(number), groups), result, (command.group,)


def partition_ids(lists: Iterable[group_log_pb2.PartitionList]) -> Iterator[PartitionId]:
    """The partitions of encoded lists."""
    for each in lists:
        for number in each.partitions:
            yield PartitionId(each.topic_id, number)


# ---- members


def _join(group: Group, command: group_log_pb2.GroupCommand, number: int) -> tuple[Group, GroupResult]:
    join = command.join_member
    known = group.members.get(join.member_id)
    if known is None and len(group.members) >= limits.GROUP_MEMBERS_MAX:
        return group, _refused(Reason.OVERLOADED, f"group {group.name} has {len(group.members)} members, the bound")
    member = Member(
        join.member_id, known.epoch if known else number, number, join.client_name, join.host, NodeId(join.via_node),
        tuple(join.topics), join.session_timeout_ms, join.rebalance_timeout_ms,
    )  # fmt: skip
    same = known is not None and set(known.topics) == set(member.topics)
    after = replace(
        group,
        members={**group.members, member.member_id: member},
        generation=group.generation if same else number,
        idle_since_ms=0,
    )
    return after, GroupResult(member=member, resumed=known is not None)


def _remove_member(group: Group, command: group_log_pb2.GroupCommand, number: int) -> tuple[Group, GroupResult]:
    member_id = command.remove_member.member_id
    member = group.members.get(member_id)
    if member is None or member.stream_epoch != command.remove_member.stream_epoch:
        return group, GroupResult()
    members = {key: value for key, value in group.members.items() if key != member_id}
    after = replace(
        group,
        members=members,
        target={partition: wanted for partition, wanted in group.target.items() if wanted != member_id},
        owners={partition: owner for partition, owner in group.owners.items() if owner.member_id != member_id},
        generation=number,
        idle_since_ms=0 if members else command.time_ms,
    )
    return _settled(after, number), GroupResult()


# ---- partitions


def _assign(group: Group, command: group_log_pb2.GroupCommand, number: int) -> tuple[Group, GroupResult]:
    wanted = command.assign_partitions
    target: dict[PartitionId, bytes] = {}
    for each in wanted.members:
        target.update(dict.fromkeys(partition_ids(each.topics), each.member_id))
    if wanted.base_generation != group.generation or not group.members.keys() >= set(target.values()):
        return group, _refused(Reason.INVALID_ARGUMENT, f"group {group.name} has changed since")
    if target == group.target:
        return group, GroupResult()
    return _settled(replace(group, target=target, generation=number), number), GroupResult()


def _free(group: Group, command: group_log_pb2.GroupCommand, number: int) -> tuple[Group, GroupResult]:
    free = command.free_partitions
    if not _is_member(group, free.member_id, free.member_epoch):
        return group, _refused(Reason.FENCED_MEMBER, _not_a_member(group))
    owners = dict(group.owners)
    for partition in partition_ids(free.topics):
        owner = owners.get(partition)
        if owner is not None and owner.member_id == free.member_id and (owner.revoking or not free.taken):
            del owners[partition]
    if len(owners) == len(group.owners):
        return group, GroupResult()
    return _settled(replace(group, owners=owners, generation=number), number), GroupResult()


def _settled(group: Group, generation: int) -> Group:
    """Give what is free to whom it is to go, and mark what has to be given up."""
    owners = {
        partition: owner
        if owner.revoking or group.target.get(partition) == owner.member_id
        else replace(owner, revoking=True)
        for partition, owner in group.owners.items()
    }
    for partition, member_id in group.target.items():
        if partition not in owners:
            owners[partition] = Ownership(member_id, generation)
    return replace(group, owners=owners)


# ---- offsets


def _commit(group: Group, command: group_log_pb2.GroupCommand, number: int) -> tuple[Group, GroupResult]:
    commit = command.commit_offsets
    if not commit.member_id and group.members:
        return group, _not_empty(group, "only they may commit")
    is_member = bool(commit.member_id) and _is_member(group, commit.member_id, commit.member_epoch)
    offsets, committed = dict(group.offsets), list[Offset | None]()
    for item in commit.offsets:
        partition = PartitionId(item.topic_id, item.partition)
        owner = group.owners.get(partition)
        if commit.member_id and not (is_member and owner is not None and owner.member_id == commit.member_id):
            committed.append(None)
            continue
        before = offsets.get(partition)
        if before is None or item.rewind or item.offset >= before.offset:
            offsets[partition] = CommittedOffset(Offset(item.offset), item.metadata, command.time_ms)
        committed.append(offsets[partition].offset)
    result = GroupResult(committed=tuple(committed))
    if all(offset is None for offset in committed):
        return group, result
    return replace(group, offsets=offsets, idle_since_ms=_idle_since(group, command)), result


def _reset(group: Group, command: group_log_pb2.GroupCommand, number: int) -> tuple[Group, GroupResult]:
    if group.members:
        return group, _not_empty(group, "offsets are reset while it has none")
    reset, offsets = command.reset_offsets, dict(group.offsets)
    for item in reset.set:
        offsets[PartitionId(item.topic_id, item.partition)] = CommittedOffset(
            Offset(item.offset), item.metadata, command.time_ms
        )
    for partition in partition_ids(reset.remove):
        offsets.pop(partition, None)
    return replace(group, offsets=offsets, idle_since_ms=_idle_since(group, command)), GroupResult()


def _idle_since(group: Group, command: group_log_pb2.GroupCommand) -> int:
    return 0 if group.members else command.time_ms


# ---- ends


def _remove_group(group: Group, command: group_log_pb2.GroupCommand, number: int) -> tuple[Group, GroupResult]:
    if group.members:
        return group, _not_empty(group, "it can be deleted while it has none")
    if not group.offsets:
        return group, _refused(Reason.UNKNOWN_GROUP, f"there is no group {group.name!r}")
    remove = command.remove_group
    if remove.HasField("idle_since_ms") and remove.idle_since_ms != group.idle_since_ms:
        return group, GroupResult()
    return Group(group.name), GroupResult()


def _forget_topics(
    groups: Mapping[str, Group], topic_ids: Collection[bytes], number: int, time_ms: int
) -> dict[str, Group]:
    out = {}
    for name, group in groups.items():
        offsets = {key: value for key, value in group.offsets.items() if key.topic_id not in topic_ids}
        target = {key: value for key, value in group.target.items() if key.topic_id not in topic_ids}
        owners = {key: value for key, value in group.owners.items() if key.topic_id not in topic_ids}
        after = group
        if len(target) < len(group.target) or len(owners) < len(group.owners):
            after = replace(after, target=target, owners=owners, generation=number)
        if len(offsets) < len(group.offsets):
            after = replace(after, offsets=offsets)
        if after.members or after.offsets:
            out[name] = after
    return out


# ---- helpers


def _is_member(group: Group, member_id: bytes, epoch: int) -> bool:
    member = group.members.get(member_id)
    return member is not None and member.epoch == epoch


def _refused(reason: Reason, message: str, **metadata: str) -> GroupResult:
    return GroupResult(reason, message, metadata)


def _not_a_member(group: Group) -> str:
    return f"not a member of group {group.name} (any more), or of an earlier membership"


def _not_empty(group: Group, what: str) -> GroupResult:
    count = len(group.members)
    return _refused(Reason.GROUP_NOT_EMPTY, f"group {group.name} has {count} members; {what}", members=str(count))


_APPLY: Mapping[str, Callable[[Group, group_log_pb2.GroupCommand, int], tuple[Group, GroupResult]]] = {
    "join_member": _join,
    "remove_member": _remove_member,
    "assign_partitions": _assign,
    "free_partitions": _free,
    "commit_offsets": _commit,
    "reset_offsets": _reset,
    "remove_group": _remove_group,
}
