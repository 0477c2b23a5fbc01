"""One node's broker parts without a network: simulated time and disk, and groups that are set by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TypeVar

from fluxd.broker.cluster import ClusterView, LocalNode
from fluxd.broker.cluster import Replica as GroupView
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import FIRST_GENERATION, Image, Partition, Replica, apply, founding_image
from fluxd.core.metadata_commands import Commands
from fluxd.core.types import GroupId, NodeId, Offset, Term
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2
from tests.simulation.clock import DiskSpeed, SimReactor, Simulator

T = TypeVar("T")

ME = NodeId(1)


def directory(node: int) -> bytes:
    """Directory id of a node."""
    return bytes([node]) * 16


def local_node(node: int = ME) -> LocalNode:
    """What a node tells of itself."""
    return LocalNode(NodeId(node), directory(node), f"host{node}:7000", 100 + node, "0.1.0")


def founding(nodes: Sequence[int]) -> peer_pb2.Founding:
    """A cluster of these nodes."""
    seeds = [
        peer_pb2.FoundingSeed(node_id=node, directory_id=directory(node), address=f"host{node}:7000") for node in nodes
    ]
    return peer_pb2.Founding(cluster_id="cluster", seeds=seeds)


def partition(*nodes: int) -> Partition:
    """Replicas on these nodes."""
    return Partition(FIRST_GENERATION, tuple(Replica(NodeId(node), directory(node)) for node in nodes))


class Metadata:
    """An image that grows by commands."""

    def __init__(self, nodes: Sequence[int] = (1, 2, 3)) -> None:
        self.image: Image = founding_image(founding(nodes))
        self.commands = Commands(random.Random(1).random, lambda: 0)

    def create(self, name: str, *partitions: Partition) -> bytes:
        """A new topic; returns its id."""
        self.image, result = apply(self.image, self.commands.create_topic(name, partitions, {}))
        assert result.reason is None, result
        return result.created_topic

    def delete(self, topic_id: bytes) -> None:
        """The topic is gone."""
        self.image, result = apply(self.image, self.commands.delete_topic(topic_id))
        assert result.reason is None, result


class Clock:
    """Simulated time for one node."""

    def __init__(self) -> None:
        self.simulator = Simulator()
        self.reactor = SimReactor(self.simulator, random.Random(7), DiskSpeed())

    def advance(self, seconds: float) -> None:
        """Run everything that is due within that time."""
        until = self.simulator.now + seconds
        reached: list[bool] = []
        self.simulator.at(until, lambda: reached.append(True))
        while not reached:
            self.simulator.step()

    async def drive(self, work: Coroutine[object, object, T], steps_max: int = 100_000) -> T:
        """Run simulated time until a coroutine has ended."""
        task = asyncio.ensure_future(work)
        for _ in range(steps_max):
            await asyncio.sleep(0)
            if task.done():
                return task.result()
            self.simulator.step()
        task.cancel()
        raise AssertionError("the work did not end")


class FakeGroup:
    """This node's replica of one group, set by hand."""

    def __init__(self, group_id: GroupId, voters: Sequence[int] = (1, 2, 3), role: Role = Role.FOLLOWER) -> None:
        self.group_id = group_id
        self.voters = tuple(NodeId(node) for node in voters)
        self.role = role
        self.why = ""
        self.term = Term(0)
        self.leader_id: NodeId | None = None
        self.log_start_offset = Offset(0)
        self.high_watermark = Offset(0)
        self.log_end_offset = Offset(0)
        self.on_role: list[Callable[[], None]] = []
        self.on_commit: list[Callable[[], None]] = []
        self.in_sync: set[int] = set()
        self.durable: dict[int, int] = {}
        self.heard_ms: dict[int, int] = {}
        self.last_index = 10
        self.missing: tuple[NodeId, ...] | None = None
        self.transfers: list[NodeId | None] = []
        self.refusal: FluxError | None = None
        self.confirmed_high_watermark: Offset | None = None
        """What the high watermark is found to be when it is confirmed; None: as it is."""
        self.was_handed_over = False

    def become(self, role: Role, term: int, leader: int | None, *, handed_over: bool = False) -> None:
        """A change of role, told to the listeners."""
        self.was_handed_over = handed_over
        self.role, self.term, self.leader_id = role, Term(term), None if leader is None else NodeId(leader)
        for listener in self.on_role:
            listener()

    def quorum_missing(self) -> tuple[NodeId, ...] | None:
        """As set."""
        return self.missing

    def transfer(self, to: NodeId | None) -> FluxError | None:
        """Remembered."""
        self.transfers.append(to)
        return self.refusal

    def read_index(self, done: Callable[[FluxError | None], None]) -> None:
        """At once."""
        if self.confirmed_high_watermark is not None:
            self.high_watermark = self.confirmed_high_watermark
        done(None)

    def trim(self, log_start_offset: Offset, done: Callable[[FluxError | None], None]) -> None:
        """In force at once, unless it is refused."""
        if log_start_offset > self.high_watermark:
            done(FluxError(Reason.OFFSET_OUT_OF_RANGE, "behind the high watermark"))
            return
        if self.refusal is None:
            self.log_start_offset = max(self.log_start_offset, log_start_offset)
        done(self.refusal)

    def leader_status(self) -> peer_pb2.LeaderStatus:
        """From the fields."""
        status = peer_pb2.LeaderStatus(
            topic_id=self.group_id.topic_id,
            partition=self.group_id.partition,
            leader_epoch=self.term,
            log_start_offset=self.log_start_offset,
            high_watermark=self.high_watermark,
            log_end_offset=self.log_end_offset,
            last_index=self.last_index,
            size_bytes=1_000,
        )
        for node in self.voters:
            if node != self.leader_id:
                follower = status.followers.add(node_id=node, in_sync=node in self.in_sync)
                follower.durable_index = self.durable.get(node, self.last_index)
                if node in self.heard_ms:
                    follower.last_heard_ms = self.heard_ms[node]
        return status

    def encoded_status(self) -> bytes:
        """As it is now."""
        return self.leader_status().SerializeToString()


class Cluster:
    """A view of this node (1) with groups set by hand, and other nodes that tell."""

    def __init__(self, nodes: Sequence[int] = (1, 2, 3)) -> None:
        self.clock = Clock()
        self.groups: dict[GroupId, FakeGroup] = {}
        self.disk_full = False
        self.files_why: list[str] = []
        self.view = ClusterView(
            self.clock.reactor, local_node(), self.groups, disk_full=lambda: self.disk_full,
            files_why=lambda: self.files_why,
        )  # fmt: skip
        self.metadata = Metadata(nodes)
        self.view.image = self.metadata.image

    def topic(self, name: str, *partitions: Partition) -> bytes:
        """Create a topic with this node's replicas."""
        topic_id = self.metadata.create(name, *partitions)
        self.view.image = self.metadata.image
        for number, where in enumerate(partitions):
            if ME in where.voters:
                group = FakeGroup(GroupId(topic_id, number), where.voters)
                self.groups[group.group_id] = group
                self.view.attach(group)
        return topic_id

    def tell(
        self,
        node: int,
        *leading: peer_pb2.LeaderStatus,
        troubles: Sequence[peer_pb2.ReplicaTrouble] = (),
        why: str = "",
        answered: Mapping[int, int] | None = None,
    ) -> None:
        """Another node's status arrives."""
        self.view.observe_status(
            peer_pb2.NodeStatus(
                node_id=node,
                directory_id=directory(node),
                advertised_address=f"host{node}:7000",
                process_id=100 + node,
                version="0.1.0",
                leading=[leader.SerializeToString() for leader in leading],
                troubles=troubles,
                why=why,
                answered=[peer_pb2.Answered(node_id=other, ms_ago=ms) for other, ms in (answered or {}).items()],
            )
        )


def leads(group_id: GroupId, epoch: int, in_sync: Sequence[int] = (), **fields: int) -> peer_pb2.LeaderStatus:
    """What a leader tells of a partition, with followers that are in sync."""
    followers = [
        peer_pb2.FollowerStatus(node_id=node, durable_index=10, last_heard_ms=20, in_sync=True) for node in in_sync
    ]
    return peer_pb2.LeaderStatus(
        topic_id=group_id.topic_id,
        partition=group_id.partition,
        leader_epoch=epoch,
        followers=followers,
        last_index=10,
        **fields,
    )


_: type[GroupView] = FakeGroup
