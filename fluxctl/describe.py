"""A topic's description, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from fluxctl.output import milliseconds, size, table
from fluxlog.v1 import admin_pb2

_STATES = {
    admin_pb2.REPLICA_STATE_LEADER: "leader",
    admin_pb2.REPLICA_STATE_FOLLOWER: "follower",
    admin_pb2.REPLICA_STATE_UNADMITTED: "unadmitted",
    admin_pb2.REPLICA_STATE_FAILED: "failed",
    admin_pb2.REPLICA_STATE_UNREACHABLE: "unreachable",
    admin_pb2.REPLICA_STATE_CANDIDATE: "candidate",
}
_COLUMNS = ("Partition", "Leader", "Epoch", "Replicas", "Isr", "LogStart", "HighWatermark", "Size", "Followers")
_RIGHT = ("Partition", "Leader", "Epoch", "LogStart", "HighWatermark", "Size")
_GENERATION_SHIFT = 32


def epoch_text(epoch: int) -> str:
    """An epoch as people count: the part behind the generation, which stands before it when it is not the first."""
    generation, term = epoch >> _GENERATION_SHIFT, epoch & (1 << _GENERATION_SHIFT) - 1
    return f"{generation}/{term}" if generation else str(term)


def print_topics(console: Console, topics: Sequence[admin_pb2.TopicDescription], *, why: bool = False) -> None:
    """Each topic: one line, its partitions as a table, and with `why` what is wrong in words."""
    separator = "\n" if console.is_terminal else "; "
    for number, topic in enumerate(topics):
        if number:
            console.print()
        configs = ",".join(f"{key}={value}" for key, value in sorted(topic.configs.items()))
        console.print(
            f"Topic: {topic.name}   TopicId: {topic.topic_id.hex()}   PartitionCount: {len(topic.partitions)}   "
            f"ReplicationFactor: {topic.replication_factor}   Configs: {configs or '-'}",
            soft_wrap=True,
        )
        console.print(table(_COLUMNS, [_row(partition, separator) for partition in topic.partitions], right=_RIGHT))
        if why:
            _print_why(console, topic)


def _row(partition: admin_pb2.PartitionDescription, separator: str) -> tuple[object, ...]:
    return (
        partition.partition,
        partition.leader_node or "none",
        epoch_text(partition.leader_epoch),
        ",".join(map(str, partition.replicas)),
        ",".join(map(str, partition.isr)) or "?",
        partition.log_start_offset,
        partition.high_watermark,
        size(partition.size_bytes),
        separator.join(
            _replica_text(replica) for replica in partition.replica_states if not _leads(partition, replica)
        ),
    )


def _leads(partition: admin_pb2.PartitionDescription, replica: admin_pb2.ReplicaDescription) -> bool:
    return replica.node_id == partition.leader_node


def _replica_text(replica: admin_pb2.ReplicaDescription) -> str:
    """ "2: in sync, heard 12 ms ago" or "3: 40 entries behind, heard 3.2 s ago, unreachable"."""
    if replica.state in (admin_pb2.REPLICA_STATE_UNADMITTED, admin_pb2.REPLICA_STATE_FAILED):
        return f"{replica.node_id}: {_STATES[replica.state]}"  # what the leader knew of it last says nothing of now
    if replica.HasField("last_heard_ms"):
        behind = f"{replica.lag_entries} entries behind" if replica.lag_entries else "had everything"
        parts = ["in sync" if replica.in_sync else behind, f"heard {milliseconds(replica.last_heard_ms)} ago"]
    else:  # no leader tells of it
        parts = ["not heard yet"]
    if replica.state not in (admin_pb2.REPLICA_STATE_FOLLOWER, admin_pb2.REPLICA_STATE_UNSPECIFIED):
        parts.append(_STATES[replica.state])
    return f"{replica.node_id}: {', '.join(parts)}"


def _print_why(console: Console, topic: admin_pb2.TopicDescription) -> None:
    said = False
    for partition in topic.partitions:
        reasons = [partition.why] if partition.why else []
        reasons += [
            f"replica {replica.node_id}: {replica.why}"
            for replica in partition.replica_states
            if replica.why and replica.why not in partition.why
        ]
        for reason in reasons:
            console.print(f"  {topic.name}-{partition.partition}: {reason}")
            said = True
        if not partition.leader_node and not reasons:
            console.print(f"  {topic.name}-{partition.partition}: no leader is known to the node asked")
            said = True
    if not said:
        console.print("  all is well: every partition has a leader, every replica is in sync")


def topic_data(topic: admin_pb2.TopicDescription) -> dict[str, object]:
    """A topic for programs."""
    return {
        "name": topic.name,
        "topic_id": topic.topic_id.hex(),
        "partition_count": len(topic.partitions),
        "replication_factor": topic.replication_factor,
        "configs": dict(sorted(topic.configs.items())),
        "internal": topic.internal,
        "partitions": [_partition_data(partition) for partition in topic.partitions],
    }


def _partition_data(partition: admin_pb2.PartitionDescription) -> dict[str, object]:
    return {
        "partition": partition.partition,
        "leader_node": partition.leader_node or None,
        "leader_epoch": partition.leader_epoch,
        "replicas": list(partition.replicas),
        "isr": list(partition.isr),
        "log_start_offset": partition.log_start_offset,
        "high_watermark": partition.high_watermark,
        "log_end_offset": partition.log_end_offset,
        "size_bytes": partition.size_bytes,
        "status_age_ms": partition.status_age_ms,
        "why": partition.why,
        "replica_states": [
            {
                "node_id": replica.node_id,
                "state": _STATES.get(replica.state, "unknown"),
                "lag_entries": replica.lag_entries,
                "last_heard_ms": replica.last_heard_ms if replica.HasField("last_heard_ms") else None,
                "in_sync": replica.in_sync,
                "why": replica.why,
            }
            for replica in partition.replica_states
        ],
    }
