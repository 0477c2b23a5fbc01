"""What a replica is: as the metadata says it, and at the moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fluxd.core import limits
from fluxd.core.types import GroupId, NodeId


class Role(Enum):
    """What a replica is at the moment."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    UNADMITTED = "unadmitted"
    """Takes no part: its directory, votes or log are missing or corrupt."""
    FAILED = "failed"
    """Stopped itself after an error."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What the metadata says of a group and of this node's replica.

    Args:
        voters: all replicas, the preferred leader first.
        bound_directory: the data directory that this node's vote is bound to.
    """

    group_id: GroupId
    generation: int
    voters: tuple[NodeId, ...]
    bound_directory: bytes
    segment_bytes: int = limits.SEGMENT_BYTES_DEFAULT
    segment_ms: int = limits.SEGMENT_MS_DEFAULT
