"""What the cluster knows of itself, as a value: nodes, topics, partitions and where their replicas are.

The metadata log holds commands. `apply` is the only way from one image to the next: pure, the same on every node, no
clock, no randomness. A command that cannot be done is an answer (`Result.reason`), since every node must find the same.
A command that is not understood is `UnknownCommand`: the node stops, because to skip it would make its image another
one than everybody else's.

Images are never changed: applying copies what changes (one topic, and the tables of pointers) and shares the rest.

Deliberately absent: who leads a partition (its own group decides), which nodes are up (they tell each other), and
whether names and configuration values are acceptable (the controller checks before it proposes; here an older rule must
not refuse what is in the log).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from fluxd.core import limits
from fluxd.core.errors import Reason
from fluxd.core.names import INTERNAL_PREFIX
from fluxd.core.types import (
    DIRECTORY_ID_BYTES,
    METADATA_TOPIC,
    METADATA_TOPIC_ID,
    TOPIC_ID_BYTES,
    GroupId,
    NodeId,
)
from fluxlog.v1 import metadata_pb2, peer_pb2

COMMAND_VERSION = 3
"""Highest feature level that this code understands."""

COMMAND_ID_BYTES = 16
FIRST_GENERATION = 0


class UnknownCommand(Exception):
    """A command of a higher feature level, or bytes that are no command. The node must stop; nothing was applied."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A vote is bound to a directory: the same node with another one is not this replica."""

    node_id: NodeId
    directory_id: bytes


@dataclass(frozen=True, slots=True)
class Partition:
    """Where one partition is. The first replica is the preferred leader."""

    generation: int
    replicas: tuple[Replica, ...]

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """Node ids of the replicas, the preferred leader first."""
        return tuple(replica.node_id for replica in self.replicas)

    @property
    def preferred_leader(self) -> NodeId:
        """The node that leads when all is well."""
        return self.replicas[0].node_id

    @property
    def majority(self) -> int:
        """How many replicas a commit or an election needs."""
        return len(self.replicas) // 2 + 1

    def directory_of(self, node_id: NodeId) -> bytes | None:
        """The directory that a node's vote is bound to; None: the node has no replica."""
        return next((replica.directory_id for replica in self.replicas if replica.node_id == node_id), None)


@dataclass(frozen=True, slots=True)
class Topic:
    """One incarnation of a name: deleted and created again it has another id."""

    topic_id: bytes
    name: str
    partitions: tuple[Partition, ...]
    configs: Mapping[str, str]

    @property
    def internal(self) -> bool:
        """The cluster's own."""
        return self.name.startswith(INTERNAL_PREFIX)

    @property
    def replication_factor(self) -> int:
        """Replicas of each partition."""
        return len(self.partitions[0].replicas)

    def group_id(self, partition: int) -> GroupId:
        """Raft group of a partition."""
        return GroupId(self.topic_id, partition)


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it registered itself."""

    node_id: NodeId
    directory_id: bytes
    address: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did: nothing, when `reason` is set."""

    reason: Reason | None = None
    message: str = ""
    created_topic: bytes = b""
    deleted_topic: bytes = b""


@dataclass(frozen=True, slots=True)
class Image:
    """The whole metadata at one point of the log."""

    topics: Mapping[bytes, Topic] = field(default_factory=dict)
    names: Mapping[str, bytes] = field(default_factory=dict)
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    remembered: Mapping[bytes, Result] = field(default_factory=dict)
    """Results of the last METADATA_COMMANDS_REMEMBERED commands by id, oldest first."""
    feature_level: int = 0
    """Highest version of a command that was applied."""
    deleted_topics: tuple[bytes, ...] = ()
    """Ids of the last METADATA_DELETIONS_REMEMBERED topics that were deleted, oldest first: a node that was away finds
    here whose files it may remove."""

    def topic(self, name: str) -> Topic | None:
        """The topic that has a name now."""
        topic_id = self.names.get(name)
        return None if topic_id is None else self.topics[topic_id]

    def partition(self, group_id: GroupId) -> Partition | None:
        """Where a partition is."""
        topic = self.topics.get(group_id.topic_id)
        if topic is None or group_id.partition >= len(topic.partitions):
            return None
        return topic.partitions[group_id.partition]


def founding_image(founding: peer_pb2.Founding) -> Image:
    """The image before the first command: the nodes that founded the cluster, and the metadata topic on all of them."""
    nodes = {
        NodeId(seed.node_id): Node(NodeId(seed.node_id), seed.directory_id, seed.address) for seed in founding.seeds
    }
    replicas = tuple(Replica(node.node_id, node.directory_id) for node in nodes.values())
    topic = Topic(METADATA_TOPIC_ID, METADATA_TOPIC, (Partition(FIRST_GENERATION, replicas),), {})
    return Image({topic.topic_id: topic}, {topic.name: topic.topic_id}, nodes)


def decode_command(value: bytes) -> metadata_pb2.MetadataCommand:
    """Decode the value of one record of the metadata log.

    Raises:
        UnknownCommand: not a command at all.
    """
    command = metadata_pb2.MetadataCommand()
    try:
        command.ParseFromString(value)
    except DecodeError as error:
        raise UnknownCommand(f"{len(value)} bytes in the metadata log are not a command: {error}") from error
    return command


def apply(image: Image, command: metadata_pb2.MetadataCommand) -> tuple[Image, Result]:
    """The image after a command, and what it did.

    A command id that is remembered gives the same result again and changes nothing.

    Raises:
        UnknownCommand: the version is not 1..COMMAND_VERSION, or the command is none that this code knows.
    """
    kind = command.WhichOneof("command")
    if not 1 <= command.version <= COMMAND_VERSION or kind is None:
        raise UnknownCommand(
            f"metadata command {kind or 'of an unknown kind'}, version {command.version}: "
            f"this node understands versions up to {COMMAND_VERSION}"
        )
    if kind == "state_chunk":  # for those who begin behind the log's first records: `state_chunks.StateSearch`
        return _understood(image, command.version), Result()
    if (earlier := image.remembered.get(command.command_id)) is not None:
        return image, earlier
    if len(command.command_id) != COMMAND_ID_BYTES:
        return image, _refused(f"a command id has {COMMAND_ID_BYTES} bytes, not {len(command.command_id)}")
    match kind:
        case "register_node":
            image, result = _register_node(image, command.register_node)
        case "create_topic":
            image, result = _create_topic(image, command.create_topic)
        case "alter_topic":
            image, result = _alter_topic(image, command.alter_topic)
        case "add_partitions":
            image, result = _add_partitions(image, command.add_partitions)
        case "delete_topic":
            image, result = _delete_topic(image, command.delete_topic)
        case "bind_replica":
            image, result = _bind_replica(image, command.bind_replica)
    return _remember(image, command, result), result


def _remember(image: Image, command: metadata_pb2.MetadataCommand, result: Result) -> Image:
    remembered = dict(image.remembered)
    remembered[command.command_id] = result
    if len(remembered) > limits.METADATA_COMMANDS_REMEMBERED:
        del remembered[next(iter(remembered))]
    return _understood(replace(image, remembered=remembered), command.version)


def _understood(image: Image, version: int) -> Image:
    return image if version <= image.feature_level else replace(image, feature_level=version)


def _refused(message: str, reason: Reason = Reason.INVALID_ARGUMENT) -> Result:
    return Result(reason, message)


def _register_node(image: Image, command: metadata_pb2.RegisterNode) -> tuple[Image, Result]:
    if not 1 <= command.node_id <= 65_535 or len(command.directory_id) != DIRECTORY_ID_BYTES or not command.address:
        return image, _refused(f"node {command.node_id}: id, directory id or address is malformed")
    node = Node(NodeId(command.node_id), command.directory_id, command.address)
    return replace(image, nodes={**image.nodes, node.node_id: node}), Result()


def _create_topic(image: Image, command: metadata_pb2.CreateTopicCommand) -> tuple[Image, Result]:
    if command.name in image.names:
        return image, _refused(f"topic {command.name} exists", Reason.TOPIC_EXISTS)
    if not command.name or len(command.topic_id) != TOPIC_ID_BYTES or command.topic_id in image.topics:
        return image, _refused(f"topic {command.name!r}: the name is empty, or its id is malformed or taken")
    partitions, refused = _partitions(image, command.partitions, first=0, replication_factor=None)
    if refused is not None:
        return image, refused
    topic = Topic(command.topic_id, command.name, partitions, dict(command.configs))
    changed = replace(
        image, topics={**image.topics, topic.topic_id: topic}, names={**image.names, topic.name: topic.topic_id}
    )
    return changed, Result(created_topic=topic.topic_id)


def _alter_topic(image: Image, command: metadata_pb2.AlterTopicCommand) -> tuple[Image, Result]:
    topic = image.topics.get(command.topic_id)
    if topic is None:
        return image, _unknown_topic(command.topic_id)
    configs = {key: value for key, value in topic.configs.items() if key not in command.delete_configs}
    configs.update(command.set_configs)
    return _with_topic(image, replace(topic, configs=configs)), Result()


def _add_partitions(image: Image, command: metadata_pb2.AddPartitionsCommand) -> tuple[Image, Result]:
    topic = image.topics.get(command.topic_id)
    if topic is None:
        return image, _unknown_topic(command.topic_id)
    added, refused = _partitions(
        image, command.partitions, first=len(topic.partitions), replication_factor=topic.replication_factor
    )
    if refused is not None:
        return image, refused
    return _with_topic(image, replace(topic, partitions=topic.partitions + added)), Result()


def _delete_topic(image: Image, command: metadata_pb2.DeleteTopicCommand) -> tuple[Image, Result]:
    topic = image.topics.get(command.topic_id)
    if topic is None or topic.topic_id == METADATA_TOPIC_ID:
        return image, _unknown_topic(command.topic_id)
    topics, names = dict(image.topics), dict(image.names)
    del topics[topic.topic_id], names[topic.name]
    deleted = (*image.deleted_topics, topic.topic_id)[-limits.METADATA_DELETIONS_REMEMBERED :]
    changed = replace(image, topics=topics, names=names, deleted_topics=deleted)
    return changed, Result(deleted_topic=topic.topic_id)


def _bind_replica(image: Image, command: metadata_pb2.BindReplica) -> tuple[Image, Result]:
    topic, node = image.topics.get(command.topic_id), image.nodes.get(NodeId(command.node_id))
    if topic is None or command.partition >= len(topic.partitions):
        return image, _unknown_topic(command.topic_id)
    partition = topic.partitions[command.partition]
    bound = Replica(NodeId(command.node_id), command.directory_id)
    if partition.generation != command.generation or partition.directory_of(bound.node_id) is None:
        return image, _refused(f"node {command.node_id} has no replica in generation {command.generation}")
    if node is None or node.directory_id != command.directory_id:
        return image, _refused(f"node {command.node_id} has another directory now", Reason.UNKNOWN_NODE)
    replicas = tuple(bound if replica.node_id == bound.node_id else replica for replica in partition.replicas)
    partitions = list(topic.partitions)
    partitions[command.partition] = replace(partition, replicas=replicas)
    return _with_topic(image, replace(topic, partitions=tuple(partitions))), Result()


def _unknown_topic(topic_id: bytes) -> Result:
    return _refused(f"there is no topic with id {topic_id.hex()}", Reason.UNKNOWN_TOPIC)


def _with_topic(image: Image, topic: Topic) -> Image:
    return replace(image, topics={**image.topics, topic.topic_id: topic})


def _partitions(
    image: Image,
    assignments: Sequence[metadata_pb2.PartitionAssignment],
    *,
    first: int,
    replication_factor: int | None,
) -> tuple[tuple[Partition, ...], Result | None]:
    """Decode assignments numbered from `first` without a hole, or say what is wrong with them."""
    out: list[Partition] = []
    for number, assignment in enumerate(assignments, first):
        replicas = tuple(Replica(NodeId(replica.node_id), replica.directory_id) for replica in assignment.replicas)
        wanted = len(replicas) if replication_factor is None else replication_factor
        distinct = len({replica.node_id for replica in replicas})
        if assignment.partition != number or not 1 <= len(replicas) == distinct == wanted <= limits.VOTERS_MAX:
            return (), _refused(f"partition {number}: its number or its replicas are malformed")
        replication_factor = wanted
        for replica in replicas:
            node = image.nodes.get(replica.node_id)
            if node is None or node.directory_id != replica.directory_id:
                return (), _refused(
                    f"partition {number}: node {replica.node_id} is unknown or has another directory now",
                    Reason.UNKNOWN_NODE,
                )
        out.append(Partition(assignment.generation, replicas))
    total = first + len(out)
    if not out or total > limits.PARTITIONS_PER_TOPIC_MAX:
        return (), _refused(f"{total} partitions are not {first + 1}..{limits.PARTITIONS_PER_TOPIC_MAX}")
    return tuple(out), None


def random_id(random: Callable[[], float]) -> bytes:
    """16 bytes from a source of uniform numbers in [0, 1): the id of a command or a topic."""
    return bytes(int(random() * 256) for _ in range(16))
