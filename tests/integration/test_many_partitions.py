"""A node with more partitions than it may open files."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from fluxlog.v1 import admin_pb2
from tests.integration.cluster import Cluster, NodeProcess, fetch_values, produce_request, wait_until

pytestmark = pytest.mark.slow

FILES = 160
PARTITIONS = 150
TOPIC = "many"
PRODUCER = bytes(range(16))


def _open_files(node: NodeProcess) -> list[str]:
    assert node.process is not None
    found = []
    for entry in Path(f"/proc/{node.process.pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def _of_partitions(node: NodeProcess) -> int:
    return sum("/partitions/" in path for path in _open_files(node))


def _write(node: NodeProcess, value: bytes, sequence: int) -> None:
    for partition in range(PARTITIONS):  # with a producer id: what is committed late is not written twice
        request = produce_request(
            TOPIC, value, partition=partition, timeout_ms=5_000, producer_id=PRODUCER, base_sequence=sequence
        )
        wait_until(partial(node.log_stub.Produce, request, timeout=6), f"{TOPIC}-{partition} is written")


def test_more_partitions_than_open_files(tmp_path: Path) -> None:
    """150 partitions, 300 files, 160 descriptors: all can be written, one after the other, and read; also after
    SIGKILL. Files of partitions take half of the descriptors at most, beside what is in use."""
    with Cluster(tmp_path, 1) as cluster:
        node = cluster.node(1)
        assert node.stop() == 0
        node.files_max = FILES
        node.start()
        cluster.wait_ready()
        assert '"file_limit_found_low"' in node.log_text
        cluster.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=1)
        _write(node, b"one", 0)
        assert 0 < _of_partitions(node) <= FILES // 2 + 8
        node.kill()
        node.start()
        cluster.wait_ready()
        _write(node, b"two", 1)
        assert 0 < _of_partitions(node) <= FILES // 2 + 8
        for partition in range(PARTITIONS):
            assert fetch_values(node, TOPIC, partition) == [b"one", b"two"]
        topic = node.admin.DescribeTopics(admin_pb2.DescribeTopicsRequest(names=[TOPIC]), timeout=10).topics[0]
        assert all(partition.leader_node == 1 for partition in topic.partitions)
        assert "replica_unadmitted" not in node.log_text
        assert "Too many open files" not in node.log_text
        assert len(os.listdir(node.data_dir / "partitions")) > PARTITIONS  # noqa: PTH208 - names only
        assert node.stop() == 0
