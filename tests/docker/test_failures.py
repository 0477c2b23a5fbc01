"""Containers are killed, paused, cut off, stopped and replaced under load; the checker judges every history."""

from __future__ import annotations

import docker

from fluxlog.errors import FluxlogError, Outcome
from fluxlog.v1 import log_pb2, record_pb2
from tests.docker.compose import NODES, ComposeProject
from tests.docker.engine import NEWER_IMAGE, NEWER_VERSION, build_newer_image, wait_until
from tests.docker.scene import scene
from tests.docker.table import Row


def test_leader_killed(cluster: ComposeProject, rows: list[Row]) -> None:
    """SIGKILL of the leader's container: the others go on, and it catches up."""
    with scene(cluster, "killed", "leader killed", rows) as stage:
        leader = stage.leader()
        stage.begin()
        cluster.kill(leader)
        stage.load.wait_progress()
        cluster.start(leader)


def test_leader_paused(cluster: ComposeProject, rows: list[Row]) -> None:
    """A leader that is frozen, connections and all, is replaced; thawed, it follows."""
    with scene(cluster, "paused", "leader paused, unpaused", rows) as stage:
        frozen = cluster.container(stage.leader())
        stage.begin()
        frozen.pause()
        try:
            stage.load.wait_progress()
        finally:
            frozen.unpause()


def test_leader_cut_off(cluster: ComposeProject, rows: list[Row]) -> None:
    """A leader without a network is replaced; joined again, it follows."""
    with scene(cluster, "disconnected", "leader cut off its network, joined again", rows) as stage:
        leader = stage.leader()
        stage.begin()
        cluster.disconnect(leader)
        stage.load.wait_progress()
        cluster.connect(leader)


def test_leader_stopped(cluster: ComposeProject, rows: list[Row]) -> None:
    """`docker stop` hands leadership over, and the container's exit code is 0."""
    with scene(cluster, "stopped", "leader stopped (docker stop)", rows) as stage:
        leader = stage.leader()
        stage.begin()
        assert cluster.stop(leader) == 0
        stage.load.wait_progress()
        log = cluster.container(leader).logs(tail=50).decode()
        assert '"event": "node_stopped"' in log
        assert "node_stop_hurried" not in log
        assert stage.leader() != leader
        cluster.start(leader)


def test_two_of_three_killed(cluster: ComposeProject, rows: list[Row]) -> None:
    """Without a quorum writes are refused with the reason; one node more and it goes on by itself."""
    with scene(cluster, "quorum", "two of three killed, one started", rows) as stage:
        survivor, *others = NODES
        stage.begin()
        cluster.kill(*others)
        refusal = wait_until(lambda: refusal_of(cluster, survivor, stage.topic), "NO_QUORUM is said")
        assert refusal.outcome is Outcome.REJECTED
        assert set(refusal.metadata["missing_nodes"].split(",")) == {str(node) for node in others}
        assert read_one(cluster, survivor, stage.topic)
        stage.count_from_now()
        cluster.start(others[0])
        stage.load.wait_progress()
        cluster.start(others[1])


def test_all_killed(cluster: ComposeProject, rows: list[Row]) -> None:
    """All three at once: everything that was acknowledged is on their volumes."""
    with scene(cluster, "all", "all three killed and started", rows) as stage:
        stage.begin()
        cluster.kill(*NODES)
        cluster.start(*NODES)
        stage.load.wait_progress()


def test_rolling_restart(cluster: ComposeProject, rows: list[Row], engine: docker.DockerClient) -> None:
    """Every container is replaced by one of a newer image, one after another, while writing goes on."""
    build_newer_image(engine)
    with scene(cluster, "rolling", "rolling restart with a newer image", rows) as stage:
        stage.begin()
        for node in NODES:
            cluster.up(node, image=NEWER_IMAGE)
            cluster.wait_healthy()
            assert cluster.version_of(node) == NEWER_VERSION
        assert all(cluster.container(node).attrs["Config"]["Image"] == NEWER_IMAGE for node in NODES)


def refusal_of(cluster: ComposeProject, node: int, topic: str) -> FluxlogError | None:
    """What a node says to a write; None unless it is that there is no quorum."""
    request = log_pb2.ProduceRequest(topic=topic, records=[record_pb2.Record(value=b"x")], timeout_ms=3_000)
    try:
        cluster.client.call_node(cluster.addresses[node], lambda one: one.log.Produce, request, timeout=5.0)
    except FluxlogError as failure:
        return failure if failure.reason == "NO_QUORUM" else None
    raise AssertionError("a write was acknowledged without a quorum")


def read_one(cluster: ComposeProject, node: int, topic: str) -> bytes:
    """The first record, from one node."""
    request = log_pb2.FetchRequest(topic=topic, as_records=True, max_bytes=1)
    answer = cluster.client.call_node(cluster.addresses[node], lambda one: one.log.Fetch, request, timeout=5.0)
    return answer.records[0].value
