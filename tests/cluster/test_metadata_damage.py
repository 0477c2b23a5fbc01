"""A bit flips in the metadata log of a running node: the scrub finds it, and it is repaired like any partition's."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest

from fluxd.core.errors import FluxError
from fluxd.core.types import METADATA_GROUP, NodeId
from fluxd.raft.group import Group
from fluxd.raft.spec import Role
from fluxd.storage.directory import PARTITIONS
from fluxlog.v1 import admin_pb2
from tests.cluster.bounds import metadata_trimmed_at
from tests.cluster.logs import captured
from tests.cluster.loop import generator_hooks
from tests.cluster.scene import ADMIN, TOPIC, Client
from tests.cluster.topics import Founder
from tests.cluster.world import Plan, World
from tests.simulation.damage import damage_closed_segment

# What a process that ended was in the middle of is dropped as it is.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

DIRECTORY = f"{PARTITIONS}/{METADATA_GROUP.directory_name}"
HEALING = 60.0
CHANGES = 12


class Alterer(Client):
    """Makes commands."""

    async def live(self) -> None:
        """So many."""
        done = 0
        while done < CHANGES:
            request = admin_pb2.AlterTopicRequest(name=TOPIC, set_configs={"segment.bytes": str(65_536 + done)})
            answer = await self.call(self.any_address(), ADMIN + "AlterTopic", request, admin_pb2.AlterTopicResponse, 5)
            done += not isinstance(answer, FluxError)


@pytest.fixture
def world() -> Iterator[World]:
    """Three nodes, whose metadata log has closed segments, all of which are kept."""
    plan = Plan(
        nodes=3, replicas=3, wipes_max=1, pace=1.0, retention_bytes=0, members=0, metadata_records=10_000,
        scrub_interval=1.0,
    )  # fmt: skip
    world = World(7, plan)
    with generator_hooks(), captured(), metadata_trimmed_at(plan.metadata_records):
        for node in world.nodes.values():
            node.start()
        world._run_client(Founder("founder", world.scene), 30)
        world._run_client(Alterer("alterer", world.scene), 30)
        yield world
        world._take_down()
        gc.collect()  # here, where what is left of dead processes is captured


def replica(world: World, number: int) -> Group | None:
    node = world.nodes[NodeId(number)]
    found = node.raft.groups.get(METADATA_GROUP) if node.raft else None
    return found if isinstance(found, Group) and found.role is not Role.FAILED else None


def leader_of(world: World) -> int:
    world.run_until(lambda: any(g and g.role is Role.LEADER for g in (replica(world, n) for n in (1, 2, 3))), "led", 30)
    return next(n for n in (1, 2, 3) if (group := replica(world, n)) and group.role is Role.LEADER)


@pytest.mark.parametrize("place", ["follower", "leader"])
def test_it_is_copied_while_the_node_runs(world: World, place: str) -> None:
    """The replica leaves (a leader hands over first), is copied and followed again, without a restart of the node; what
    is changed meanwhile and afterwards is known everywhere, also by the controller that is elected there.
    """
    leader = leader_of(world)
    victim = leader if place == "leader" else leader % 3 + 1
    node = world.nodes[NodeId(victim)]
    damaged = replica(world, victim)
    assert damage_closed_segment(node.disk, DIRECTORY, random.Random(1)) == "seg"
    world.run_until(lambda: replica(world, victim) not in (None, damaged), "it is copied", HEALING)
    assert any("log_damaged" in line for line in node.events)
    assert node.incarnation == 1
    world._run_client(Alterer("again", world.scene), 30)
    world.run_until(world._is_well, "all is well", HEALING)
    copied = replica(world, victim)
    assert copied is not None
    assert copied.log.first_index == 1
    for _ in range(20):  # until the node that had the damage is the controller
        if leader_of(world) == victim:
            break
        group = replica(world, leader_of(world))
        process = world.nodes[NodeId(leader_of(world))].process
        assert group is not None
        assert process is not None
        with process.loop.running():
            group.transfer(NodeId(victim))
        world._pass_time(1.0)
    assert leader_of(world) == victim
    world._run_client(Alterer("last", world.scene), 30)
    world.run_until(world._is_well, "all is well in the end", HEALING)
