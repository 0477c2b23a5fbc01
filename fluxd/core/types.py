"""Kinds of numbers and identities, so that one is never taken for another.

Raft counts entries (`RaftIndex`, from 1, inclusive commit index); readers count records (`Offset`, from 0; the high
watermark and the log end offset are exclusive).
"""

from __future__ import annotations

from typing import NamedTuple, NewType

NodeId = NewType("NodeId", int)
"""1..65,535."""

Term = NewType("Term", int)
"""Raft term; for readers: leader epoch. Terms of generation g begin at g << 32."""

RaftIndex = NewType("RaftIndex", int)
"""Position of an entry in a group's Raft log, from 1."""

Offset = NewType("Offset", int)
"""Position of a record in a partition, from 0."""

TOPIC_ID_BYTES = 16
DIRECTORY_ID_BYTES = 16
PRODUCER_ID_BYTES = 16

METADATA_TOPIC = "__cluster_metadata"
METADATA_TOPIC_ID = bytes(15) + b"\x01"
OFFSETS_TOPIC = "__consumer_offsets"


class GroupId(NamedTuple):
    """Identity of one Raft group: one partition of one incarnation of a topic. A tuple, since each message looks one
    up: it is hashed and compared in C."""

    topic_id: bytes
    partition: int

    def __str__(self) -> str:
        return f"{self.topic_id.hex()}-{self.partition}"

    @property
    def directory_name(self) -> str:
        """Name of the group's directory below `partitions/`: 32 hex digits, "-", the partition."""
        return str(self)

    @staticmethod
    def from_directory_name(name: str) -> GroupId:
        """Inverse of `directory_name`.

        Raises:
            ValueError: the name is not one of ours.
        """
        topic, _, partition = name.rpartition("-")
        if len(topic) != 2 * TOPIC_ID_BYTES or not partition.isdecimal() or str(int(partition)) != partition:
            raise ValueError(f"not a partition directory: {name!r}")
        return GroupId(bytes.fromhex(topic), int(partition))


METADATA_GROUP = GroupId(METADATA_TOPIC_ID, 0)
