"""The least election timeout follows the round trips of heartbeat lists (`fluxd/raft/timeouts.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from fluxd.core import limits
from fluxd.core.types import NodeId
from fluxd.raft.timeouts import Timeouts

USUAL = limits.ELECTION_TIMEOUT_MIN
ONE, TWO = NodeId(1), NodeId(2)


def after(trips: dict[NodeId, Sequence[float]]) -> Timeouts:
    """Lists were answered after so long each."""
    timeouts = Timeouts()
    for peer, seconds in trips.items():
        for trip in seconds:
            timeouts.answered(peer, trip)
    return timeouts


def test_two_round_trips_are_added() -> None:
    timeouts = after({ONE: (0.5, 0.5, 0.5)})
    assert timeouts.election_min == USUAL + 1.0
    assert timeouts.slowness == (USUAL + 1.0) / USUAL
    assert timeouts.heartbeat_interval(ONE) == limits.HEARTBEAT_INTERVAL + 0.5
    assert timeouts.in_sync(ONE) == limits.IN_SYNC_TIMEOUT + 1.0
    assert timeouts.heartbeat_interval(TWO) == limits.HEARTBEAT_INTERVAL


def test_late_answers_change_nothing_while_one_of_the_last_three_was_quick() -> None:
    """A node that stood still for a moment answers all lists that wait, the last ones of them quickly."""
    assert after({ONE: (4.0, 3.7, 0.0)}).election_min == USUAL
    assert after({ONE: (0.0, 4.0, 4.0)}).election_min == USUAL
    assert after({ONE: (4.0, 4.0)}).election_min == USUAL


def test_the_slowest_peer_counts() -> None:
    assert after({ONE: (0.0, 0.0, 0.0), TWO: (0.25, 0.5, 0.5)}).election_min == USUAL + 0.5


def test_it_is_bounded() -> None:
    timeouts = after({ONE: (60.0, 60.0, 60.0)})
    assert timeouts.election_min == limits.ELECTION_TIMEOUT_SLOW
    assert 2 * timeouts.heartbeat_interval(ONE) < timeouts.election_min


def test_a_link_that_broke_is_forgotten() -> None:
    timeouts = after({ONE: (0.5, 0.5, 0.5)})
    timeouts.lost(TWO)
    assert timeouts.election_min == USUAL + 1.0
    timeouts.lost(ONE)
    assert timeouts.election_min == USUAL
