"""How a group's messages leave the node. Implemented by `fluxd/peer` over gRPC and by the simulation's network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fluxd.core.types import NodeId
from fluxlog.v1 import peer_pb2


class Transport(Protocol):
    """Best effort: messages may be lost, reordered or duplicated; the guard is built for that."""

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """Queue one message; never calls back into the group.

        Args:
            frames: entries of its AppendEntries that are not in it: they are put in on the way, so that a megabyte is
                not copied into a message and out again for each follower. Such a message is bulk, any other control.

        Returns:
            False when it was dropped at once: not connected, or the queue to that peer is full.
        """

    def is_connected(self, peer: NodeId) -> bool:
        """A stream to that peer stands."""
