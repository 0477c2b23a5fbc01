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
        self._trips: dict[NodeId, deque[float]] = {}
        self.election_min = limits.ELECTION_TIMEOUT_MIN
        """Seconds, in ELECTION_TIMEOUT_MIN..ELECTION_TIMEOUT_SLOW."""

    def heartbeat_interval(self, peer: NodeId) -> float:
        """Seconds between two heartbeats of a group to a follower: one that is sent before the last one can have been
        answered would only make the answers later, and the group would never rest."""
        return limits.HEARTBEAT_INTERVAL + min(self._trip(peer), _TRIP_MAX)

    @property
    def slowness(self) -> float:
        """By how much all that waits for others should take longer; 1: as usual."""
        return self.election_min / limits.ELECTION_TIMEOUT_MIN

    def answered(self, peer: NodeId, seconds: float) -> None:
        """A list was answered after so long."""
        self._trips.setdefault(peer, deque(maxlen=_ANSWERS)).append(seconds)
        self._measure()

    def lost(self, peer: NodeId) -> None:
        """The link broke: what was known of it says nothing of the next one."""
        if self._trips.pop(peer, None) is not None:
            self._measure()

    def _trip(self, peer: NodeId) -> float:
        trips = self._trips.get(peer, ())
        return min(trips) if len(trips) == _ANSWERS else 0.0

    def _measure(self) -> None:
        slowest = min(max(map(self._trip, self._trips), default=0.0), _TRIP_MAX)
        self.election_min = limits.ELECTION_TIMEOUT_MIN + _TRIPS * slowest
