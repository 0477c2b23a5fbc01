"""Nodes die; what was acknowledged is there. On real processes and real disks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from fluxlog.v1 import errors_pb2, log_pb2
from tests.integration.cluster import Cluster, Writer, error_info, fetch_values, produce_request, wait_until

pytestmark = pytest.mark.slow


def test_leader_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL of the leader: writes go on, and what was acknowledged is there once and in order, on every node."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        writer = Writer(cluster, "orders")
        writer.write(20)
        for _ in range(3):
            leader = cluster.node(cluster.leader_of("orders"))
            leader.kill()
            writer.write(20)
            leader.start()
            writer.write(5)
            cluster.wait_ready()
        for node in cluster.nodes:
            writer.check(node)


def test_two_of_three_down_and_one_back(tmp_path: Path) -> None:
    """Without a quorum writes are refused with the reason and reads go on; one node more heals it by itself."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        writer = Writer(cluster, "orders")
        writer.write(10)
        for node in cluster.nodes:
            writer.check(node)
        survivor, *others = cluster.nodes
        for node in others:
            node.kill()

        def refusal() -> grpc.RpcError:
            try:
                survivor.log_stub.Produce(produce_request("orders", b"x", timeout_ms=3_000), timeout=5)
            except grpc.RpcError as error:
                return error
            raise AssertionError("a write was acknowledged without a quorum")

        info = wait_until(
            lambda: found if (found := error_info(refusal())).reason == "NO_QUORUM" else None, "NO_QUORUM is said"
        )
        assert info.metadata["outcome"] == "REJECTED"
        assert info.metadata["partition"] == "orders-0"
        assert (info.metadata["replicas"], info.metadata["needed"]) == ("3", "2")
        assert set(info.metadata["missing_nodes"].split(",")) == {"2", "3"}
        started = time.monotonic()
        refusal()
        assert time.monotonic() - started < 2.0  # promised are 0.2 s; the machine may be busy
        writer.check(survivor)

        others[0].start()
        writer.write(5)
        writer.check(survivor)
        writer.check(others[0])


def test_flood_is_refused_and_not_hoarded(tmp_path: Path) -> None:
    """While replicas hang, what does not fit the queues is refused with a delay; the leader's memory stays bounded."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        leader = cluster.node(cluster.leader_of("orders"))
        hung = [node.process.pid for node in cluster.others(leader.node_id) if node.process is not None]
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        try:
            request = produce_request("orders", bytes(900_000), timeout_ms=10_000)
            requests = (log_pb2.ProduceStreamRequest(correlation_id=n, request=request) for n in range(60))
            answers = list(leader.log_stub.ProduceStream(requests, timeout=30))
        finally:
            for pid in hung:
                os.kill(pid, signal.SIGCONT)
        assert sorted(answer.correlation_id for answer in answers) == list(range(60))
        assert not any(answer.HasField("committed") for answer in answers)
        overloaded = [answer.error for answer in answers if answer.error.reason == errors_pb2.ERROR_REASON_OVERLOADED]
        assert len(overloaded) >= 40
        for error in overloaded:
            assert (error.outcome, error.retriable) == (errors_pb2.OUTCOME_REJECTED, True)
            assert error.retry_after_ms > 0
        assert leader.memory_peak_mib < 400
        response = wait_until(
            lambda: leader.log_stub.Produce(produce_request("orders", b"x"), timeout=6), "writes are accepted again"
        )
        assert response.copies_on_disk >= 2


def test_all_killed_at_once(tmp_path: Path) -> None:
    """SIGKILL of all nodes together and a new start: everything acknowledged is there."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders", partitions=2)
        writer = Writer(cluster, "orders")
        writer.write(30)
        for node in cluster.nodes:
            assert node.process is not None
            node.process.kill()
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start()
        writer.write(5)
        for node in cluster.nodes:
            writer.check(node)


def test_graceful_stop(tmp_path: Path) -> None:
    """SIGTERM: leaderships are handed over, the process exits 0, and a writer sees no gap worth an election timeout."""
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders", partitions=3)
        writer = Writer(cluster, "orders")
        writer.write(5)
        leader = cluster.node(cluster.leader_of("orders"))
        assert leader.stop() == 0
        writer.write(5)
        assert "node_stop_hurried" not in leader.log_text
        leader.start()
        cluster.wait_ready()
        writer.check(leader)


def test_single_node_restart(tmp_path: Path) -> None:
    """A cluster of one keeps its records over SIGKILL, too."""
    with Cluster(tmp_path, 1) as cluster:
        node = cluster.node(1)
        cluster.create_topic("solo", replication_factor=1)
        node.log_stub.Produce(produce_request("solo", b"a", b"b"), timeout=5)
        node.kill()
        node.start()
        cluster.wait_ready()
        assert wait_until(lambda: fetch_values(node, "solo"), "the records are served") == [b"a", b"b"]
        request = log_pb2.ListOffsetsRequest(queries=[log_pb2.OffsetQuery(topic="solo", latest=True)])
        answer = wait_until(
            lambda: r if (r := node.log_stub.ListOffsets(request, timeout=2).results[0]).HasField("found") else None,
            "the latest offset is known",
        )
        assert answer.found.offset == 2
