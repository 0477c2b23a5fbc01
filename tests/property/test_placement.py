"""Placement spreads replicas and leaders, whatever the numbers are."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.errors import FluxError, Reason
from fluxd.core.placement import Assignment, NodeLoad, assign
from fluxd.core.types import NodeId


def spread(counts: dict[NodeId, int]) -> int:
    return max(counts.values()) - min(counts.values())


def count(nodes: list[NodeLoad], assignments: list[Assignment]) -> tuple[dict[NodeId, int], dict[NodeId, int]]:
    replicas = Counter(node for assignment in assignments for node in assignment)
    leaders = Counter(assignment[0] for assignment in assignments)
    return (
        {node.node_id: node.replicas + replicas[node.node_id] for node in nodes},
        {node.node_id: node.leaders + leaders[node.node_id] for node in nodes},
    )


@given(nodes=st.integers(1, 12), partitions=st.integers(1, 60), factor=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_equal_nodes_differ_by_one_at_most(nodes: int, partitions: int, factor: int, seed: int) -> None:
    """On equal nodes the numbers of replicas, and of preferred leaders, differ by one at most; replicas are on distinct
    nodes.
    """
    factor = min(factor, nodes)
    loads = [NodeLoad(NodeId(number)) for number in range(1, nodes + 1)]
    assignments = assign(loads, partitions, factor, seed=seed)
    assert len(assignments) == partitions
    assert all(len(set(assignment)) == len(assignment) == factor for assignment in assignments)
    replicas, leaders = count(loads, assignments)
    assert spread(replicas) <= 1
    assert spread(leaders) <= 1
    assert assignments == assign(loads, partitions, factor, seed=seed)


@given(
    nodes=st.integers(2, 8),
    topics=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
)
def test_many_topics_stay_even(nodes: int, topics: list[tuple[int, int]], seed: int) -> None:
    """Topic after topic, the cluster as a whole stays even to one replica."""
    loads = [NodeLoad(NodeId(number)) for number in range(1, nodes + 1)]
    for partitions, factor in topics:
        replicas, leaders = count(loads, assign(loads, partitions, min(factor, nodes), seed=seed))
        loads = [NodeLoad(node.node_id, replicas[node.node_id], leaders[node.node_id]) for node in loads]
        assert spread(replicas) <= 1


@given(
    loads=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), min_size=1, max_size=8),
    first=st.integers(1, 20),
    more=st.integers(1, 20),
    factor=st.integers(1, 5),
)
def test_added_partitions_keep_the_topic_even(
    loads: list[tuple[int, int, bool]], first: int, more: int, factor: int
) -> None:
    """A topic is spread evenly over the nodes that are up, also when it grows, whatever else the nodes hold."""
    nodes = [NodeLoad(NodeId(number), *load) for number, load in enumerate(loads, 1)]
    factor = min(factor, len(nodes))
    existing = assign(nodes, first, factor)
    added = assign(nodes, more, factor, existing=existing)
    if all(node.up for node in nodes):
        replicas, leaders = count([NodeLoad(node.node_id) for node in nodes], existing + added)
        assert spread(replicas) <= 1
        assert spread(leaders) <= 2
    ups = {node.node_id for node in nodes if node.up}
    for assignment in existing + added:
        assert len(ups & set(assignment)) == min(factor, len(ups))


def test_too_few_nodes_are_refused() -> None:
    """A replication factor above the number of nodes is NOT_ENOUGH_NODES."""
    with pytest.raises(FluxError) as caught:
        assign([NodeLoad(NodeId(1))], 1, 2)
    assert caught.value.reason is Reason.NOT_ENOUGH_NODES
