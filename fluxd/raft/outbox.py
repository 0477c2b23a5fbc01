"""A group's outgoing messages: stamped with group, generation and term, and held until the node's votes are durable.

The library records a new term or vote and returns at once; the record is synced in the background, one sync for all
groups of the node. Until it covers this group's last record, nothing that reflects it may be seen by anybody: every
message waits here (C5 in docs/raft.md, invariant I7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fluxd.core.types import GroupId, NodeId
from fluxd.raft.transport import Transport
from fluxlog.v1 import peer_pb2

_HELD_MAX = 1_024
"""Messages may be lost, so the oldest go when a sync hangs."""


class Outbox:
    """One group's way out.

    Args:
        term: the group's current term.
        votes_durable: whether the group's last vote record is synced.
    """

    def __init__(
        self,
        group: GroupId,
        generation: int,
        transport: Transport,
        *,
        term: Callable[[], int],
        votes_durable: Callable[[], bool],
    ) -> None:
        self._group, self._generation, self._transport = group, generation, transport
        self._term, self._votes_durable = term, votes_durable
        self._held: list[tuple[NodeId, peer_pb2.GroupMessage, Sequence[bytes]]] = []
        """Not a deque: an empty one takes 0.6 KiB, and each group has some."""

    def message(self) -> peer_pb2.GroupMessage:
        """A message with its envelope filled in; the caller sets the body."""
        return peer_pb2.GroupMessage(
            topic_id=self._group.topic_id,
            partition=self._group.partition,
            generation=self._generation,
            term=self._term(),
        )

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """Send now, or when the votes are durable.

        Args:
            frames: see `Transport.send`.

        Returns:
            False when it was surely dropped.
        """
        if self._held:
            self.release()  # whoever was held back between two steps is not told when the votes are durable
        if not self._votes_durable():
            if len(self._held) == _HELD_MAX:
                del self._held[0]
            self._held.append((peer, message, frames))
            return True
        return self._transport.send(peer, message, frames)

    @property
    def holds(self) -> bool:
        """Messages wait."""
        return bool(self._held)

    def release(self) -> None:
        """Send what was held, unless the term has moved on meanwhile: an acknowledgement of an old term never
        leaves.
        """
        if not self._votes_durable():
            return
        held, term = self._held, self._term()
        self._held = []
        for peer, message, frames in held:
            if message.term == term:
                self._transport.send(peer, message, frames)
