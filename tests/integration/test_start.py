"""Starting: who founds, who joins, who is refused, and what an operator reads then."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import grpc
import pytest

from fluxlog.v1 import admin_pb2, log_pb2
from tests.integration.cluster import (
    Cluster,
    NodeProcess,
    Writer,
    code_of,
    error_info,
    fetch_values,
    free_ports,
    produce_request,
    wait_until,
)

pytestmark = pytest.mark.slow


def serve(
    *arguments: str, stderr: IO[bytes] | int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `fluxd serve` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "fluxd", "serve", *arguments],
        env={"PATH": "/usr/bin", **environment}, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=30,
        check=False,
    )  # fmt: skip


def test_bad_settings_are_one_line_and_exit_2() -> None:
    """What is wrong with the settings is said in one line."""
    result = serve("--listen", "127.0.0.1:1")
    assert (result.returncode, result.stderr) == (2, "fluxd: node_id is not set: use --node-id or FLUXD_NODE_ID\n")
    result = serve("--node-id", "1", FLUXD_LOG_LEVLE="info")
    assert result.returncode == 2
    assert "unknown variable FLUXD_LOG_LEVLE" in result.stderr


def test_directory_and_port_belong_to_one_process(tmp_path: Path) -> None:
    """A second process on a data directory, another node id on it, a port that is taken: refused with the reason."""
    with Cluster(tmp_path, 1) as cluster:
        node = cluster.node(1)
        assert node.process is not None
        second = serve("--node-id", "1", "--listen", "127.0.0.1:1", "--data-dir", str(node.data_dir))
        assert second.returncode == 1
        assert f"is in use by another process (process id {node.process.pid})" in second.stderr
        taken = serve("--node-id", "1", "--listen", node.address, "--data-dir", str(tmp_path / "other"))
        assert taken.returncode == 1
        assert f"cannot listen on {node.address}" in taken.stderr
        assert node.stop() == 0
        wrong = serve("--node-id", "2", "--data-dir", str(node.data_dir))
        assert wrong.returncode == 1
        assert "belongs to node 1, not 2" in wrong.stderr


@pytest.mark.parametrize("name", ["votes", "meta.json"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    """The operator is told which file of the data directory it is."""
    with Cluster(tmp_path, 1) as cluster:
        node = cluster.node(1)
        assert node.stop() == 0
        (node.data_dir / name).rename(tmp_path / name)
        (node.data_dir / name).mkdir()
        node.start()
        assert node.wait_exit() == 1
        assert f"cannot be used: [Errno 21] Is a directory: '{node.data_dir / name}'" in node.log_text


def test_a_directory_is_not_free_before_the_last_write_of_its_process(tmp_path: Path) -> None:
    """The disk hangs, the node is stopped: it has closed its port, but what waits for the disk may still change its
    files. Nobody else gets the directory before that is done.
    """
    pipe = tmp_path / "hang"
    cluster = Cluster(tmp_path, 1)
    node = cluster.node(1)
    node.module = "tests.integration.hanging_node"
    node.environment |= {"HANG_WHILE": str(pipe), "FLUXD_STOP_TIMEOUT": "0.2"}
    with cluster:
        cluster.create_topic("orders", replication_factor=1)
        assert node.process is not None
        os.mkfifo(pipe)
        # A call that nobody holds is cancelled when it is collected, maybe before it has left.
        produced = node.log_stub.Produce.future(produce_request("orders", b"never acknowledged"), timeout=60)
        writer = wait_until(lambda: _open_to_write(pipe), "a sync hangs")
        node.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _listens(node), "the node has closed its port")
        second = serve("--node-id", "1", "--listen", "127.0.0.1:1", "--data-dir", str(node.data_dir))
        assert second.returncode == 1
        assert f"is in use by another process (process id {node.process.pid})" in second.stderr
        pipe.unlink()
        os.close(writer)
        assert node.wait_exit() == 0
        assert isinstance(produced.exception(), grpc.RpcError)
        node.start()
        cluster.wait_ready()


def _open_to_write(pipe: Path) -> int:
    """A descriptor, as soon as somebody reads."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return 0


def _listens(node: NodeProcess) -> bool:
    try:
        socket.create_connection(("127.0.0.1", node.port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_no_cluster_without_all_seeds(tmp_path: Path) -> None:
    """Two of three seeds found nothing, answer NOT_READY and stop when asked; with the third they are a cluster."""
    cluster = Cluster(tmp_path)
    first, second, third = cluster.nodes
    try:
        first.start()
        second.start()
        wait_until(lambda: "no answer from nodes 3" in first.log_text, "node 1 waits for node 3")
        with pytest.raises(grpc.RpcError) as caught:
            first.log_stub.Fetch(log_pb2.FetchRequest(topic="x"), timeout=5)
        assert error_info(caught.value).reason == "NOT_READY"
        assert second.stop() == 0
        second.start()
        third.start()
        cluster.wait_ready()
        ids = {n.admin.DescribeCluster(admin_pb2.DescribeClusterRequest(), timeout=5).cluster_id for n in cluster.nodes}
        assert len(ids) == 1
        assert len(ids.pop()) == 32
    finally:
        cluster.__exit__()


def test_different_seed_lists_found_nothing(tmp_path: Path) -> None:
    """The one whose list differs from all others gives up and names both lists."""
    cluster = Cluster(tmp_path)
    odd = cluster.node(3)
    odd.seeds = cluster.seeds.replace("1@127.0.0.1", "1@localhost")
    try:
        for node in cluster.nodes:
            node.start()
        assert odd.wait_exit() == 1
        assert f"has the seed list {cluster.seeds}" in odd.log_text
        assert odd.seeds in odd.log_text
        assert "cluster_founded" not in "".join(node.log_text for node in cluster.nodes)
        odd.seeds = cluster.seeds
        odd.start()
        cluster.wait_ready()
    finally:
        cluster.__exit__()


def test_strangers_do_not_get_in(tmp_path: Path) -> None:
    """A wrong secret, a number that is taken, and a node of another cluster: each gives up with the reason."""
    with Cluster(tmp_path) as cluster:
        cluster.node(3).stop()
        stranger = cluster.node(3)
        stranger.environment = {"FLUXD_CLUSTER_SECRET": "another secret altogether"}
        stranger.start()
        assert stranger.wait_exit() == 1
        assert "was made with another cluster secret" in stranger.log_text
        stranger.environment = {"FLUXD_CLUSTER_SECRET": "integration-test-secret"}

        (port,) = free_ports(1)
        double = NodeProcess(tmp_path / "double", 2, port, cluster.seeds)
        double.root.mkdir()
        double.extra = ["--advertise", f"127.0.0.1:{port}"]
        double.start()
        assert double.wait_exit() == 1
        assert "node id 2 belongs to a live node" in double.log_text

        with Cluster(tmp_path / "double", 1) as foreign:
            foreign.node(1).stop()
        lost = NodeProcess(tmp_path / "double", 1, port, cluster.seeds)
        lost.start()
        assert lost.wait_exit() == 1
        assert "was founded by nodes 1; the seeds of node 1 are" in lost.log_text

        stranger.start()
        cluster.wait_ready()


def test_wiped_disk_comes_back(tmp_path: Path) -> None:
    """A node whose disk was lost meets its cluster again, stays out of its partitions until it has copied them, and
    then counts again, also after a restart."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        writer = Writer(cluster, "orders")
        writer.write(10)
        wiped = cluster.node(2)
        wiped.kill()
        wiped.data_dir.rename(tmp_path / "gone")
        wiped.start()
        group = _group_of(cluster, "orders")
        wait_until(lambda: "replica_unadmitted" in _events(wiped, group), "the replica says that it stays out")
        assert wait_until(lambda: fetch_values(wiped, "orders"), "node 2 passes reads on")[:1] == [b"0"]
        writer.write(5)
        # what the leader calls in sync may be older than the kill: the replica's own word counts
        wait_until(lambda: _events(wiped, group)[-1] == "partition_leader_known", "node 2 takes part again")
        wait_until(lambda: _in_sync(cluster, "orders") == {1, 2, 3}, "node 2 is in sync again")
        known = len(_events(wiped, group))
        wiped.kill()
        wiped.start()
        cluster.wait_ready()
        wait_until(lambda: len(_events(wiped, group)) > known, "node 2 takes part after a restart")
        assert _events(wiped, group)[known:] == ["partition_leader_known"]
        wait_until(lambda: _in_sync(cluster, "orders") == {1, 2, 3}, "node 2 is in sync after a restart")
        cluster.node(3).kill()
        writer.write(5)
        writer.check(wiped)


def test_wiped_disk_does_not_vote(tmp_path: Path) -> None:
    """While another replica is away nobody can say what was committed: one disk is no majority."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        writer = Writer(cluster, "orders")
        writer.write(10)
        wiped, absent = cluster.node(2), cluster.node(3)
        wiped.kill()
        absent.kill()
        wiped.data_dir.rename(tmp_path / "gone")
        wiped.start()
        wait_until(lambda: "replica_unadmitted" in wiped.log_text, "the replica says that it stays out")
        for node in (node for node in cluster.nodes if node.running):
            with pytest.raises(grpc.RpcError):  # REJECTED or UNKNOWN, never acknowledged
                node.log_stub.Produce(produce_request("orders", b"x", timeout_ms=500), timeout=5)
        absent.start()
        wait_until(lambda: _in_sync(cluster, "orders") == {1, 2, 3}, "node 2 is in sync again")
        writer.write(5)
        writer.check(wiped)


def _group_of(cluster: Cluster, topic: str) -> str:
    answer = cluster.node(1).admin.DescribeTopics(admin_pb2.DescribeTopicsRequest(names=[topic]), timeout=5)
    return f"{answer.topics[0].topic_id.hex()}-0"


def _events(node: NodeProcess, group: str) -> list[str]:
    """What a node has logged of a group, from its first start on."""
    lines = [json.loads(line) for line in node.log_text.splitlines() if f'"{group}"' in line]
    return [line["event"] for line in lines]


def _in_sync(cluster: Cluster, topic: str) -> set[int]:
    request = admin_pb2.DescribeTopicsRequest(names=[topic])
    try:
        response = cluster.node(1).admin.DescribeTopics(request, timeout=5)
    except grpc.RpcError:
        return set()
    return set(response.topics[0].partitions[0].isr) if response.topics else set()


def test_remote_stop_and_kill(tmp_path: Path) -> None:
    """With leave for it, a node is stopped and killed over the network; a wrong node id is refused."""
    cluster = Cluster(tmp_path, 2)
    for node in cluster.nodes:
        node.extra = ["--allow-remote-stop"]
    with cluster:
        first, second = cluster.nodes
        with pytest.raises(grpc.RpcError) as caught:
            first.admin.KillNode(admin_pb2.KillNodeRequest(node_id=2), timeout=5)
        assert code_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
        second.admin.KillNode(admin_pb2.KillNodeRequest(node_id=2), timeout=5)
        assert second.wait_exit() == -signal.SIGKILL
        first.admin.StopNode(admin_pb2.StopNodeRequest(node_id=1), timeout=5)
        assert first.wait_exit() == 0


def test_foreign_partition_is_quarantined(tmp_path: Path) -> None:
    """Files of a partition that the metadata does not know are set aside, never removed; a deleted topic's files go."""
    with Cluster(tmp_path) as cluster:
        topic_id = cluster.create_topic("short")
        node = cluster.node(3)
        node.stop()
        unknown = node.data_dir / "partitions" / f"{'ab' * 16}-0"
        unknown.mkdir()
        (unknown / "keep").write_text("me")
        cluster.node(1).admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name="short"), timeout=10)
        node.start()
        aside = node.data_dir / "quarantine" / f"{unknown.name}.1" / "keep"
        wait_until(aside.exists, "the unknown partition is set aside")
        assert aside.read_text() == "me"
        deleted = node.data_dir / "partitions" / f"{topic_id.hex()}-0"
        wait_until(lambda: not deleted.exists(), "the deleted partition is removed")
