"""For how long a leader may be silent: the least election timeout of this node now.

ELECTION_TIMEOUT_MIN and two round trips, so that it fits a network, or nodes, that are slow just now. With a fixed one
a cluster that gets too little processor would not come to rest again: answers that come late make groups elect that are
well, elections cost more than heartbeats, and the answers come later still.

A round trip is that of a heartbeat list: it waits in the same queues as all else. Of each peer the quickest of its last
three answers counts, of all peers the slowest. So one late answer changes nothing (a node that stood still for a moment
and goes on), nor does a peer that does not answer at all: that is what the timeout is for.

Timeouts decide when a replica campaigns, never who may win. Source: Raft paper §5.6.
"""

from __future__ import annotations

from collections import deque

from fluxd.core import limits
from fluxd.core.types import NodeId

_ANSWERS = 3
_TRIPS = 2
_TRIP_MAX = (limits.ELECTION_TIMEOUT_SLOW - limits.ELECTION_TIMEOUT_MIN) / _TRIPS


class Timeouts:
    """Of one node."""

    def __init__(self) -> None:
        self._answers: dict[NodeId, deque[float]] = {}
        self._trips: dict[NodeId, float] = {}
        """The round trip to each peer, as it counts."""
        self.election_min = limits.ELECTION_TIMEOUT_MIN
        """Seconds, in ELECTION_TIMEOUT_MIN..ELECTION_TIMEOUT_SLOW."""

    @property
    def slowness(self) -> float:
        """By how much all that waits for others should take longer; 1: as usual."""
        return self.election_min / limits.ELECTION_TIMEOUT_MIN

    def heartbeat_interval(self, peer: NodeId) -> float:
        """Seconds between two heartbeats of a group to a follower: one that is sent before the last one can have been
        answered would only make the answers later, and the group would never rest."""
        return limits.HEARTBEAT_INTERVAL + self._trips.get(peer, 0.0)

    def in_sync(self, peer: NodeId) -> float:
        """Seconds for which a follower that had everything stays in sync: its answers come as often as heartbeats."""
        return limits.IN_SYNC_TIMEOUT + _TRIPS * self._trips.get(peer, 0.0)

    def answered(self, peer: NodeId, seconds: float) -> None:
        """A list was answered after so long."""
        answers = self._answers.setdefault(peer, deque(maxlen=_ANSWERS))
        answers.append(seconds)
        if len(answers) == _ANSWERS:
            self._trips[peer] = min(*answers, _TRIP_MAX)
            self._measure()

    def lost(self, peer: NodeId) -> None:
        """The link broke: what was known of it says nothing of the next one."""
        self._answers.pop(peer, None)
        if self._trips.pop(peer, None) is not None:
            self._measure()

    def _measure(self) -> None:
        slowest = max(self._trips.values(), default=0.0)
        self.election_min = limits.ELECTION_TIMEOUT_MIN + _TRIPS * slowest
