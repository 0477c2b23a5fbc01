"""Answers that take longer than an election timeout: groups come to rest again all the same (`timeouts.py`)."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.types import NodeId
from tests.simulation.lab import Lab, is_list
from tests.simulation.test_heartbeats import heartbeats, progress, resting

SLOW = 1.5
"""Seconds that a message takes at most; quick ones overtake."""


def slow() -> Lab:
    """Three nodes that have learnt for half a minute how slow answers are."""
    lab = resting()
    lab.network.weather.delay_low, lab.network.weather.delay_high = 0.5 * SLOW, SLOW
    lab.run(30.0)
    return lab


def test_a_leader_whose_answers_are_slow_stays() -> None:
    """With fixed timeouts there were elections all the time."""
    lab = slow()
    lab.until(lambda: lab.leader() is not None, within=20.0)
    leader = lab.leader()
    assert leader is not None
    term = lab[leader].guard.term
    lab.run(60.0)
    assert (lab.leader(), lab[leader].guard.term) == (leader, term)


def test_its_group_comes_to_rest() -> None:
    """A heartbeat is not sent before the last one can have been answered."""
    lab = slow()
    lab.until(lambda: lab.leader() is not None, within=20.0)
    leader = lab.leader()
    assert leader is not None
    followers = lab[leader].guard.leading.progress.values()
    lab.until(lambda: all(follower.rest is not None for follower in followers), within=30.0)


def test_when_answers_are_quick_again_so_are_elections() -> None:
    lab = slow()
    lab.network.weather.delay_low, lab.network.weather.delay_high = 0.0001, 0.002
    lab.run(limits.ELECTION_TIMEOUT_SLOW * 2)
    lab.until(lambda: lab.leader() is not None, within=2 * limits.ELECTION_TIMEOUT_MAX)
    leader = lab.leader()
    assert leader is not None
    others = tuple(int(node) for node in lab.nodes if node != leader)
    assert all(heartbeats(lab, node).timeouts.election_min < 1.1 * limits.ELECTION_TIMEOUT_MIN for node in others)
    lab.cut((leader,), others)
    lab.until(lambda: lab.leader() in others, within=2 * limits.ELECTION_TIMEOUT_MAX)


def test_lists_go_to_nodes_towards_which_nothing_rests() -> None:
    """Else nobody would know how slow they are when all groups elect."""
    lab = Lab()
    assert heartbeats(lab, 1).answered() == {}
    lab.elect(1)
    lab.run(limits.HEARTBEAT_INTERVAL * 3)
    assert progress(lab, 2).rest is None or lab.leader() == 1
    assert any(is_list(message) for source, to, message in lab.network.sent if (source, to) == (NodeId(2), NodeId(3)))
    assert set(heartbeats(lab, 2).answered()) == {1, 3}
