"""Cluster metadata under any sequence of commands."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.metadata import Image, Node, UnknownCommand, apply, decode_command
from fluxd.core.metadata_commands import Commands
from fluxd.core.types import NodeId
from fluxlog.v1 import metadata_pb2
from tests.unit.test_metadata import directory, founded, partitions

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "delete", "alter", "add", "register", "repeat"]),
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


@given(data=st.binary(max_size=200))
def test_any_bytes_apply_or_are_unknown(data: bytes) -> None:
    """Bytes in the metadata log are a command that is applied or refused, or UnknownCommand: never another error."""
    try:
        image, _ = apply(founded(), decode_command(data))
    except UnknownCommand:
        return
    check(image)
