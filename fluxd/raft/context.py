"""What a group is handed by its host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxd.core.runtime import Reactor
from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.campaigns import Campaigns
from fluxd.raft.heartbeats import Heartbeats
from fluxd.raft.transport import Transport
from fluxd.storage.votes import VoteFile

if TYPE_CHECKING:
    from fluxd.raft.group import Group


@dataclass(frozen=True, slots=True)
class GroupContext:
    """What the host hands to each of its groups."""

    node_id: NodeId
    reactor: Reactor
    transport: Transport
    votes: VoteFile
    log_event: Callable[..., None]
    wake: Callable[[Group], None]
    """Have `step` called soon."""
    enter: Callable[[], None]
    """Set the library's clock before a step."""
    heartbeats: Heartbeats
    campaigns: Campaigns
    disk_full: Callable[[], bool]
    """Only the reserve of free space is left."""
    read_failed: Callable[[Group, BaseException], None]
    """A read of committed entries failed."""
    read_again: Callable[[Group, RaftIndex], None]
    """A segment (its first index) was read from end to end, and is sound."""
