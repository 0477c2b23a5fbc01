"""A cluster of an earlier version is upgraded one node at a time, under a producer: processes of two versions work
together, and the data directories of the earlier one open. With the project's own earlier code, from its history.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import grpc
import pytest

from fluxlog.v1 import admin_pb2, log_pb2_grpc
from tests.integration.cluster import Cluster, NodeProcess, code_of, fetch_values, produce_request, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EARLIER = "899256d568d3675eb437412ec3b10f74a20997a1"
"""Before metadata snapshots (command version 3), `AwaitLeaders`, several answers in a message, news of a commit that
may wait, and status rows that rest."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the earlier packages; skips the test where the history is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "--format=tar", EARLIER, "fluxd", "fluxlog"],
            capture_output=True, check=False, timeout=30,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("git is not there, so the earlier version is not either")
    if done.returncode != 0:
        pytest.skip(f"the history does not go back to {EARLIER}, a shallow clone? {done.stderr.decode().strip()}")
    code = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(code, filter="data")
    return code


class Writing:
    """Numbered records in a thread of its own, each sent again, to the next node, until it is acknowledged."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self.acknowledged = 0
        self._topic, self._producer_id, self._end = topic, os.urandom(16), threading.Event()
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self._channels = [grpc.insecure_channel(node.address, options=options) for node in cluster.nodes]
        self._stubs = [log_pb2_grpc.LogStub(channel) for channel in self._channels]
        self._wrong: list[tuple[int, int]] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for channel in self._channels:
            channel.close()

    def _run(self) -> None:
        turn = 0
        while not self._end.is_set():
            number = self.acknowledged
            request = produce_request(
                self._topic, b"%d" % number, producer_id=self._producer_id, base_sequence=number, timeout_ms=5_000
            )
            try:
                answer = self._stubs[turn % len(self._stubs)].Produce(request, timeout=6)
            except grpc.RpcError:
                turn += 1
                self._end.wait(0.02)
                continue
            if answer.base_offset != number:
                self._wrong.append((number, answer.base_offset))
            self.acknowledged += 1

    def goes_on(self) -> None:
        """Some more are acknowledged from now on."""
        goal = self.acknowledged + 20
        wait_until(lambda: self.acknowledged >= goal, "records are acknowledged")

    def check(self, node: NodeProcess) -> None:
        """Once it has ended: a node serves each acknowledged record once, in order; the last one may not be."""
        assert not self._thread.is_alive()
        assert not self._wrong

        def complete() -> bool:
            values = fetch_values(node, self._topic)
            assert values == [b"%d" % number for number in range(len(values))]
            return self.acknowledged <= len(values) <= self.acknowledged + 1

        wait_until(complete, f"node {node.node_id} serves {self.acknowledged} records")


def is_earlier(node: NodeProcess) -> bool:
    """The node runs the earlier code: it does not know a call that came later."""
    try:
        node.admin.AwaitLeaders(admin_pb2.AwaitLeadersRequest(), timeout=2)
    except grpc.RpcError as error:
        return code_of(error) is grpc.StatusCode.UNIMPLEMENTED
    return False


def in_sync(node: NodeProcess) -> bool:
    """All replicas of all topics are, and nothing is wrong with any, as the node has it."""
    topics = node.admin.DescribeTopics(admin_pb2.DescribeTopicsRequest(), timeout=5).topics
    return all(len(partition.isr) == 3 and not partition.why for topic in topics for partition in topic.partitions)


def check_new_topic(cluster: Cluster, name: str) -> None:
    """A topic made now, through each node in turn, can be written and read everywhere."""
    cluster.create_topic(name, via=len(name) % 3 + 1)
    for number, node in enumerate(cluster.nodes):
        node.log_stub.Produce(produce_request(name, b"%d" % number), timeout=10)
    for node in cluster.nodes:
        wait_until(lambda node=node: fetch_values(node, name) == [b"0", b"1", b"2"], f"{node.node_id} serves {name}")  # type: ignore[misc]


def test_a_rolling_upgrade_loses_and_duplicates_nothing(tmp_path: Path, earlier: Path) -> None:
    """With one and with two nodes upgraded everything works: writes, reads and new topics, through each node."""
    with Cluster(tmp_path, code=earlier) as cluster:
        assert all(is_earlier(node) for node in cluster.nodes)
        cluster.create_topic("orders")
        with Writing(cluster, "orders") as writing:
            writing.goes_on()
            for count, node in enumerate(cluster.nodes, 1):
                assert node.stop() == 0
                node.code = None
                node.start()
                cluster.wait_ready()
                wait_until(lambda: in_sync(cluster.node(1)), "all are in sync before the next one")
                assert [is_earlier(each) for each in cluster.nodes] == [False] * count + [True] * (3 - count)
                check_new_topic(cluster, f"with-{count}-upgraded")
                writing.goes_on()
        for node in cluster.nodes:
            writing.check(node)
            assert "unknown command" not in node.log_text


def test_directories_of_the_earlier_version_open(tmp_path: Path, earlier: Path) -> None:
    """All nodes at once, after a kill."""
    with Cluster(tmp_path, code=earlier) as cluster:
        cluster.create_topic("orders")
        with Writing(cluster, "orders") as writing:
            writing.goes_on()
        for node in cluster.nodes:
            node.kill()
            node.code = None
        for node in cluster.nodes:
            node.start()
        cluster.wait_ready()
        assert not any(is_earlier(node) for node in cluster.nodes)
        for node in cluster.nodes:
            writing.check(node)
        check_new_topic(cluster, "later")
        assert not any(list((node.data_dir / "quarantine").iterdir()) for node in cluster.nodes)
