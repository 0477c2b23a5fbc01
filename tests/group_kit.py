"""A consumer group's state machine, driven by hand: each call applies one command."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from fluxd.core.assignor import assign
from fluxd.core.group_commands import GroupCommands
from fluxd.core.groups import Group, GroupResult, GroupsState, Member, apply_group_command
from fluxd.core.types import GroupId as PartitionId
from fluxlog.v1 import group_log_pb2

TOPIC = bytes([7]) * 16
OTHER_TOPIC = bytes([8]) * 16
NAME = "g"


def member_id(number: int) -> bytes:
    """Of the nth member."""
    return bytes([number]) * 16


def at(partition: int, topic_id: bytes = TOPIC) -> PartitionId:
    """A partition."""
    return PartitionId(topic_id, partition)


class GroupLab:
    """The groups of one log, and the log."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.commands = GroupCommands(random.Random(1).random, lambda: self.now_ms)
        self.state = GroupsState()
        self.log: list[group_log_pb2.GroupCommand] = []
        self.changed: tuple[str, ...] = ()

    def apply(self, command: group_log_pb2.GroupCommand) -> GroupResult:
        """Append a command and apply it."""
        self.log.append(command)
        self.state, result, self.changed = apply_group_command(self.state, command)
        return result

    def group(self, name: str = NAME) -> Group:
        """As it is now; empty where there is none."""
        return self.state.groups.get(name) or Group(name)

    def member(self, number: int) -> Member:
        """The nth member."""
        return self.group().members[member_id(number)]

    def join(self, number: int, *, topics: Iterable[str] = ("orders",), via: int = 1) -> GroupResult:
        """The nth member comes, or comes again."""
        join = group_log_pb2.JoinMember(
            member_id=member_id(number), client_name=f"client-{number}", host="h", via_node=via, topics=topics,
            session_timeout_ms=3_000, rebalance_timeout_ms=60_000,
        )  # fmt: skip
        return self.apply(self.commands.join_member(NAME, join))

    def leave(self, member: Member) -> GroupResult:
        """A member goes."""
        return self.apply(self.commands.remove_member(NAME, member, lapsed=False))

    def assign(self, target: Mapping[PartitionId, bytes]) -> GroupResult:
        """Write who is to have what."""
        return self.apply(self.commands.assign_partitions(self.group(), target))

    def balance(self, partitions: int = 4) -> GroupResult:
        """As a coordinator would for one topic."""
        group = self.group()
        current = {partition: owner.member_id for partition, owner in group.owners.items()} | dict(group.target)
        wanted = dict.fromkeys(group.members, (TOPIC,))
        return self.assign(assign(wanted, {TOPIC: partitions}, current))

    def free(self, member: Member, *partitions: int, taken: bool = False) -> GroupResult:
        """A member gives partitions up, or they are taken."""
        return self.apply(self.commands.free_partitions(NAME, member, [at(n) for n in partitions], taken=taken))

    def commit(self, member: Member | None, partition: int, offset: int, *, rewind: bool = False) -> GroupResult:
        """A member, or nobody, commits."""
        item = group_log_pb2.GroupOffset(topic_id=TOPIC, partition=partition, offset=offset, rewind=rewind)
        known = (member.member_id, member.epoch) if member else (b"", 0)
        return self.apply(self.commands.commit_offsets(NAME, *known, [item]))

    def reset(self, partition: int, offset: int) -> GroupResult:
        """A tool sets an offset."""
        item = group_log_pb2.GroupOffset(topic_id=TOPIC, partition=partition, offset=offset)
        return self.apply(self.commands.reset_offsets(NAME, [item], []))

    def owners(self) -> dict[int, int]:
        """Number of the member that owns each partition of the topic."""
        return {partition.partition: owner.member_id[0] for partition, owner in sorted(self.group().owners.items())}

    def committed(self, partition: int) -> int | None:
        """What is committed of a partition."""
        found = self.group().offsets.get(at(partition))
        return found.offset if found else None
