"""Which nodes hold the replicas of new partitions, and which of them is the preferred leader. Pure: the same inputs
give the same answer.

Replica sets first, then leaders within the sets:

* A topic's partitions are spread over the nodes evenly (its load should meet all of them), and what cannot be even goes
  to the nodes that hold least of the whole cluster.
* Leaders are chosen one by one and then improved along chains (a leads what b could lead, b leads what c could …) until
  no chain makes them more even. That is the known optimum of assigning tasks to machines with restricted choice.

Racks are deliberately absent; nodes that are down are used only where the others do not suffice.
Source: Harvey, Ladner, Lovász, Tamir: Semi-matchings for bipartite graphs and load balancing (2003).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId

Assignment = tuple[NodeId, ...]
"""Distinct nodes, the preferred leader first."""


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What a node holds already, over all topics."""

    node_id: NodeId
    replicas: int = 0
    leaders: int = 0
    """Partitions of which it is the preferred leader."""
    up: bool = True


def assign(
    nodes: Sequence[NodeLoad],
    partitions: int,
    replication_factor: int,
    *,
    existing: Sequence[Assignment] = (),
    seed: int = 0,
) -> list[Assignment]:
    """Place the replicas of new partitions of one topic.

    Args:
        nodes: every node that may be used, with its load without these partitions.
        partitions: how many new ones, from 1.
        replication_factor: 1..len(nodes).
        existing: the partitions that the topic has already; they count for its spread.
        seed: decides between equals.

    Returns:
        One assignment per new partition. On nodes that are equally loaded, the numbers of replicas differ by one at
        most, and so do those of preferred leaders.

    Raises:
        FluxError: NOT_ENOUGH_NODES. Nothing was done.
    """
    if replication_factor > len(nodes):
        raise FluxError(
            Reason.NOT_ENOUGH_NODES,
            f"replication factor {replication_factor} is above the number of nodes, {len(nodes)}",
            metadata={"replication_factor": str(replication_factor), "nodes": str(len(nodes))},
        )
    chooser = random.Random(seed)
    sets = _replica_sets(nodes, partitions, replication_factor, existing, chooser)
    leaders = _choose_leaders(sets, {node.node_id: node.leaders for node in nodes}, existing, chooser)
    out = []
    for replicas, leader in zip(sets, leaders, strict=True):
        followers = [node for node in replicas if node != leader]
        chooser.shuffle(followers)
        out.append((leader, *followers))
    return out


def _replica_sets(
    nodes: Sequence[NodeLoad],
    partitions: int,
    replication_factor: int,
    existing: Sequence[Assignment],
    chooser: random.Random,
) -> list[Assignment]:
    of_topic = Counter(node for assignment in existing for node in assignment)
    of_cluster = {node.node_id: node.replicas for node in nodes}
    down = {node.node_id: not node.up for node in nodes}
    order = sorted(of_cluster)
    sets = []
    for _ in range(partitions):
        chooser.shuffle(order)  # the sort is stable: equals come in a new order for each partition, so that sets vary
        best = sorted(order, key=lambda node: (down[node], of_topic[node], of_cluster[node]))[:replication_factor]
        for node in best:
            of_topic[node] += 1
            of_cluster[node] += 1
        sets.append(tuple(best))
    return sets


def _choose_leaders(
    sets: Sequence[Assignment], load: dict[NodeId, int], existing: Sequence[Assignment], chooser: random.Random
) -> list[NodeId]:
    of_topic = Counter(assignment[0] for assignment in existing)
    # One number to minimise: evenness within the topic weighs more than any difference over the cluster.
    scale = max(load.values(), default=0) + len(sets) + 1
    weight = {node: of_topic[node] * scale + load[node] for node in load}
    step = scale + 1  # what one more leadership adds: one of the topic's, one of the cluster's
    leaders = []
    for replicas in sets:
        lightest = min(weight[node] for node in replicas)
        leader = chooser.choice([node for node in replicas if weight[node] == lightest])
        weight[leader] += step
        leaders.append(leader)
    while _improve(sets, leaders, weight, step):
        pass
    return leaders


def _improve(sets: Sequence[Assignment], leaders: list[NodeId], weight: dict[NodeId, int], step: int) -> bool:
    """Move leaderships along one chain from a heavy node to one that is lighter by more than a step."""
    led: dict[NodeId, list[int]] = {}
    for partition, leader in enumerate(leaders):
        led.setdefault(leader, []).append(partition)
    for start in sorted(led, key=lambda node: (-weight[node], node)):
        came_by: dict[NodeId, int] = {start: -1}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if weight[start] - weight[node] > step:
                _shift(node, came_by, leaders)
                weight[start] -= step
                weight[node] += step
                return True
            for partition in led.get(node, ()):
                for other in sets[partition]:
                    if other not in came_by:
                        came_by[other] = partition
                        queue.append(other)
    return False


def _shift(node: NodeId, came_by: dict[NodeId, int], leaders: list[NodeId]) -> None:
    while (partition := came_by[node]) >= 0:
        previous = leaders[partition]
        leaders[partition] = node
        node = previous
