"""How consumer groups are shown: the columns of kafka-consumer-groups, and lag in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from fluxctl.output import plural, table
from fluxlog.v1 import groups_pb2

STATES = {
    groups_pb2.GROUP_STATE_EMPTY: "Empty",
    groups_pb2.GROUP_STATE_STABLE: "Stable",
    groups_pb2.GROUP_STATE_REBALANCING: "Rebalancing",
}
_ID_DIGITS = 8
_NONE = "-"


def state_name(state: int) -> str:
    """As shown to people and programs."""
    return STATES.get(groups_pb2.GroupState.ValueType(state), "Unknown")


def group_data(group: groups_pb2.GroupDescription) -> dict[str, Any]:
    """For programs."""
    return {
        "group": group.group,
        "state": state_name(group.state),
        "coordinator_node": group.coordinator_node,
        "generation": group.generation,
        "why": group.why,
        "members": [_member_data(member) for member in group.members],
        "partitions": [_partition_data(partition) for partition in group.partitions],
    }


def _member_data(member: groups_pb2.MemberDescription) -> dict[str, Any]:
    return {
        "consumer_id": member.member_id.hex(),
        "client": member.client_name,
        "host": member.host,
        "via_node": member.via_node,
        "member_epoch": member.member_epoch,
        "away_remaining_ms": member.away_remaining_ms if member.HasField("away_remaining_ms") else None,
        "stuck_ms": member.stuck_ms,
        "partitions": [{"topic": each.topic, "partition": each.partition} for each in member.partitions],
    }


def _partition_data(partition: groups_pb2.GroupPartition) -> dict[str, Any]:
    known = not partition.unknown_lag
    return {
        "topic": partition.partition.topic,
        "partition": partition.partition.partition,
        "current_offset": partition.committed_offset if partition.HasField("committed_offset") else None,
        "log_start_offset": partition.log_start_offset if known else None,
        "log_end_offset": partition.high_watermark if known else None,
        "lag": partition.lag_records if known else None,
        "lag_seconds": partition.lag_ms / 1000 if known else None,
        "consumer_id": partition.owner_member_id.hex() or None,
        "commit_time_ms": partition.commit_time_ms or None,
    }


def print_partitions(out: Console, groups: Sequence[groups_pb2.GroupDescription]) -> None:
    """One line for each partition, and what is wrong in words."""
    columns = (
        "GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG", "LAG-SECONDS", "CONSUMER-ID", "HOST",
        "CLIENT",
    )  # fmt: skip
    rows = [row for group in groups for row in _partition_rows(group)]
    out.print(table(columns, rows, right=columns[2:7]))
    for group in groups:
        members, idle = len(group.members), sum(1 for member in group.members if not member.partitions)
        text = f"group {group.group}: {state_name(group.state)}, {plural(members, 'member')}"
        text += f" ({idle} idle)" if idle else ""
        out.print(text + f", coordinator: node {group.coordinator_node}" + (f"; {group.why}" if group.why else ""))


def _partition_rows(group: groups_pb2.GroupDescription) -> list[tuple[object, ...]]:
    members = {member.member_id: member for member in group.members}
    rows: list[tuple[object, ...]] = []
    for each in group.partitions:
        owner, known = members.get(each.owner_member_id), not each.unknown_lag
        rows.append(
            (
                group.group,
                each.partition.topic or f"(deleted {each.partition.topic_id.hex()[:_ID_DIGITS]})",
                each.partition.partition,
                each.committed_offset if each.HasField("committed_offset") else _NONE,
                each.high_watermark if known else "?",
                each.lag_records if known else "?",
                f"{each.lag_ms / 1000:.1f}" if known else "?",
                owner.member_id.hex()[:_ID_DIGITS] if owner else _NONE,
                owner.host if owner else _NONE,
                (owner.client_name or _NONE) if owner else _NONE,
            )
        )
    return rows


def print_members(out: Console, groups: Sequence[groups_pb2.GroupDescription]) -> None:
    """One line for each member, the idle ones said."""
    columns = ("GROUP", "CONSUMER-ID", "HOST", "CLIENT", "NODE", "#PARTITIONS", "STATE", "ASSIGNMENT")
    rows = [
        (
            group.group,
            member.member_id.hex()[:_ID_DIGITS],
            member.host or _NONE,
            member.client_name or _NONE,
            member.via_node,
            len(member.partitions),
            _member_state(member),
            _assignment(member),
        )
        for group in groups
        for member in group.members
    ]
    out.print(table(columns, rows, right=("NODE", "#PARTITIONS")))


def _member_state(member: groups_pb2.MemberDescription) -> str:
    if member.HasField("away_remaining_ms"):
        return f"away, {member.away_remaining_ms} ms left"
    if member.stuck_ms:
        return f"busy for {member.stuck_ms / 1000:.0f} s"
    return "idle" if not member.partitions else "well"


def _assignment(member: groups_pb2.MemberDescription) -> str:
    by_topic: dict[str, list[int]] = {}
    for each in member.partitions:
        by_topic.setdefault(each.topic, []).append(each.partition)
    return " ".join(f"{topic}({','.join(map(str, numbers))})" for topic, numbers in by_topic.items()) or _NONE
