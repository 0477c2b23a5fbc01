"""An image of the metadata as bytes and back, so that the metadata log before may be dropped (`state_chunks`).

All that `apply` looks at is in it, also what it remembers of commands, in the same order: the commands that follow do
the same to it as to the image that it was made of.
"""

from __future__ import annotations

from itertools import islice

from google.protobuf.message import DecodeError

from fluxd.core.errors import CorruptDataError, Reason
from fluxd.core.metadata import COMMAND_VERSION, Image, Node, Partition, Replica, Result, Topic, UnknownCommand
from fluxd.core.types import NodeId, Offset
from fluxlog.v1 import metadata_pb2

SNAPSHOT_VERSION = 1


def snapshot(image: Image, applied_offset: Offset) -> bytes:
    """Encode an image; the same one gives the same bytes on every node. Inverse of `restore`.

    Args:
        applied_offset: first offset of the log that is not in it.
    """
    message = metadata_pb2.MetadataSnapshot(
        version=SNAPSHOT_VERSION, applied_offset=applied_offset, feature_level=image.feature_level,
        deleted_topics=image.deleted_topics,
    )  # fmt: skip
    for node in image.nodes.values():
        message.nodes.add(node_id=node.node_id, directory_id=node.directory_id, address=node.address)
    positions: dict[Replica, int] = {}
    for topic in image.topics.values():
        message.topics.append(_topic_message(topic, positions))
    for replica in positions:
        message.replicas.add(node_id=replica.node_id, directory_id=replica.directory_id)
    for command_id, result in image.remembered.items():
        message.remembered.add(
            command_id=command_id, reason=result.reason.value if result.reason else 0, message=result.message,
            created_topic=result.created_topic, deleted_topic=result.deleted_topic,
        )  # fmt: skip
    return message.SerializeToString(deterministic=True)


def restore(data: bytes) -> tuple[Image, Offset]:
    """Decode an image; returns it and the first offset of the log that is not in it.

    Raises:
        CorruptDataError: not a snapshot.
        UnknownCommand: written by a later version, or of commands of one.
    """
    try:
        message = metadata_pb2.MetadataSnapshot.FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{len(data)} bytes are not a snapshot of the metadata: {error}") from error
    if message.version != SNAPSHOT_VERSION or message.feature_level > COMMAND_VERSION:
        raise UnknownCommand(
            f"snapshot of the metadata, version {message.version}, with commands of version {message.feature_level}: "
            f"this node understands {SNAPSHOT_VERSION} and {COMMAND_VERSION}"
        )
    try:
        return _image(message), Offset(message.applied_offset)
    except (IndexError, ValueError) as error:
        raise CorruptDataError(f"{len(data)} bytes are not a sound snapshot of the metadata: {error}") from error


def _topic_message(topic: Topic, positions: dict[Replica, int]) -> metadata_pb2.TopicSnapshot:
    return metadata_pb2.TopicSnapshot(
        topic_id=topic.topic_id, name=topic.name, configs=dict(topic.configs),
        generations=[partition.generation for partition in topic.partitions],
        replica_counts=[len(partition.replicas) for partition in topic.partitions],
        replicas=[
            positions.setdefault(replica, len(positions))
            for partition in topic.partitions
            for replica in partition.replicas
        ],
    )  # fmt: skip


def _image(message: metadata_pb2.MetadataSnapshot) -> Image:
    replicas = [Replica(NodeId(each.node_id), each.directory_id) for each in message.replicas]
    topics = {each.topic_id: _topic(each, replicas) for each in message.topics}
    return Image(
        topics=topics,
        names={topic.name: topic_id for topic_id, topic in topics.items()},
        nodes={
            NodeId(each.node_id): Node(NodeId(each.node_id), each.directory_id, each.address) for each in message.nodes
        },
        remembered={
            each.command_id: Result(
                Reason(each.reason) if each.reason else None, each.message, each.created_topic, each.deleted_topic
            )
            for each in message.remembered
        },
        feature_level=message.feature_level,
        deleted_topics=tuple(message.deleted_topics),
    )


def _topic(message: metadata_pb2.TopicSnapshot, replicas: list[Replica]) -> Topic:
    if sum(message.replica_counts) != len(message.replicas):
        raise ValueError(f"topic {message.name} has {len(message.replicas)} replicas")
    positions = iter(message.replicas)
    partitions = tuple(
        Partition(generation, tuple(replicas[position] for position in islice(positions, count)))
        for generation, count in zip(message.generations, message.replica_counts, strict=True)
    )
    return Topic(message.topic_id, message.name, partitions, dict(message.configs))
