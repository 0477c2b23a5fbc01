"""A volume is removed: its node must not vote with what it has forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fluxlog.v1 import admin_pb2
from tests.docker.compose import NODES, ComposeProject
from tests.docker.engine import wait_until
from tests.docker.scene import scene
from tests.docker.table import Row


@pytest.fixture(scope="module")
def cluster(projects: Callable[[str], ComposeProject]) -> ComposeProject:
    """A cluster of its own: this one does not become whole again."""
    return projects("lost")


def test_lost_volume(cluster: ComposeProject, rows: list[Row]) -> None:
    """The leader's volume is removed: it comes back empty, copies what it lost and is in sync again; writes go on,
    and new topics use it."""
    victim = NODES[-1]
    with scene(cluster, "lost", "leader killed and its volume removed", rows, lost=[victim]) as stage:
        cluster.admin.transfer_leadership(stage.topic, 0, to_node=victim)
        wait_until(lambda: stage.leader() == victim, f"node {victim} leads")
        stage.begin()
        cluster.lose_disk(victim)
        stage.load.wait_progress()
        cluster.up(victim)
        wait_until(lambda: is_up(cluster, victim), f"node {victim} is back")
        wait_until(lambda: victim in cluster.describe(stage.topic).isr, "it has copied what it lost and is in sync")
        acknowledged = stage.load.acknowledged
        wait_until(lambda: stage.load.acknowledged > acknowledged + 20, "writing goes on")
    cluster.admin.create_topic("after", partitions=1, replication_factor=3, wait_ms=20_000)
    wait_until(lambda: victim in cluster.describe("after").isr, "a new topic is on it too")


def is_up(cluster: ComposeProject, node: int) -> bool:
    """Another node hears it."""
    return any(
        one.node_id == node and one.state == admin_pb2.NODE_STATE_UP
        for one in cluster.admin.describe_cluster(address=cluster.addresses[1]).nodes
    )
