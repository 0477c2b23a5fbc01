"""Cluster metadata under any sequence of commands."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.errors import CorruptDataError
from fluxd.core.metadata import Image, Node, Replica, UnknownCommand, apply, decode_command
from fluxd.core.metadata_commands import Commands
from fluxd.core.metadata_snapshot import restore, snapshot
from fluxd.core.types import NodeId, Offset
from fluxlog.v1 import metadata_pb2
from tests.unit.test_metadata import directory, founded, partitions

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "delete", "alter", "add", "register", "bind", "repeat"]),
        st.integers(0, 3),
        st.integers(1, 4),
    ),
    max_size=40,
)


def build(image: Image, step: Step, commands: Commands) -> metadata_pb2.MetadataCommand:
    kind, which, number = step
    topic = image.topic(f"t{which}")
    topic_id = topic.topic_id if topic else bytes(16)
    match kind:
        case "create":
            return commands.create_topic(f"t{which}", partitions(*[(number, 1)] * number), {})
        case "delete":
            return commands.delete_topic(topic_id)
        case "alter":
            return commands.alter_topic(topic_id, {"k": str(number)}, ["j"])
        case "add":
            first = len(topic.partitions) if topic else 0
            return commands.add_partitions(topic_id, first, partitions(*[(2, 1)] * number))
        case "bind":
            return commands.bind_replica(topic_id, 0, 0, Replica(NodeId(number), directory(number + which)))
        case _:
            return commands.register_node(Node(NodeId(number), directory(number + which), "h:1"))


def check(image: Image) -> None:
    assert {topic.name: topic_id for topic_id, topic in image.topics.items()} == image.names
    for topic in image.topics.values():
        assert topic.partitions
        assert len({len(partition.replicas) for partition in topic.partitions}) == 1
        for partition in topic.partitions:
            assert len(set(partition.voters)) == len(partition.voters)
            assert all(node in image.nodes for node in partition.voters)


@given(steps=STEPS, seed=st.integers(0, 1000))
def test_images_are_consistent_and_replay_is_equal(steps: list[Step], seed: int) -> None:
    """Every image is consistent, repeats change nothing, and replaying the log gives the same image."""
    commands = Commands(random.Random(seed).random, lambda: 0)
    image = founded()
    log: list[metadata_pb2.MetadataCommand] = []
    for step in steps:
        if step[0] == "repeat" and log:
            command = log[-1 - step[1] % len(log)]
            again, _ = apply(image, command)
            assert again is image
        else:
            command = build(image, step, commands)
            image, _ = apply(image, command)
        log.append(command)
        check(image)
    replayed = founded()
    for command in log:
        replayed, _ = apply(replayed, decode_command(command.SerializeToString()))
    assert replayed == image


def in_order(image: Image) -> tuple[object, ...]:
    """With the order of what is in it: what is forgotten first, and what is written first, follow from that."""
    topics = [(key, (topic, sorted(topic.configs.items()))) for key, topic in image.topics.items()]
    return topics, list(image.nodes.items()), list(image.remembered.items()), image.deleted_topics, image.feature_level


@given(steps=STEPS, more=STEPS, seed=st.integers(0, 1000))
def test_a_restored_image_is_equal_and_stays_so(steps: list[Step], more: list[Step], seed: int) -> None:
    """Encoded and decoded an image is the same, to the order of what it remembers; encoded again it gives the same
    bytes; and the same commands do the same to it.
    """
    commands = Commands(random.Random(seed).random, lambda: 0)
    image = founded()
    for step in steps:
        image, _ = apply(image, build(image, step, commands))
    data = snapshot(image, Offset(len(steps)))
    restored, applied_offset = restore(data)
    assert applied_offset == len(steps)
    assert restored == image
    assert in_order(restored) == in_order(image)
    assert snapshot(restored, applied_offset) == data
    for step in more:
        command = build(image, step, commands)
        image, result = apply(image, command)
        restored, same = apply(restored, command)
        assert same == result
    assert in_order(restored) == in_order(image)
    assert snapshot(restored, Offset(9)) == snapshot(image, Offset(9))


@given(data=st.binary(max_size=200))
def test_any_bytes_restore_or_are_refused(data: bytes) -> None:
    """Bytes are a snapshot, or one of a later version, or CorruptDataError: never another error."""
    try:
        image, applied_offset = restore(b"\x08\x01" + data)
    except (CorruptDataError, UnknownCommand):
        return
    assert restore(snapshot(image, applied_offset)) == (image, applied_offset)


@given(data=st.binary(max_size=200))
def test_any_bytes_apply_or_are_unknown(data: bytes) -> None:
    """Bytes in the metadata log are a command that is applied or refused, or UnknownCommand: never another error."""
    try:
        image, _ = apply(founded(), decode_command(data))
    except UnknownCommand:
        return
    check(image)
