"""A disk that runs full under real processes: the node stays up, says what is wrong, and heals when there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from fluxlog.v1 import admin_pb2
from tests.integration.cluster import (
    DEADLINE,
    Cluster,
    NodeProcess,
    Writer,
    error_info,
    fetch_values,
    produce_request,
    wait_until,
)

pytestmark = pytest.mark.slow

DISK_MIB = 96
"""Of the small disk: more than the reserve of 64 MiB by as much as a test writes."""
_MIB = 1 << 20


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A tmpfs of DISK_MIB mounted at a directory; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextmanager
def cluster_on_small_disks(tmp_path: Path, *node_ids: int) -> Iterator[Cluster]:
    """Three nodes; those have small disks, for their log lines, too, of which there are many."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path)
        for node in (cluster.node(node_id) for node_id in node_ids):
            stack.enter_context(small_disk(node.data_dir))
            node.log_path = node.data_dir / "node.log"
            node.extra = ["--log-level", "debug"]
        yield stack.enter_context(cluster)


def fill(node: NodeProcess, *, leave: int) -> Path:
    """Use up the node's disk but for so many bytes; returns the file that did it."""
    ballast = node.data_dir / "ballast"
    found = os.statvfs(node.data_dir)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)
    return ballast


def lead(cluster: Cluster, node_id: int) -> None:
    """Have a node lead orders-0."""

    def leads() -> bool:
        if cluster.leader_of("orders") == node_id:
            return True
        request = admin_pb2.TransferLeadershipRequest(topic="orders", partition=0, to_node=node_id)
        cluster.node(1).admin.TransferLeadership(request, timeout=3)
        return False

    wait_until(leads, f"node {node_id} leads")


def refusal(node: NodeProcess) -> str:
    """Why a record is refused; empty: it was acknowledged."""
    try:
        node.log_stub.Produce(produce_request("orders", b"more", timeout_ms=3_000), timeout=5)
    except grpc.RpcError as error:
        return str(error_info(error).reason)
    return ""


def why(node: NodeProcess) -> str:
    """What `fluxctl topics describe --why` says, asked of a node."""
    command = [sys.executable, "-m", "fluxctl", "topics", "describe", "orders", "--why"]
    environment = {**os.environ, "FLUXCTL_BOOTSTRAP": node.address, "COLUMNS": "300"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_leader_on_a_full_disk_refuses_and_goes_on(tmp_path: Path) -> None:
    """DISK_FULL below the reserve, REJECTED with a time to wait; it is served to readers all the time; when there is
    room it works again.
    """
    with cluster_on_small_disks(tmp_path, 2) as cluster:
        cluster.create_topic("orders")
        writer = Writer(cluster, "orders")
        writer.write(10)
        lead(cluster, 2)
        ballast = fill(cluster.node(2), leave=10 * _MIB)
        wait_until(lambda: refusal(cluster.node(1)) == "DISK_FULL", "DISK_FULL is said")
        wait_until(lambda: "node 2: its disk has less than 64 MiB left" in why(cluster.node(3)), "others know why")
        assert len(fetch_values(cluster.node(2), "orders")) >= 10
        ballast.unlink()
        wait_until(lambda: refusal(cluster.node(1)) == "", "records are taken again")
        wait_until(lambda: "all is well" in why(cluster.node(3)), "others know that, too")
        assert [value for value in fetch_values(cluster.node(2), "orders") if value != b"more"] == [
            b"%d" % number for number in range(writer.acknowledged)
        ]


def test_one_disk_full_to_the_last_byte(tmp_path: Path) -> None:
    """That replica stops and says so; producers do not notice; with room it is in sync again by itself."""
    with cluster_on_small_disks(tmp_path, 2) as cluster:
        cluster.create_topic("orders")
        lead(cluster, 1)
        writer = Writer(cluster, "orders")
        writer.write(10)
        full = cluster.node(2)
        ballast = fill(full, leave=0)
        writer.write(200)
        said = wait_until(lambda: text if "No space left" in (text := why(cluster.node(3))) else "", "why is said")
        assert "node 2" in said and "its disk failed" in said
        assert full.running
        writer.write(5)
        ballast.unlink()
        wait_until(lambda: "No space left" not in why(cluster.node(3)), "the replica is back")
        for node in cluster.nodes:
            wait_until(lambda node=node: len(fetch_values(node, "orders")) == 215, "every node has all of it")  # type: ignore[misc]
            writer.check(node)
        wait_until(lambda: '"lines_lost":' in full.log_text, "the node says that lines of its log are lost")


def test_two_disks_full_to_the_last_byte(tmp_path: Path) -> None:
    """No majority can write: refused with NO_QUORUM or NO_LEADER, the reasons are told, reads go on; with room on one
    of them it works again, and everything acknowledged is there.
    """
    with cluster_on_small_disks(tmp_path, 2, 3) as cluster:
        cluster.create_topic("orders")
        lead(cluster, 1)
        writer = Writer(cluster, "orders")
        writer.write(10)
        ballast = [fill(cluster.node(node_id), leave=0) for node_id in (2, 3)]
        seen: set[str] = set()

        def no_quorum() -> bool:
            seen.add(refusal(cluster.node(1)))
            return "NO_QUORUM" in seen

        wait_until(no_quorum, f"NO_QUORUM is said; so far {seen}")
        said = wait_until(lambda: text if "No space left" in (text := why(cluster.node(1))) else "", "why is said")
        assert "its disk failed" in said
        assert fetch_values(cluster.node(1), "orders")[:10] == [b"%d" % number for number in range(10)]
        assert all(node.running for node in cluster.nodes)
        ballast[0].unlink()
        wait_until(lambda: refusal(cluster.node(1)) == "", "a majority writes again", seconds=40)
        ballast[1].unlink()
        wait_until(lambda: "No space left" not in why(cluster.node(1)), "both replicas are back", seconds=40)
        for node in cluster.nodes:
            assert fetch_values(node, "orders")[:10] == [b"%d" % number for number in range(10)]
