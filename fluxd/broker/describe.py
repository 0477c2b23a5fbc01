"""Descriptions of topics, partitions and nodes, as this node knows them: numbers for programs, `why` in words for
people.

What a leader knows of its followers is its own finding; another node tells it as it was told, with its age. Nothing
here waits or asks anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fluxd.broker.cluster import ClusterView, LeaderHint, leader_status
from fluxd.core.metadata import Partition, Topic
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.spec import Role
from fluxlog.v1 import admin_pb2, peer_pb2

_STATES = {
    Role.FOLLOWER: admin_pb2.REPLICA_STATE_FOLLOWER,
    Role.CANDIDATE: admin_pb2.REPLICA_STATE_CANDIDATE,
    Role.LEADER: admin_pb2.REPLICA_STATE_LEADER,
    Role.UNADMITTED: admin_pb2.REPLICA_STATE_UNADMITTED,
    Role.FAILED: admin_pb2.REPLICA_STATE_FAILED,
}

_TAKES_NO_PART = (
    admin_pb2.REPLICA_STATE_UNREACHABLE,
    admin_pb2.REPLICA_STATE_UNADMITTED,
    admin_pb2.REPLICA_STATE_FAILED,
)


def summary(topic: Topic) -> admin_pb2.TopicSummary:
    """One line of a list."""
    return admin_pb2.TopicSummary(
        name=topic.name,
        topic_id=topic.topic_id,
        partitions=len(topic.partitions),
        replication_factor=topic.replication_factor,
        internal=topic.internal,
    )


def topic_head(topic: Topic) -> admin_pb2.TopicDescription:
    """A topic without its partitions."""
    return admin_pb2.TopicDescription(
        name=topic.name,
        topic_id=topic.topic_id,
        replication_factor=topic.replication_factor,
        configs=topic.configs,
        internal=topic.internal,
    )


def is_under_replicated(description: admin_pb2.PartitionDescription) -> bool:
    """A replica is out of sync, or there is no leader to tell."""
    return len(description.isr) < len(description.replicas)


def partition_description(view: ClusterView, topic: Topic, number: int) -> admin_pb2.PartitionDescription:
    """One partition with all its replicas."""
    group_id, partition = topic.group_id(number), topic.partitions[number]
    hint = view.leader(group_id)
    leading, age_s = _leader_tells(view, group_id, hint)
    out = admin_pb2.PartitionDescription(
        partition=number,
        leader_node=hint.node_id if hint else 0,
        leader_epoch=hint.epoch if hint else 0,
        replicas=partition.voters,
        status_age_ms=round(age_s * 1000),
    )
    _set_offsets(out, view, group_id, leading)
    if hint is not None and leading is not None:
        out.size_bytes = leading.size_bytes
        in_sync = {hint.node_id} | {NodeId(follower.node_id) for follower in leading.followers if follower.in_sync}
        in_sync -= {node for node in in_sync if _takes_no_part(view, group_id, node)}  # which this node knows sooner
        out.isr.extend(node for node in partition.voters if node in in_sync)
    for node in partition.voters:
        out.replica_states.append(_replica(view, group_id, node, hint, leading, age_s))
    out.why = _why(view, group_id, partition, out)
    return out


def _leader_tells(
    view: ClusterView, group_id: GroupId, hint: LeaderHint | None
) -> tuple[peer_pb2.LeaderStatus | None, float]:
    """What the present leader tells and how old that is; None when it has told nothing of this term yet."""
    if hint is None:
        told = view.told_leading(group_id)
        return None, told[1] if told else 0.0
    if hint.node_id == view.local.node_id:
        own = view.replica(group_id)
        return (None if own is None else leader_status(own)), 0.0
    told = view.told_leading(group_id)
    return told if told is not None and told[0].leader_epoch == hint.epoch else (None, 0.0)


def _set_offsets(
    out: admin_pb2.PartitionDescription, view: ClusterView, group_id: GroupId, leading: peer_pb2.LeaderStatus | None
) -> None:
    """From the leader; without one, the most that this node knows."""
    told = view.told_leading(group_id)
    own = view.replica(group_id)
    if leading is None and told is not None:
        leading = told[0]
    if leading is not None:
        out.log_start_offset = leading.log_start_offset
        out.high_watermark = leading.high_watermark
        out.log_end_offset = leading.log_end_offset
    if own is not None and own.role not in (Role.UNADMITTED, Role.FAILED):
        out.log_start_offset = max(out.log_start_offset, own.log_start_offset)
        out.high_watermark = max(out.high_watermark, own.high_watermark)
        out.log_end_offset = max(out.log_end_offset, out.high_watermark)
        if leading is None:
            out.log_end_offset = own.log_end_offset


def _replica(
    view: ClusterView,
    group_id: GroupId,
    node: NodeId,
    hint: LeaderHint | None,
    leading: peer_pb2.LeaderStatus | None,
    age_s: float,
) -> admin_pb2.ReplicaDescription:
    out = admin_pb2.ReplicaDescription(node_id=node, state=_state(view, group_id, node, hint))
    if hint is not None and hint.node_id == node:
        out.last_heard_ms, out.in_sync = 0, True
    follower = next((follower for follower in leading.followers if follower.node_id == node), None) if leading else None
    if leading is not None and follower is not None:
        out.lag_entries = max(0, leading.last_index - follower.durable_index)
        out.in_sync = follower.in_sync and not _takes_no_part(view, group_id, node)
        if follower.HasField("last_heard_ms"):
            out.last_heard_ms = follower.last_heard_ms + round(age_s * 1000)
    trouble = view.trouble(group_id, node)
    if not view.is_up(node):
        out.why = _down(view, node)
    elif trouble is not None:
        out.why = f"{trouble[0].value}: {trouble[1]}"
    elif damage := view.damage(group_id, node):
        out.why = damage
    else:
        behind = _behind(out) if follower is not None and not follower.in_sync else ""
        out.why = _listed(filter(None, (behind, view.node_why(node))))
    return out


def _state(
    view: ClusterView, group_id: GroupId, node: NodeId, hint: LeaderHint | None
) -> admin_pb2.ReplicaState.ValueType:
    if not view.is_up(node):
        return admin_pb2.REPLICA_STATE_UNREACHABLE
    trouble = view.trouble(group_id, node)
    if trouble is not None:
        return _STATES[trouble[0]]
    if hint is not None and hint.node_id == node:
        return admin_pb2.REPLICA_STATE_LEADER
    own = view.replica(group_id) if node == view.local.node_id else None
    return admin_pb2.REPLICA_STATE_FOLLOWER if own is None else _STATES[own.role]


def _takes_no_part(view: ClusterView, group_id: GroupId, node: NodeId) -> bool:
    return not view.is_up(node) or view.trouble(group_id, node) is not None


def _down(view: ClusterView, node: NodeId) -> str:
    silence = view.silence_s(node)
    return "its node is down" + (", never heard from" if silence is None else f", last heard {silence:.1f} s ago")


def _behind(replica: admin_pb2.ReplicaDescription) -> str:
    lag = f"{replica.lag_entries} entries behind"
    if not replica.HasField("last_heard_ms"):
        return f"{lag}, not heard from by this leader"
    ago = f"last heard {replica.last_heard_ms / 1000:.1f} s ago"
    return f"{lag}, {ago}" if replica.lag_entries else f"had everything when {ago}"


def _why(
    view: ClusterView, group_id: GroupId, partition: Partition, description: admin_pb2.PartitionDescription
) -> str:
    ill = [replica for replica in description.replica_states if replica.why]
    reasons = _listed(f"node {replica.node_id}: {replica.why}" for replica in ill)
    total, needed = len(partition.replicas), partition.majority
    can_take_part = total - sum(replica.state in _TAKES_NO_PART for replica in ill)
    if not description.leader_node:
        if can_take_part < needed:
            return f"no leader: {needed} of {total} replicas are needed, {can_take_part} can take part; {reasons}"
        own = view.replica(group_id)
        missing = own.quorum_missing() if own is not None else None
        if missing is not None:
            names = ", ".join(map(str, missing))
            return f"no leader: {needed} of {total} replicas are needed; this node does not reach nodes {names}"
        return "no leader: an election is under way" + (f"; {reasons}" if reasons else "")
    if description.isr and len(description.isr) < needed:
        what = "writes are refused" if can_take_part < needed else "acknowledgements are late"
        return f"{what}: {needed} of {total} replicas are needed, {len(description.isr)} in sync; {reasons}"
    if not description.isr:
        return f"node {description.leader_node} has just been elected and has not told of its followers yet"
    if all(replica.in_sync for replica in ill):  # all take part, but what is wrong is not nothing
        return reasons
    return f"out of sync: {reasons}" if reasons else ""


def _listed(parts: Iterable[str]) -> str:
    return "; ".join(parts)


# ---- the cluster


def cluster_description(view: ClusterView) -> admin_pb2.DescribeClusterResponse:
    """The cluster and its nodes. Topics and partitions are counted without internal ones; what is not well, with."""
    controller = view.controller()
    topics = [topic for topic in view.image.topics.values() if not topic.internal]
    out = admin_pb2.DescribeClusterResponse(
        cluster_id=view.cluster_id,
        node_id=view.local.node_id,
        controller_node=controller.node_id if controller else 0,
        controller_epoch=controller.epoch if controller else 0,
        topics=len(topics),
        partitions=sum(len(topic.partitions) for topic in topics),
    )
    leaders, replicas = _count(view, out)
    for node_id in sorted({*view.image.nodes, view.local.node_id}):
        out.nodes.append(_node(view, node_id, leaders[node_id], replicas[node_id]))
    return out


def _count(view: ClusterView, out: admin_pb2.DescribeClusterResponse) -> tuple[Counter[NodeId], Counter[NodeId]]:
    leaders: Counter[NodeId] = Counter()
    replicas: Counter[NodeId] = Counter()
    for topic in view.image.topics.values():
        for number, partition in enumerate(topic.partitions):
            if not topic.internal:
                replicas.update(partition.voters)
            group_id = topic.group_id(number)
            hint = view.leader(group_id)
            if hint is None:
                out.leaderless_partitions += 1
                out.under_replicated_partitions += 1
                continue
            if not topic.internal:
                leaders[hint.node_id] += 1
            leading, _ = _leader_tells(view, group_id, hint)
            if leading is None or 1 + sum(f.in_sync for f in leading.followers) < len(partition.replicas):
                out.under_replicated_partitions += 1
    return leaders, replicas


def _node(view: ClusterView, node_id: NodeId, leaders: int, replicas: int) -> admin_pb2.NodeDescription:
    out = admin_pb2.NodeDescription(
        node_id=node_id,
        address=view.address(node_id),
        state=admin_pb2.NODE_STATE_UP if view.is_up(node_id) else admin_pb2.NODE_STATE_DOWN,
        leader_partitions=leaders,
        replica_partitions=replicas,
    )
    if out.state == admin_pb2.NODE_STATE_UP:
        out.why = view.node_why(node_id)
    silence_s = view.silence_s(node_id)
    if silence_s is not None:
        out.last_heard_ms = round(silence_s * 1000)
    told = view.told(node_id)
    if node_id == view.local.node_id:
        local = view.local
        out.process_id, out.version, out.allows_remote_stop = local.process_id, local.version, local.allows_remote_stop
    elif told is not None:
        status = told.status
        out.process_id, out.version = status.process_id, status.version
        out.allows_remote_stop = status.allows_remote_stop
    return out
