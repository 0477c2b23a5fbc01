"""Replicas follow the metadata: opened, closed and removed, set aside; never removed without a deletion in the log."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

from fluxd.broker.cluster import Replica as OpenReplica
from fluxd.broker.metadata import Change
from fluxd.broker.partitions import Partitions
from fluxd.core.metadata import FIRST_GENERATION, Image, Node, Partition, Replica, apply
from fluxd.core.runtime import Reactor
from fluxd.core.types import METADATA_GROUP, GroupId, NodeId
from fluxd.raft.spec import GroupSpec
from fluxd.storage.copies import COPIES
from fluxd.storage.directory import PARTITIONS, DataDirectory, open_directory
from fluxd.storage.quarantine import QUARANTINE
from fluxlog.v1 import metadata_pb2
from tests.simulation.disk import SimDisk
from tests.unit.broker_fakes import Cluster, FakeGroup, Metadata, directory, partition

UNKNOWN = GroupId(b"\x99" * 16, 0)


class FakeHost:
    """Opens fake groups, and makes their directories as the real one does."""

    def __init__(self, groups: dict[GroupId, FakeGroup], disk: SimDisk, reactor: Reactor) -> None:
        self.groups = groups
        self._reactor = reactor
        self.specs: dict[GroupId, GroupSpec] = {}
        self.reads: list[Callable[[], None]] = []
        """What opening does beside: it takes time."""
        self._disk = disk

    def open_soon(self, spec: GroupSpec, done: Callable[[OpenReplica], None]) -> None:
        assert spec.group_id not in self.specs
        self.specs[spec.group_id] = spec
        make = functools.partial(self._disk.make_directory, f"{PARTITIONS}/{spec.group_id.directory_name}")

        def opened(error: BaseException | None) -> None:
            assert error is None
            assert self._disk.exists(f"{PARTITIONS}/{spec.group_id.directory_name}"), "removed while it was opened"
            group = self.groups[spec.group_id] = FakeGroup(spec.group_id, spec.voters)
            done(group)

        self._reactor.run_blocking([*self.reads, make], opened)

    def close(self, group_id: GroupId) -> None:
        del self.groups[group_id]


class Scene:
    """A node whose directory holds some partitions at its start."""

    def __init__(self, *found: GroupId, copies: Sequence[GroupId] = ()) -> None:
        self.cluster = Cluster()
        self.disk = SimDisk(random.Random(1))
        self.directory: DataDirectory = open_directory(self.disk, None, NodeId(1), lambda count: b"\x01" * count)
        for group_id in found:
            self.disk.make_directory(f"{PARTITIONS}/{group_id.directory_name}")
        for group_id in copies:
            self.disk.make_directory(f"{COPIES}/{group_id.directory_name}")
        self.disk.make_directory(f"{PARTITIONS}/lost+found")
        self.host = FakeHost(self.cluster.groups, self.disk, self.cluster.clock.reactor)
        self.partitions = Partitions(
            self.cluster.clock.reactor,
            self.host,
            self.directory,
            self.cluster.view,
            names_at_start=self.directory.partitions(),
        )
        self.metadata = Metadata()
        self.image = Image()

    def change(self, command: metadata_pb2.MetadataCommand) -> None:
        self.metadata.image, result = apply(self.metadata.image, command)
        assert result.reason is None, result

    def apply(self, *deleted: bytes) -> None:
        self.begin(*deleted)
        self.cluster.clock.advance(1.0)

    def begin(self, *deleted: bytes) -> None:
        change = Change(self.image, self.metadata.image, frozenset(deleted))
        self.image = self.cluster.view.image = self.metadata.image
        self.partitions.apply(change)

    def names(self, where: str = PARTITIONS) -> set[str]:
        return set(self.disk.list(where)) - {"lost+found"}


def test_own_replicas_are_opened() -> None:
    """Only where this node has a replica; with generation, voters, directory and segment size as the metadata says."""
    scene = Scene()
    topic_id = scene.metadata.create("orders", partition(1, 2, 3))
    scene.metadata.create("elsewhere", partition(2, 3))
    scene.change(scene.metadata.commands.alter_topic(topic_id, {"segment.bytes": "65536"}, []))
    scene.apply()
    assert set(scene.host.specs) == {GroupId(topic_id, 0)}
    spec = scene.host.specs[GroupId(topic_id, 0)]
    assert (spec.generation, spec.voters, spec.bound_directory) == (0, (1, 2, 3), directory(1))
    assert spec.segment_bytes == 65_536
    assert scene.partitions.settled


def test_a_replica_bound_to_another_directory_is_opened_too() -> None:
    """Once the metadata are current. The host judges it (unadmitted), so that describe can tell why."""
    scene = Scene()
    scene.change(scene.metadata.commands.register_node(Node(NodeId(1), directory(9), "host1:7000")))
    lost = Partition(FIRST_GENERATION, (Replica(NodeId(1), directory(9)),))
    topic_id = scene.metadata.create("orders", lost)
    scene.change(scene.metadata.commands.register_node(Node(NodeId(1), directory(1), "host1:7000")))
    scene.apply()
    assert not scene.host.specs
    scene.partitions.confirmed()
    assert scene.host.specs[GroupId(topic_id, 0)].bound_directory == directory(9)


def test_a_replica_that_was_bound_to_this_directory_lately_is_not_taken_for_a_lost_one() -> None:
    """What the node knows at its start may be older than the binding: its whole copy would be thrown away."""
    scene = Scene()
    scene.change(scene.metadata.commands.register_node(Node(NodeId(1), directory(9), "host1:7000")))
    lost = Partition(FIRST_GENERATION, (Replica(NodeId(1), directory(9)),))
    group_id = GroupId(scene.metadata.create("orders", lost), 0)
    scene.change(scene.metadata.commands.register_node(Node(NodeId(1), directory(1), "host1:7000")))
    scene.apply()
    bound = Replica(NodeId(1), directory(1))
    scene.change(scene.metadata.commands.bind_replica(group_id.topic_id, 0, FIRST_GENERATION, bound))
    scene.apply()
    assert scene.host.specs[group_id].bound_directory == directory(1)
    scene.partitions.confirmed()
    assert set(scene.host.groups) == {group_id}


def test_what_is_deleted_while_it_is_being_opened_is_removed_afterwards() -> None:
    """At a start, a topic's creation and its deletion may be read one right after the other, and its files are there
    from before: they are not taken away from under the replica that is being opened on them.
    """
    topic_id = Scene().metadata.create("orders", partition(1, 2, 3))
    scene = Scene(GroupId(topic_id, 0))
    file = f"{PARTITIONS}/{GroupId(topic_id, 0).directory_name}/segment"
    scene.disk.set_bytes(file, b"records")
    scene.host.reads = [lambda: scene.disk.open(file).close()] * 10
    assert scene.metadata.create("orders", partition(1, 2, 3)) == topic_id
    scene.begin()
    scene.change(scene.metadata.commands.delete_topic(topic_id))
    scene.apply(topic_id)
    assert not scene.host.groups
    assert not scene.names()
    assert scene.partitions.settled


def test_what_is_deleted_while_it_waits_to_be_opened_is_removed() -> None:
    """After a start hundreds wait for the few that are being opened, and the metadata explain all of their files."""
    many = 40
    topic_id = Scene().metadata.create("orders", *[partition(1, 2, 3)] * many)
    scene = Scene(*(GroupId(topic_id, number) for number in range(many)))
    scene.host.reads = [lambda: None] * 10
    assert scene.metadata.create("orders", *[partition(1, 2, 3)] * many) == topic_id
    scene.begin()
    scene.partitions.confirmed()
    assert 0 < len(scene.host.specs) < many
    scene.change(scene.metadata.commands.delete_topic(topic_id))
    scene.apply(topic_id)
    assert not scene.host.groups
    assert not scene.names()
    assert scene.partitions.settled


def test_thousands_are_opened_and_the_metadata_group_is_left_alone() -> None:
    """All are opened, in slices; the metadata group is the node's own business."""
    scene = Scene()
    scene.metadata.create("orders", *[partition(1, 2, 3)] * 2_000)
    scene.apply()
    assert len(scene.host.groups) == 2_000
    assert METADATA_GROUP not in scene.host.groups


def test_added_partitions_are_opened() -> None:
    """A topic that grows: the new ones only."""
    scene = Scene()
    topic_id = scene.metadata.create("orders", partition(1, 2, 3))
    scene.apply()
    scene.change(scene.metadata.commands.add_partitions(topic_id, 1, [partition(3, 1, 2)]))
    scene.apply()
    assert set(scene.host.groups) == {GroupId(topic_id, 0), GroupId(topic_id, 1)}


def test_a_deleted_topic_is_closed_and_removed() -> None:
    """Its groups are closed and its files are gone; other topics stay."""
    scene = Scene()
    gone = scene.metadata.create("gone", partition(1, 2, 3), partition(2, 3, 1))
    kept = scene.metadata.create("kept", partition(1, 2, 3))
    scene.apply()
    scene.metadata.delete(gone)
    scene.apply(gone)
    assert set(scene.host.groups) == {GroupId(kept, 0)}
    assert scene.names() == {GroupId(kept, 0).directory_name}


def test_deleted_while_the_node_was_down() -> None:
    """Files of a topic that the replayed log created and deleted are removed; no group is opened for it."""
    metadata = Metadata()
    gone = GroupId(metadata.create("gone", partition(1, 2, 3)), 0)
    metadata.delete(gone.topic_id)
    scene = Scene(gone)
    scene.metadata = metadata
    scene.apply(gone.topic_id)
    assert scene.names() == set()
    assert scene.names(QUARANTINE) == set()
    assert scene.host.specs == {}


def test_a_copy_whose_log_is_gone_is_found() -> None:
    """Power was lost while it took the log's place, and the topic was deleted while the node was down."""
    metadata = Metadata()
    gone = GroupId(metadata.create("gone", partition(1, 2, 3)), 0)
    metadata.delete(gone.topic_id)
    scene = Scene(copies=[gone, UNKNOWN])
    scene.metadata = metadata
    scene.apply(gone.topic_id)
    assert scene.names(COPIES) == {UNKNOWN.directory_name}
    scene.partitions.confirmed()
    scene.cluster.clock.advance(1.0)
    assert scene.names(COPIES) == scene.names(PARTITIONS) == set()


def test_files_of_an_unknown_topic_are_set_aside_once_the_metadata_is_current() -> None:
    """Before that their topic may not have been read yet; after it they are quarantined, not removed."""
    metadata = Metadata()
    known = GroupId(metadata.create("orders", partition(1, 2, 3)), 0)
    elsewhere = GroupId(metadata.create("elsewhere", partition(2, 3)), 0)
    scene = Scene(known, elsewhere, UNKNOWN)
    scene.apply()
    assert scene.names() == {known.directory_name, elsewhere.directory_name, UNKNOWN.directory_name}
    scene.metadata = metadata
    scene.apply()
    scene.partitions.confirmed()
    scene.cluster.clock.advance(1.0)
    assert scene.names() == {known.directory_name}
    assert scene.names(QUARANTINE) == {f"{elsewhere.directory_name}.1", f"{UNKNOWN.directory_name}.1"}
    assert set(scene.host.groups) == {known}
    assert "lost+found" in scene.disk.list(PARTITIONS)


def test_a_topic_deleted_while_its_groups_are_opened() -> None:
    """What was being opened when its topic went is closed and removed again."""
    scene = Scene()
    gone = scene.metadata.create("gone", partition(1, 2, 3))
    before = scene.image
    scene.partitions.apply(Change(before, scene.metadata.image, frozenset()))
    between = scene.metadata.image
    scene.metadata.delete(gone)
    scene.partitions.apply(Change(between, scene.metadata.image, frozenset({gone})))
    scene.cluster.clock.advance(1.0)
    assert scene.host.groups == {}
    assert scene.names() == set()


def test_cleanup_that_fails_is_tried_again() -> None:
    """An error while removing is logged and the node goes on: the files are still there, until it works."""
    scene = Scene()
    gone = scene.metadata.create("gone", partition(1, 2, 3))
    scene.apply()
    scene.metadata.delete(gone)
    for _ in range(3):
        scene.disk.fail_next("remove_tree", OSError(39, "directory not empty"))
    scene.apply(gone)
    assert scene.host.groups == {}
    assert scene.names() == {GroupId(gone, 0).directory_name}
    scene.cluster.clock.advance(5.0)
    assert scene.names() == {GroupId(gone, 0).directory_name}
    scene.cluster.clock.advance(5.0)
    assert scene.names() == set()


def test_nothing_is_removed_once_the_node_stops() -> None:
    """What could not be removed is left for the next start."""
    scene = Scene()
    gone = scene.metadata.create("gone", partition(1, 2, 3))
    scene.apply()
    scene.metadata.delete(gone)
    scene.disk.fail_next("remove_tree", OSError(39, "directory not empty"))
    scene.apply(gone)
    scene.partitions.stop()
    scene.cluster.clock.advance(100.0)
    assert scene.names() == {GroupId(gone, 0).directory_name}
