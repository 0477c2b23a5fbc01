"""Builds the commands of the metadata log, each with a fresh id and its proposer's time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fluxd.core.metadata import Node, Partition, Replica, random_id
from fluxlog.v1 import metadata_pb2, state_pb2

STATE_VERSION = 3
"""From this version on a state in the log is understood."""


@dataclass(frozen=True, slots=True)
class Commands:
    """Makes commands with a fresh id and the proposer's time.

    Args:
        random: uniform in [0, 1).
        wall_ms: the proposer's clock, Unix milliseconds.
    """

    random: Callable[[], float]
    wall_ms: Callable[[], int]

    def register_node(self, node: Node) -> metadata_pb2.MetadataCommand:
        """A node's address and directory."""
        command = self._new()
        command.register_node.node_id = node.node_id
        command.register_node.directory_id = node.directory_id
        command.register_node.address = node.address
        return command

    def create_topic(
        self, name: str, partitions: Iterable[Partition], configs: Mapping[str, str]
    ) -> metadata_pb2.MetadataCommand:
        """A new topic with an id of its own."""
        command = self._new()
        create = command.create_topic
        create.name = name
        create.topic_id = random_id(self.random)
        create.partitions.extend(_assignments(0, partitions))
        create.configs.update(configs)
        return command

    def alter_topic(
        self, topic_id: bytes, set_configs: Mapping[str, str], delete_configs: Iterable[str]
    ) -> metadata_pb2.MetadataCommand:
        """Sets and removes configuration keys."""
        command = self._new()
        command.alter_topic.topic_id = topic_id
        command.alter_topic.set_configs.update(set_configs)
        command.alter_topic.delete_configs.extend(delete_configs)
        return command

    def add_partitions(
        self, topic_id: bytes, first: int, partitions: Iterable[Partition]
    ) -> metadata_pb2.MetadataCommand:
        """More partitions, numbered from `first`, the present count."""
        command = self._new()
        command.add_partitions.topic_id = topic_id
        command.add_partitions.partitions.extend(_assignments(first, partitions))
        return command

    def delete_topic(self, topic_id: bytes) -> metadata_pb2.MetadataCommand:
        """Deletes one incarnation of a topic."""
        command = self._new()
        command.delete_topic.topic_id = topic_id
        return command

    def bind_replica(
        self, topic_id: bytes, number: int, generation: int, replica: Replica
    ) -> metadata_pb2.MetadataCommand:
        """Binds a replica's vote to another directory of its node."""
        command = self._new(version=2)
        bind = command.bind_replica
        bind.topic_id, bind.partition, bind.generation = topic_id, number, generation
        bind.node_id, bind.directory_id = replica.node_id, replica.directory_id
        return command

    def state_chunk(self, chunk: state_pb2.StateChunk) -> metadata_pb2.MetadataCommand:
        """A part of the whole state."""
        command = self._new(version=STATE_VERSION)
        command.state_chunk.CopyFrom(chunk)
        return command

    def _new(self, version: int = 1) -> metadata_pb2.MetadataCommand:
        """With the lowest version that understands it, so that older nodes go on as long as it is not used."""
        return metadata_pb2.MetadataCommand(version=version, command_id=random_id(self.random), time_ms=self.wall_ms())


def _assignments(first: int, partitions: Iterable[Partition]) -> Iterable[metadata_pb2.PartitionAssignment]:
    for number, partition in enumerate(partitions, first):
        yield metadata_pb2.PartitionAssignment(
            partition=number,
            generation=partition.generation,
            replicas=[
                metadata_pb2.ReplicaAssignment(node_id=replica.node_id, directory_id=replica.directory_id)
                for replica in partition.replicas
            ],
        )
