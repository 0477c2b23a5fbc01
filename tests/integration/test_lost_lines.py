"""A node's log lines are lost where they cannot be written; the node goes on, and says later how many there were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, NodeProcess, Writer, fetch_values, wait_until
from tests.integration.test_start import serve

pytestmark = pytest.mark.slow


def alone(tmp_path: Path) -> tuple[Cluster, NodeProcess]:
    """A cluster of one node that was not started yet, and logs every request."""
    cluster = Cluster(tmp_path, 1)
    node = cluster.node(1)
    node.extra = ["--log-level", "debug"]
    return cluster, node


def use(cluster: Cluster) -> None:
    """Create a topic, write, read."""
    cluster.create_topic("orders", replication_factor=1)
    writer = Writer(cluster, "orders")
    writer.write(10)
    writer.check(cluster.node(1))


def test_stderr_on_a_disk_that_is_full(tmp_path: Path) -> None:
    """It starts, serves, and stops as if nothing were wrong."""
    cluster, node = alone(tmp_path)
    node.log_path = Path("/dev/full")
    with cluster:
        use(cluster)
        assert node.stop() == 0


def test_stderr_is_a_pipe_whose_reader_goes(tmp_path: Path) -> None:
    """The same, at any time; a reader that comes later is told how many lines are lost."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cluster, node = alone(tmp_path)
    node.log_path = pipe
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with cluster:
        use(cluster)
        os.close(reader)
        assert fetch_values(node, "orders") == [b"%d" % number for number in range(10)]
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        read = bytearray()

        def told() -> int:
            """Look at a line that was written after another request."""
            assert fetch_values(node, "orders")
            read.extend(os.read(reader, 1 << 16))
            lines = [json.loads(line) for line in read.splitlines(keepends=True) if line.endswith(b"\n")]
            return max((line.get("lines_lost", 0) for line in lines), default=0)

        assert wait_until(told, "the lost lines are told") >= 1
        assert node.stop() == 0
    os.close(reader)


def test_a_refused_start_keeps_its_exit_code() -> None:
    """Settings that are not usable: 2, whoever can read why."""
    with Path("/dev/full").open("wb") as full:
        assert serve("--listen", "127.0.0.1:1", stderr=full).returncode == 2
