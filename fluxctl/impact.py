"""What would the loss of a node do? Worked out from what the cluster says about itself; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxlog.v1 import admin_pb2

_VOTING = frozenset(
    {admin_pb2.REPLICA_STATE_LEADER, admin_pb2.REPLICA_STATE_FOLLOWER, admin_pb2.REPLICA_STATE_CANDIDATE}
)


@dataclass(frozen=True, slots=True)
class Impact:
    """Consequences for one partition."""

    topic: str
    partition: int
    loses_leader: bool
    loses_quorum: bool
    has_quorum_now: bool
    live_after: int
    needed: int
    replicas: int

    @property
    def consequence(self) -> str:
        """In words."""
        if not self.has_quorum_now:
            return f"has no quorum already ({self.live_after} of {self.replicas} after it, {self.needed} needed)"
        if self.loses_quorum:
            return f"loses its quorum: no writes ({self.live_after} of {self.replicas} left, {self.needed} needed)"
        return f"elects a new leader ({self.live_after} of {self.replicas} left, {self.needed} needed)"


def impact_of(node_id: int, topics: Sequence[admin_pb2.TopicDescription], live_nodes: frozenset[int]) -> list[Impact]:
    """Partitions that would lose their leader or their quorum with this node.

    Args:
        live_nodes: nodes that are up.
    """
    out = []
    for topic in topics:
        for partition in topic.partitions:
            if node_id not in partition.replicas:
                continue
            states = {replica.node_id: replica.state for replica in partition.replica_states}
            live = {
                replica
                for replica in partition.replicas
                if replica in live_nodes and states.get(replica, admin_pb2.REPLICA_STATE_FOLLOWER) in _VOTING
            }
            needed = len(partition.replicas) // 2 + 1
            impact = Impact(
                topic=topic.name,
                partition=partition.partition,
                loses_leader=partition.leader_node == node_id,
                loses_quorum=len(live) >= needed > len(live - {node_id}),
                has_quorum_now=len(live) >= needed,
                live_after=len(live - {node_id}),
                needed=needed,
                replicas=len(partition.replicas),
            )
            if impact.loses_leader or impact.loses_quorum:
                out.append(impact)
    return out
