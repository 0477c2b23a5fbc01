"""The controller over a real metadata group of one voter, in simulated time: changes, refusals, replay at the next
start.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

import pytest

from fluxd.broker.cluster import ClusterView
from fluxd.broker.controller import Controller
from fluxd.broker.metadata import Change, MetadataFollower
from fluxd.core import limits
from fluxd.core.batch import batch_from_records, records_from_frames
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import COMMAND_VERSION, Node, founding_image
from fluxd.core.types import METADATA_GROUP, METADATA_TOPIC, NodeId, Offset, Term
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.proposal import Append, Committed
from fluxd.raft.spec import GroupSpec, Role
from fluxd.storage.directory import VOTES_NAME, open_directory
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import admin_pb2, peer_pb2, record_pb2
from tests.simulation.disk import SimDisk
from tests.unit.broker_fakes import ME, Clock, directory, founding, local_node

T = TypeVar("T")


class NoNetwork:
    """A node alone."""

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        return False

    def is_connected(self, peer: NodeId) -> bool:
        return False


class OneNode:
    """One process: host, metadata group, follower and controller. A second one on the same disk is a restart."""

    def __init__(self, disk: SimDisk | None = None) -> None:
        self.clock = Clock()
        self.disk = disk or SimDisk(random.Random(1))
        open_directory(self.disk, None, ME, lambda count: directory(ME))
        self.host = Host(
            ME, directory(ME), reactor=self.clock.reactor, fs=self.disk, votes=VoteFile.open(self.disk, VOTES_NAME),
            transport=NoNetwork(), log_event=lambda event, **fields: None,
        )  # fmt: skip
        self.view = ClusterView(self.clock.reactor, local_node(), self.host.groups)
        self.fatal: list[Exception] = []
        self.changes: list[Change] = []
        self.follower = MetadataFollower(self.clock.reactor, founding_image(founding([ME])), on_fatal=self.fatal.append)
        self.follower.listeners += [self._applied, self.changes.append]
        self.view.image = self.follower.image
        group = self.host.open(
            GroupSpec(METADATA_GROUP, 0, (ME,), directory(ME), segment_bytes=limits.METADATA_SEGMENT_BYTES)
        )
        assert isinstance(group, Group)
        self.group = group
        self.follower.follow(group)
        self.controller = Controller(self.clock.reactor, self.view, self.follower, group)

    def _applied(self, change: Change) -> None:
        self.view.image = change.new

    def register(self, *nodes: int, metadata_version: int = COMMAND_VERSION) -> None:
        """Other nodes tell of themselves."""
        for node in nodes:
            self.view.observe_status(
                peer_pb2.NodeStatus(
                    node_id=node, directory_id=directory(node), advertised_address=f"host{node}:7000",
                    metadata_version=metadata_version,
                )
            )  # fmt: skip

    def start(self, nodes: int = 3) -> None:
        """Until this node leads and the others are registered."""
        self.until(lambda: self.group.role is Role.LEADER)
        self.register(*range(2, nodes + 1))
        self.until(lambda: len(self.follower.image.nodes) == nodes)

    def until(self, ready: Callable[[], bool]) -> None:
        for _ in range(10_000):
            if ready():
                return
            self.clock.simulator.step()
        raise AssertionError("it did not happen")

    async def run(self, work: Coroutine[object, object, T]) -> T:
        return await self.clock.drive(work)


def run(node: OneNode, work: Coroutine[object, object, T]) -> T:
    return asyncio.run(node.run(work))


def refused(node: OneNode, work: Coroutine[object, object, object]) -> Reason:
    with pytest.raises(FluxError) as caught:
        run(node, work)
    return caught.value.reason


@pytest.fixture
def node() -> OneNode:
    node = OneNode()
    node.start()
    return node


def create(name: str = "orders", **fields: int | bool) -> admin_pb2.CreateTopicRequest:
    return admin_pb2.CreateTopicRequest(name=name, **fields)  # type: ignore[arg-type]


def test_a_topic_is_created_with_spread_leaders(node: OneNode) -> None:
    """Every node leads as many partitions as the others; defaults are one partition on three nodes; all is in the
    metadata.
    """
    result = run(node, node.controller.create_topic(create(partitions=6, replication_factor=2)))
    assert result.changed
    assert node.follower.image.topic("orders") == result.topic
    leaders = [partition.preferred_leader for partition in result.topic.partitions]
    assert sorted(leaders) == [1, 1, 2, 2, 3, 3]
    assert result.topic.partitions[0].directory_of(leaders[0]) == directory(leaders[0])
    default = run(node, node.controller.create_topic(create("default"))).topic
    assert (len(default.partitions), default.replication_factor) == (1, 3)


def test_an_existing_topic(node: OneNode) -> None:
    """TOPIC_EXISTS, or the topic as it is when that is fine with the caller."""
    first = run(node, node.controller.create_topic(create())).topic
    assert refused(node, node.controller.create_topic(create())) is Reason.TOPIC_EXISTS
    again = run(node, node.controller.create_topic(create(if_not_exists=True)))
    assert (again.topic, again.changed) == (first, False)


def test_what_is_refused(node: OneNode) -> None:
    """Each bad request has its own reason, and nothing is written."""
    end = node.group.log_end_offset
    controller = node.controller
    bad_config = create()
    bad_config.configs["no.such"] = "1"
    assert refused(node, controller.create_topic(create("a b"))) is Reason.INVALID_TOPIC_NAME
    assert refused(node, controller.create_topic(create("__mine"))) is Reason.INVALID_TOPIC_NAME
    assert refused(node, controller.create_topic(bad_config)) is Reason.INVALID_CONFIG
    assert refused(node, controller.create_topic(create(partitions=10_001))) is Reason.INVALID_ARGUMENT
    assert refused(node, controller.create_topic(create(replication_factor=6))) is Reason.INVALID_ARGUMENT
    assert refused(node, controller.create_topic(create(replication_factor=4))) is Reason.NOT_ENOUGH_NODES
    for name, reason in (("none", Reason.UNKNOWN_TOPIC), (METADATA_TOPIC, Reason.PERMISSION_DENIED)):
        assert refused(node, controller.delete_topic(admin_pb2.DeleteTopicRequest(name=name))) is reason
        assert refused(node, controller.alter_topic(admin_pb2.AlterTopicRequest(name=name))) is reason
        assert refused(node, controller.add_partitions(admin_pb2.AddPartitionsRequest(name=name))) is reason
    assert node.group.log_end_offset == end


def test_a_change_too_large_for_one_command(node: OneNode) -> None:
    """10,000 partitions fit with three replicas; where they do not, the error says what to do."""
    topic = run(node, node.controller.create_topic(create(partitions=10_000, replication_factor=3))).topic
    assert len(topic.partitions) == 10_000
    node.register(4, 5)
    node.until(lambda: len(node.follower.image.nodes) == 5)
    large = create("large", partitions=10_000, replication_factor=5)
    assert refused(node, node.controller.create_topic(large)) is Reason.INVALID_ARGUMENT


def test_alter_add_and_delete(node: OneNode) -> None:
    """Configuration changes, partitions are added evenly, and a deleted topic can be created again under another id."""
    controller = node.controller
    first = run(node, controller.create_topic(create(partitions=3))).topic
    alter = admin_pb2.AlterTopicRequest(name="orders", set_configs={"segment.bytes": "65536"})
    assert run(node, controller.alter_topic(alter)).configs == {"segment.bytes": "65536"}
    bad = admin_pb2.AlterTopicRequest(name="orders", set_configs={"segment.bytes": "1"})
    assert refused(node, controller.alter_topic(bad)) is Reason.INVALID_CONFIG
    add = admin_pb2.AddPartitionsRequest(name="orders", total_partitions=6)
    grown = run(node, controller.add_partitions(add))
    assert sorted(partition.preferred_leader for partition in grown.partitions) == [1, 1, 2, 2, 3, 3]
    assert refused(node, controller.add_partitions(add)) is Reason.PARTITION_COUNT
    delete = admin_pb2.DeleteTopicRequest(name="orders")
    assert run(node, controller.delete_topic(delete))
    assert refused(node, controller.delete_topic(delete)) is Reason.UNKNOWN_TOPIC
    assert not run(node, controller.delete_topic(admin_pb2.DeleteTopicRequest(name="orders", if_exists=True)))
    again = run(node, controller.create_topic(create())).topic
    assert again.topic_id != first.topic_id
    assert [change.deleted_topics for change in node.changes if change.deleted_topics] == [{first.topic_id}]


def test_changes_at_the_same_time_are_made_one_after_another(node: OneNode) -> None:
    """Of two creations of one name one wins; beyond the bound of waiting changes the answer is OVERLOADED."""

    async def both() -> list[object]:
        return await asyncio.gather(
            *(node.controller.create_topic(create()) for _ in range(2)),
            *(node.controller.create_topic(create(f"t{n}")) for n in range(limits.CONTROLLER_QUEUE_MAX)),
            return_exceptions=True,
        )

    first, second, *others = run(node, both())
    assert not isinstance(first, Exception)
    assert isinstance(second, FluxError)
    assert second.reason is Reason.TOPIC_EXISTS
    overloaded = [other for other in others if isinstance(other, FluxError)]
    assert [error.reason for error in overloaded] == [Reason.OVERLOADED] * 2
    assert overloaded[0].retry_after_ms > 0


def test_nodes_are_registered_from_what_they_tell(node: OneNode) -> None:
    """A new address or another directory is registered once; what is known already writes nothing."""
    end = node.group.log_end_offset
    node.register(2, 3)
    node.controller.register_nodes()
    node.clock.advance(1.0)
    assert node.group.log_end_offset == end
    moved = peer_pb2.NodeStatus(node_id=2, directory_id=directory(9), advertised_address="moved:1")
    node.view.observe_status(moved)
    node.view.observe_status(moved)
    node.clock.advance(1.0)
    assert node.follower.image.nodes[NodeId(2)] == Node(NodeId(2), directory(9), "moved:1")
    assert node.group.log_end_offset == end + 1


def test_the_image_is_the_same_after_a_restart(node: OneNode) -> None:
    """The log is replayed; listeners hear of few changes, with all deletions in them."""
    run(node, node.controller.create_topic(create(partitions=3)))
    gone = run(node, node.controller.create_topic(create("gone"))).topic
    run(node, node.controller.delete_topic(admin_pb2.DeleteTopicRequest(name="gone")))
    image = node.follower.image
    node.host.stop()
    node.clock.reactor.die()
    again = OneNode(node.disk)
    again.until(lambda: again.follower.applied_offset == node.follower.applied_offset)
    again.clock.advance(1.0)
    assert again.follower.image == image
    assert len(again.changes) <= 2  # up to the checkpoint, and up to what is committed since
    assert frozenset().union(*(change.deleted_topics for change in again.changes)) == {gone.topic_id}


def change(node: OneNode, times: int) -> None:
    """So many commands."""
    for number in range(times):
        alter = admin_pb2.AlterTopicRequest(name="orders", set_configs={"retention.bytes": str(1_000 + number)})
        run(node, node.controller.alter_topic(alter))


@pytest.fixture
def short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trimmed soon, segment by segment."""
    monkeypatch.setattr(limits, "METADATA_TRIM_RECORDS", 20)
    monkeypatch.setattr(limits, "METADATA_SEGMENT_BYTES", 1_000)


@pytest.mark.usefixtures("short_log")
def test_the_log_is_kept_short() -> None:
    """The state is written into the log, and what is before it goes, with its segments; at the next start the node has
    the same image, and is told of what was deleted before.
    """
    node = OneNode()
    node.start(1)
    run(node, node.controller.create_topic(create(partitions=3)))
    gone = run(node, node.controller.create_topic(create("gone"))).topic
    run(node, node.controller.delete_topic(admin_pb2.DeleteTopicRequest(name="gone")))
    change(node, 30)
    node.until(lambda: node.group.log_start_offset >= 20)
    node.until(lambda: node.group.log.first_index > 1)
    change(node, 3)
    node.host.stop()
    node.clock.reactor.die()
    again = OneNode(node.disk)
    again.until(lambda: again.follower.applied_offset == node.follower.applied_offset)
    again.clock.advance(1.0)
    assert again.group.log_start_offset == node.group.log_start_offset
    assert again.follower.image == node.follower.image
    assert len(again.changes) <= 2  # up to the checkpoint, and up to what is committed since
    assert gone.topic_id in again.changes[0].deleted_topics
    assert not again.fatal
    again.until(lambda: again.group.role is Role.LEADER)
    change(again, 30)
    again.until(lambda: again.group.log_start_offset > node.group.log_start_offset)


@pytest.mark.usefixtures("short_log")
def test_a_follower_that_the_start_overtakes_finds_the_state() -> None:
    """It jumps, and its listeners hear of what was deleted in what it did not see."""
    node = OneNode()
    node.start(1)
    run(node, node.controller.create_topic(create()))
    gone = run(node, node.controller.create_topic(create("gone"))).topic
    late = MetadataFollower(node.clock.reactor, founding_image(founding([ME])), on_fatal=node.fatal.append)
    heard: list[Change] = []
    late.listeners.append(heard.append)
    late.follow(node.group)
    node.until(lambda: late.image == node.follower.image)
    late.leave_replica()
    run(node, node.controller.delete_topic(admin_pb2.DeleteTopicRequest(name="gone")))
    change(node, 30)
    node.until(lambda: node.group.log_start_offset >= 20)
    assert late.applied_offset < node.group.log_start_offset
    heard.clear()
    late.follow(node.group)
    node.until(lambda: bool(heard))
    assert late.image == node.follower.image
    assert [each.deleted_topics for each in heard] == [{gone.topic_id}]
    assert not node.fatal


def test_large_commands_are_trimmed_before_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their bytes, and not again until there are as many once more."""
    monkeypatch.setattr(limits, "METADATA_TRIM_BYTES", 2_000)
    node = OneNode()
    node.start(1)
    run(node, node.controller.create_topic(create(partitions=200)))
    node.until(lambda: node.group.log_start_offset > 0)
    end = node.group.log_end_offset
    node.clock.advance(3 * limits.LOG_TRIM_INTERVAL)
    assert node.group.log_end_offset == end


@pytest.mark.usefixtures("short_log")
def test_no_state_is_written_while_a_node_would_stop_at_it() -> None:
    """One of an older version, or that has not told yet, as long as it is up."""
    node = OneNode()
    node.start()
    run(node, node.controller.create_topic(create()))
    change(node, 30)
    for version in (2, 0):
        for _ in range(int(2 * limits.LOG_TRIM_INTERVAL)):
            node.register(2)
            node.register(3, metadata_version=version)
            node.clock.advance(1.0)
        assert node.group.log_start_offset == 0
        assert node.follower.image.feature_level < COMMAND_VERSION
    node.clock.advance(limits.NODE_DOWN_AFTER + limits.LOG_TRIM_INTERVAL)
    assert node.group.log_start_offset > 0


@pytest.mark.usefixtures("short_log")
def test_nothing_is_trimmed_before_the_whole_state_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is refused ends it; the next round begins anew."""
    monkeypatch.setattr("fluxd.core.state_chunks._CHUNK_BYTES", 100)
    node = OneNode()
    node.start(1)
    run(node, node.controller.create_topic(create(partitions=200)))
    change(node, 30)
    submit, chunks = node.group.submit, 0

    def count(append: Append) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 3:
            append.done(FluxError(Reason.NO_QUORUM, "a test"))
        else:
            submit(append)

    monkeypatch.setattr(node.group, "submit", count)
    node.until(lambda: chunks == 3)
    assert node.group.trimming.wanted is None
    node.until(lambda: node.group.log_start_offset > 0)
    assert chunks > 6
    state = node.follower.image
    late = MetadataFollower(node.clock.reactor, founding_image(founding([ME])), on_fatal=node.fatal.append)
    late.follow(node.group)
    node.until(lambda: late.image == state)


def test_a_copied_replica_is_bound(node: OneNode) -> None:
    """Once, to the directory that its node tells; one that is not copied stays out."""
    node.register(2, 3)
    topic = run(node, node.controller.create_topic(create("orders", replication_factor=3))).topic
    status = peer_pb2.NodeStatus(node_id=2, directory_id=directory(7), advertised_address="host2:7000")
    node.view.observe_status(status)
    node.until(lambda: node.follower.image.nodes[NodeId(2)].directory_id == directory(7))
    trouble = status.troubles.add(topic_id=topic.topic_id, partition=0, why="its disk was lost")
    node.view.observe_status(status)
    node.clock.advance(1.0)
    assert node.follower.image.topics[topic.topic_id].partitions[0].directory_of(NodeId(2)) == directory(2)
    trouble.copied = True
    written = node.group.log_end_offset
    for _ in range(3):
        node.view.observe_status(status)
    node.until(lambda: node.follower.image.topics[topic.topic_id].partitions[0].directory_of(NodeId(2)) == directory(7))
    node.view.observe_status(status)
    node.clock.advance(1.0)
    assert node.group.log_end_offset == written + 1


def test_a_replica_that_the_controller_itself_has_copied_is_bound(node: OneNode) -> None:
    """It hears its own status like those of the others: its disk was lost, and it leads the metadata again already."""
    node.register(2, 3)
    topic = run(node, node.controller.create_topic(create("orders", replication_factor=3))).topic
    status = peer_pb2.NodeStatus(node_id=ME, directory_id=directory(7), advertised_address=node.view.local.address)
    status.troubles.add(topic_id=topic.topic_id, partition=0, why="its disk was lost", copied=True)
    assert node.follower.image.topics[topic.topic_id].partitions[0].directory_of(ME) != directory(7)
    node.view.heard_own(status)
    node.until(lambda: node.follower.image.topics[topic.topic_id].partitions[0].directory_of(ME) == directory(7))


def test_a_node_that_does_not_lead_refuses() -> None:
    """NOT_LEADER, REJECTED, before anything is written."""
    node = OneNode()
    node.group.fail("stopped for the test")
    assert refused(node, node.controller.create_topic(create())) is Reason.NOT_LEADER


def test_a_command_that_is_not_understood_ends_the_node(node: OneNode) -> None:
    """The node is told to stop, once; nothing after it is applied, and who waits is answered."""
    value = b"\x08\x63"  # version 99
    answers: list[object] = []
    for _ in range(2):
        batch = batch_from_records([record_pb2.Record(value=value)], b"", 0, 0)
        node.group.submit(Append(batch, 1, answers.append))
    node.until(lambda: len(answers) == 2)
    assert all(isinstance(answer, Committed) for answer in answers)
    image = node.follower.image
    node.until(lambda: bool(node.fatal))
    assert len(node.fatal) == 1
    assert node.follower.image is image
    assert refused(node, node.follower.wait_applied(node.group.high_watermark)) is Reason.STOPPING


def test_records_from_another_node_are_applied() -> None:
    """A node without a replica that takes part applies what it fetched."""
    leader = OneNode()
    leader.start()
    run(leader, leader.controller.create_topic(create()))
    plan = leader.group.log.plan_read(Offset(0), max_bytes=1 << 20, end_index=leader.group.commit_index)
    frames = plan if isinstance(plan, bytes) else plan()
    clock = Clock()
    follower = MetadataFollower(clock.reactor, founding_image(founding([ME])), on_fatal=lambda error: None)
    follower.feed(records_from_frames(frames, 0))
    assert follower.image == leader.follower.image
    assert follower.applied_offset == leader.follower.applied_offset


def test_terms_of_the_first_generation_are_small(node: OneNode) -> None:
    """People see epochs that begin near 1."""
    assert node.group.term < Term(10)
