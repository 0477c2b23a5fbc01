"""Cluster metadata: each command, each refusal, and what makes a node stop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError, Reason
from fluxd.core.metadata import (
    COMMAND_VERSION,
    FIRST_GENERATION,
    Image,
    Node,
    Partition,
    Replica,
    Result,
    UnknownCommand,
    apply,
    decode_command,
    founding_image,
)
from fluxd.core.metadata_commands import Commands
from fluxd.core.metadata_snapshot import SNAPSHOT_VERSION, restore, snapshot
from fluxd.core.state_chunks import state_chunks
from fluxd.core.types import METADATA_TOPIC, METADATA_TOPIC_ID, GroupId, NodeId, Offset
from fluxlog.v1 import metadata_pb2, peer_pb2


def directory(node: int) -> bytes:
    return bytes([node]) * 16


def founded(nodes: Sequence[int] = (1, 2, 3)) -> Image:
    seeds = [
        peer_pb2.FoundingSeed(node_id=node, directory_id=directory(node), address=f"host{node}:7000") for node in nodes
    ]
    return founding_image(peer_pb2.Founding(cluster_id="c", seeds=seeds))


def partitions(*assignments: Sequence[int]) -> list[Partition]:
    return [
        Partition(FIRST_GENERATION, tuple(Replica(NodeId(node), directory(node)) for node in nodes))
        for nodes in assignments
    ]


@pytest.fixture
def commands() -> Commands:
    return Commands(random.Random(1).random, lambda: 1_000)


def with_topic(commands: Commands, name: str = "orders") -> tuple[Image, bytes]:
    image, result = apply(founded(), commands.create_topic(name, partitions((1, 2, 3), (2, 3, 1)), {"a": "b"}))
    assert result.reason is None
    return image, result.created_topic


def test_founding_holds_nodes_and_the_metadata_topic() -> None:
    """Before the first command the founders are known, and the metadata topic has a replica on each."""
    image = founded()
    topic = image.topic(METADATA_TOPIC)
    assert topic is not None
    assert topic.topic_id == METADATA_TOPIC_ID
    assert topic.internal
    assert topic.partitions[0].voters == (1, 2, 3)
    assert image.nodes[NodeId(2)] == Node(NodeId(2), directory(2), "host2:7000")


def test_create_topic(commands: Commands) -> None:
    """A created topic has its partitions, replicas bound to directories, and configuration; the old image stays."""
    old = founded()
    image, result = apply(old, commands.create_topic("orders", partitions((1, 2), (3, 1)), {"segment.bytes": "65536"}))
    topic = image.topic("orders")
    assert topic is not None
    assert topic.topic_id == result.created_topic
    assert not topic.internal
    assert topic.replication_factor == 2
    assert topic.configs == {"segment.bytes": "65536"}
    second = image.partition(GroupId(topic.topic_id, 1))
    assert second is not None
    assert second.preferred_leader == 3
    assert second.majority == 2
    assert second.directory_of(NodeId(1)) == directory(1)
    assert second.directory_of(NodeId(2)) is None
    assert image.partition(GroupId(topic.topic_id, 2)) is None
    assert old.topic("orders") is None


def test_an_existing_name_is_refused(commands: Commands) -> None:
    """A second topic of the same name is TOPIC_EXISTS."""
    image, _ = with_topic(commands)
    after, result = apply(image, commands.create_topic("orders", partitions((1,)), {}))
    assert result.reason is Reason.TOPIC_EXISTS
    assert after.topics == image.topics


def test_deleted_and_created_again_is_a_new_topic(commands: Commands) -> None:
    """The name is free after a deletion, and the new topic has another id."""
    image, first = with_topic(commands)
    image, result = apply(image, commands.delete_topic(first))
    assert result.deleted_topic == first
    assert image.topic("orders") is None
    image, result = apply(image, commands.create_topic("orders", partitions((1,)), {}))
    assert result.reason is None
    assert result.created_topic != first
    _, again = apply(image, commands.delete_topic(first))
    assert again.reason is Reason.UNKNOWN_TOPIC


def test_the_metadata_topic_cannot_be_deleted(commands: Commands) -> None:
    """The log that all of this comes from stays."""
    image, result = apply(founded(), commands.delete_topic(METADATA_TOPIC_ID))
    assert result.reason is Reason.UNKNOWN_TOPIC
    assert image.topic(METADATA_TOPIC) is not None


def test_alter_sets_and_removes(commands: Commands) -> None:
    """Keys that are set win over keys that are removed in the same command."""
    image, topic_id = with_topic(commands)
    image, result = apply(image, commands.alter_topic(topic_id, {"c": "d"}, ["a", "none"]))
    assert result.reason is None
    assert image.topics[topic_id].configs == {"c": "d"}
    _, result = apply(image, commands.alter_topic(bytes(16), {}, []))
    assert result.reason is Reason.UNKNOWN_TOPIC


def test_add_partitions(commands: Commands) -> None:
    """New partitions follow the last one; another number or replication factor is refused."""
    image, topic_id = with_topic(commands)
    image, result = apply(image, commands.add_partitions(topic_id, 2, partitions((3, 1, 2))))
    assert result.reason is None
    assert [p.preferred_leader for p in image.topics[topic_id].partitions] == [1, 2, 3]
    for first, more in ((2, partitions((1, 2, 3))), (3, partitions((1, 2))), (3, [])):
        after, result = apply(image, commands.add_partitions(topic_id, first, more))
        assert result.reason is Reason.INVALID_ARGUMENT
        assert after.topics == image.topics


@pytest.mark.parametrize("assignment", [(), (1, 1), (1, 2, 3, 4, 5, 6)])
def test_malformed_assignments_are_refused(commands: Commands, assignment: tuple[int, ...]) -> None:
    """No replica, the same node twice, or more than VOTERS_MAX: refused."""
    _, result = apply(founded(range(1, 8)), commands.create_topic("t", partitions(assignment), {}))
    assert result.reason is Reason.INVALID_ARGUMENT


def test_a_replica_needs_the_nodes_present_directory(commands: Commands) -> None:
    """A placement that was made before a node came back with another directory is refused: its vote would be bound to a
    lost one.
    """
    image, _ = apply(founded(), commands.register_node(Node(NodeId(2), directory(9), "host2:7000")))
    _, result = apply(image, commands.create_topic("t", partitions((1, 2, 3)), {}))
    assert result.reason is Reason.UNKNOWN_NODE


def test_register_node_adds_and_changes(commands: Commands) -> None:
    """A node outside the founders joins, and a changed address replaces the old one; nonsense is refused."""
    image, result = apply(founded(), commands.register_node(Node(NodeId(4), directory(4), "host4:1")))
    assert result.reason is None
    image, _ = apply(image, commands.register_node(Node(NodeId(4), directory(4), "host4:2")))
    assert image.nodes[NodeId(4)].address == "host4:2"
    for node in (Node(NodeId(0), directory(4), "x:1"), Node(NodeId(4), b"", "x:1"), Node(NodeId(4), directory(4), "")):
        _, result = apply(image, commands.register_node(node))
        assert result.reason is Reason.INVALID_ARGUMENT


def test_a_copied_replica_is_bound_to_its_nodes_directory(commands: Commands) -> None:
    """Only to the directory that the node is registered with, only where it has a replica; nobody else changes."""
    image, topic_id = with_topic(commands)
    bound = Replica(NodeId(2), directory(9))
    command = commands.bind_replica(topic_id, 1, FIRST_GENERATION, bound)
    assert command.version == 2
    assert apply(image, command)[1].reason is Reason.UNKNOWN_NODE
    image, _ = apply(image, commands.register_node(Node(NodeId(2), directory(9), "host2:7000")))
    image, result = apply(image, commands.bind_replica(topic_id, 1, FIRST_GENERATION, bound))
    assert result.reason is None
    first, second = image.topics[topic_id].partitions
    assert first.directory_of(NodeId(2)) == directory(2)
    assert second.replicas == (bound, Replica(NodeId(3), directory(3)), Replica(NodeId(1), directory(1)))
    for number, generation, node in ((2, 0, 2), (1, 1, 2), (1, 0, 4)):
        replica = Replica(NodeId(node), directory(9))
        assert apply(image, commands.bind_replica(topic_id, number, generation, replica))[1].reason is not None
    assert apply(image, commands.bind_replica(bytes(16), 0, 0, bound))[1].reason is Reason.UNKNOWN_TOPIC


def test_a_repeated_command_is_applied_once(commands: Commands) -> None:
    """The same command again gives the same result and the same image, also after the topic is gone."""
    create = commands.create_topic("orders", partitions((1, 2, 3)), {})
    image, first = apply(founded(), create)
    again, second = apply(image, create)
    assert again is image
    assert second == first
    image, _ = apply(image, commands.delete_topic(first.created_topic))
    image, third = apply(image, create)
    assert third == first
    assert image.topic("orders") is None


def test_remembered_commands_are_bounded(commands: Commands) -> None:
    """The oldest ids are forgotten beyond the bound."""
    image = founded()
    node = Node(NodeId(1), directory(1), "host1:1")
    first = commands.register_node(node)
    image, _ = apply(image, first)
    for _ in range(limits.METADATA_COMMANDS_REMEMBERED):
        image, _ = apply(image, commands.register_node(node))
    assert len(image.remembered) == limits.METADATA_COMMANDS_REMEMBERED
    assert first.command_id not in image.remembered


def test_deleted_topics_are_remembered(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last so many, oldest first: a node that was away learns from them whose files it may remove."""
    monkeypatch.setattr(limits, "METADATA_DELETIONS_REMEMBERED", 2)
    image, first = with_topic(commands, "a")
    ids = [first]
    for name in "bc":
        image, result = apply(image, commands.create_topic(name, partitions((1,)), {}))
        ids.append(result.created_topic)
    for topic_id in ids:
        image, _ = apply(image, commands.delete_topic(topic_id))
    assert image.deleted_topics == tuple(ids[1:])


def test_a_state_in_the_log_changes_nothing_but_the_feature_level(commands: Commands) -> None:
    """Nor is it remembered: it would push out the ids of changes."""
    image, _ = with_topic(commands)
    (chunk,) = state_chunks(Offset(1), snapshot(image, Offset(1)))
    after, result = apply(image, commands.state_chunk(chunk))
    assert result == Result()
    assert after.feature_level == 3
    assert replace(after, feature_level=image.feature_level) == image
    assert apply(after, commands.state_chunk(chunk))[0] is after


def test_a_state_of_a_later_version_stops_the_node(commands: Commands) -> None:
    """Its own layout, or commands in it that this node would not have understood."""
    image, _ = with_topic(commands)
    later = metadata_pb2.MetadataSnapshot.FromString(snapshot(image, Offset(1)))
    later.version = SNAPSHOT_VERSION + 1
    with pytest.raises(UnknownCommand):
        restore(later.SerializeToString())
    with pytest.raises(UnknownCommand):
        restore(snapshot(replace(image, feature_level=COMMAND_VERSION + 1), Offset(1)))


def test_an_unsound_state_is_corrupt(commands: Commands) -> None:
    """A replica that is not in the table, or a number of them that does not add up."""
    image, _ = with_topic(commands)
    for edit in ("replicas", "replica_counts", "generations"):
        broken = metadata_pb2.MetadataSnapshot.FromString(snapshot(image, Offset(1)))
        getattr(broken.topics[1], edit).append(7)
        if edit == "replicas":
            broken.topics[1].replica_counts[-1] += 1
        with pytest.raises(CorruptDataError):
            restore(broken.SerializeToString())


def test_what_is_not_understood_stops_the_node(commands: Commands) -> None:
    """A higher version, no version, no command, or no message at all raise UnknownCommand."""
    newer = commands.delete_topic(bytes(16))
    newer.version = COMMAND_VERSION + 1
    versionless = commands.delete_topic(bytes(16))
    versionless.version = 0
    unknown_kind = metadata_pb2.MetadataCommand(version=1, command_id=bytes(16))
    for command in (newer, versionless, unknown_kind):
        with pytest.raises(UnknownCommand):
            apply(founded(), command)
    with pytest.raises(UnknownCommand):
        decode_command(b"\xff\xff\xff")
    known = commands.delete_topic(bytes(16))
    assert decode_command(known.SerializeToString()) == known


def test_a_malformed_id_is_refused(commands: Commands) -> None:
    """A command without a proper id is refused, since it could not be recognised again."""
    command = commands.create_topic("t", partitions((1,)), {})
    command.command_id = b"short"
    image, result = apply(founded(), command)
    assert result.reason is Reason.INVALID_ARGUMENT
    assert image.topic("t") is None
