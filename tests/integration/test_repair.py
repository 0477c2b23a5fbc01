"""Nodes that lost more than a log goes back come back whole. On real processes and real disks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fluxlog.v1 import admin_pb2
from tests.integration.cluster import Cluster, NodeProcess, Writer, produce_request, wait_until

pytestmark = pytest.mark.slow


def describe(node: NodeProcess, topic: str) -> admin_pb2.TopicDescription:
    answer: admin_pb2.DescribeTopicsResponse = node.admin.DescribeTopics(
        admin_pb2.DescribeTopicsRequest(names=[topic]), timeout=5
    )
    return answer.topics[0]


def in_sync(node: NodeProcess, topic: str) -> bool:
    """All replicas of all partitions, as a node tells it."""
    return all(len(partition.isr) == len(partition.replicas) for partition in describe(node, topic).partitions)


def is_whole(cluster: Cluster, other: NodeProcess) -> bool:
    return in_sync(other, "orders") and in_sync(other, "__cluster_metadata")


def check_that_it_counts(cluster: Cluster, repaired: NodeProcess, writer: Writer) -> None:
    """With one other node gone it is one of the two that everything needs: records, and changes of the metadata."""
    first, second = cluster.others(repaired.node_id)
    wait_until(lambda: is_whole(cluster, first), "everything is in sync", 60)
    second.kill()
    writer.write(5)
    for node in (first, repaired):
        writer.check(node)
    cluster.create_topic("later", replication_factor=2, via=first.node_id)


def test_a_wiped_node_is_whole_again(tmp_path: Path) -> None:
    """Its replica of the metadata, too."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        writer = Writer(cluster, "orders")
        writer.write(20)
        victim = cluster.nodes[2]
        victim.kill()
        shutil.rmtree(victim.data_dir)
        victim.start()
        check_that_it_counts(cluster, victim, writer)
        victim.kill()
        victim.start()  # the binding is remembered: it takes part at once
        writer.write(5)


def test_a_node_whose_votes_are_damaged_is_whole_again(tmp_path: Path) -> None:
    """What it had promised is not known any more: its replicas are copied anew."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        writer = Writer(cluster, "orders")
        writer.write(20)
        victim = cluster.nodes[2]
        victim.kill()
        votes = victim.data_dir / "votes"
        votes.write_bytes(b"damaged" + votes.read_bytes()[7:])
        victim.start()
        check_that_it_counts(cluster, victim, writer)
        assert (victim.data_dir / "quarantine" / "votes.1").exists()


def test_a_node_that_was_away_while_retention_went_on(tmp_path: Path) -> None:
    """What it needs next is gone: it copies what is left, and is in sync again."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders", configs={"segment.bytes": "65536", "retention.bytes": "70000"})
        writer = Writer(cluster, "orders")
        writer.write(5)
        victim = cluster.nodes[2]
        victim.kill()
        first = cluster.others(victim.node_id)[0]

        def trimmed() -> int:
            first.log_stub.Produce(produce_request("orders", bytes(20_000)), timeout=5)
            return describe(first, "orders").partitions[0].log_start_offset

        wait_until(trimmed, "the head of the log is gone", 60)
        victim.start()
        wait_until(lambda: in_sync(first, "orders"), "it has copied what is left", 60)
        assert "log_replaced" in victim.log_text
        starts = {describe(node, "orders").partitions[0].log_start_offset for node in (first, victim)}
        assert 0 not in starts
