"""Answers that take longer than an election timeout: groups come to rest again all the same (`timeouts.py`)."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.types import NodeId
from fluxd.raft.leading import Leading
from tests.simulation.lab import Lab, Message, is_list
from tests.simulation.test_heartbeats import heartbeats, is_list_reply, resting

SLOW = 1.5
"""Seconds that a message takes at most; quick ones overtake."""


def slow() -> tuple[Lab, Leading]:
    """Three nodes that have learnt for half a minute how slow answers are, and their leader's side."""
    lab = resting()
    lab.network.weather.delay_low, lab.network.weather.delay_high = 0.5 * SLOW, SLOW
    lab.run(30.0)
    return lab, lab[elected(lab, within=20.0)].guard.leading


def elected(lab: Lab, within: float) -> int:
    """Who leads, as soon as somebody does."""
    lab.until(lambda: lab.leader() is not None, within=within)
    leader = lab.leader()
    assert leader is not None
    return leader


def test_a_leader_whose_answers_are_slow_stays() -> None:
    """With fixed timeouts there were elections all the time."""
    lab, _ = slow()
    leader = elected(lab, within=0.0)
    term = lab[leader].guard.term
    lab.run(60.0)
    assert (lab.leader(), lab[leader].guard.term) == (leader, term)


def test_its_group_comes_to_rest() -> None:
    """A heartbeat is not sent before the last one can have been answered."""
    lab, leading = slow()
    followers = leading.progress.values()
    lab.until(lambda: all(follower.rest is not None for follower in followers), within=30.0)
    lab.run(30.0)
    assert all(follower.rest is not None for follower in followers), "and stays so"


def test_when_answers_are_quick_again_so_are_elections() -> None:
    lab, _ = slow()
    lab.network.weather.delay_low, lab.network.weather.delay_high = 0.0001, 0.002
    lab.run(limits.ELECTION_TIMEOUT_SLOW * 2)
    leader = elected(lab, within=2 * limits.ELECTION_TIMEOUT_MAX)
    others = tuple(int(node) for node in lab.nodes if node != leader)
    assert all(heartbeats(lab, node).timeouts.election_min < 1.1 * limits.ELECTION_TIMEOUT_MIN for node in others)
    lab.cut((leader,), others)
    lab.until(lambda: lab.leader() in others, within=2 * limits.ELECTION_TIMEOUT_MAX)
    assert lab.leader() != leader


def test_lists_go_to_nodes_towards_which_nothing_rests() -> None:
    """Else nobody would know how slow they are when all groups elect."""
    lab = Lab()
    assert heartbeats(lab, 1).answered() == {}
    lab.elect(1)
    lab.run(limits.HEARTBEAT_INTERVAL * 3)
    assert any(is_list(message) for source, to, message in lab.network.sent if (source, to) == (NodeId(2), NodeId(3)))
    assert set(heartbeats(lab, 2).answered()) == {1, 3}


def test_who_was_let_go_is_out_of_sync_before_it_counts_again() -> None:
    """Else a second one might be let go for it, and nobody would be left."""
    lab, leading = slow()
    lab.until(lambda: all(leading.in_sync_until(peer) > lab.simulator.now for peer in leading.progress), within=30.0)
    leaver, other = leading.progress
    assert leading.may_leave(leaver)
    until = leading.progress[leaver].leaving_until
    assert until > leading.in_sync_until(leaver)
    assert not leading.may_leave(other)


def test_nodes_whose_timeouts_are_fixed_get_heartbeats_as_before() -> None:
    """Those of an older version answer lists, too."""
    lab = Lab()

    def as_older(source: NodeId, target: NodeId, message: Message) -> bool:
        if is_list_reply(message):
            message.heartbeat_list_reply.ClearField("timeouts_follow")
        return False

    lab.network.hold = as_older
    lab.elect(1)
    lab.network.weather.delay_low = lab.network.weather.delay_high = 0.4
    lab.run(10.0)
    for number in lab.nodes:
        timeouts = heartbeats(lab, number).timeouts
        assert timeouts.election_min == limits.ELECTION_TIMEOUT_MIN
        assert timeouts.heartbeat_interval(NodeId(number % 3 + 1)) == limits.HEARTBEAT_INTERVAL


def test_a_timeout_drawn_when_answers_were_slow_is_drawn_again_when_the_link_breaks() -> None:
    lab = resting()
    lab[2].guard.stir()
    lab[2].guard.elections.deadline = lab.simulator.now + 60.0
    host = lab.nodes[NodeId(2)].host
    assert host is not None
    host.peer_down(NodeId(1), gone=False)
    assert lab[2].guard.elections.deadline <= lab.simulator.now + limits.ELECTION_TIMEOUT_MAX
