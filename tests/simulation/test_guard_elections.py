"""Who campaigns, who votes, who may still believe that it leads. Each test is the one that fails when its measure is
taken out (`mutants.py`)."""

from __future__ import annotations

import pytest

from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.types import NodeId
from fluxd.raft.spec import Role
from tests.simulation.lab import Lab, Message, is_append, is_heartbeat, is_reply

TIMEOUT = limits.ELECTION_TIMEOUT_MIN


def _campaign(lab: Lab, node: int) -> None:
    """As if a majority had granted its pre-vote."""
    lab[node].guard.elections._campaign()
    host = lab.nodes[NodeId(node)].host
    assert host is not None
    host.wake(lab[node])


def test_no_vote_against_a_leader_that_is_well() -> None:
    """A node campaigns (its pre-vote was granted just before): who hears the leader does not vote."""
    lab = Lab()
    lab.elect(1)
    lab.cut((3,), (1,))
    lab.run(0.5)
    _campaign(lab, 3)
    lab.run(0.5)
    assert lab[3].term == 2
    assert (lab.leader(), lab[1].term, lab[2].term) == (1, 1, 1)
    assert lab[2].guard.counters["sticky_vote"] == 1


def test_no_pre_vote_against_a_leader_that_is_well() -> None:
    """The link to the leader is dead, a common neighbour hears it: no term grows, so nothing happens when it heals."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (3,))
    lab.run(10 * TIMEOUT)
    assert [lab[node].term for node in (1, 2, 3)] == [1, 1, 1]
    lab.heal()
    lab.run(3 * TIMEOUT)
    assert (lab.leader(), lab[1].term) == (1, 1)


def test_of_two_that_campaign_at_once_one_goes_first() -> None:
    """Both have lost the leader and ask for pre-votes in the same moment: one of them is elected in the next term,
    instead of both voting for themselves."""
    for seed in range(1, 9):
        lab = Lab(seed=seed)
        lab.elect(1)
        lab.kill(1)
        lab.until(lambda lab=lab: not any(lab[node].guard.elections._leader_is_fresh() for node in (2, 3)))  # type: ignore[misc]
        for node in (2, 3):
            lab[node].guard.elections.deadline = lab.simulator.now
            host = lab.nodes[NodeId(node)].host
            assert host is not None
            host.wake(lab[node])
        lab.until(lambda lab=lab: lab.leader() is not None)  # type: ignore[misc]
        assert max(lab[2].term, lab[3].term) == 2


def test_who_let_another_one_go_first_campaigns_when_that_one_is_gone() -> None:
    """And it does so once in a term only: one that asks again and again, and cannot win, keeps nobody from it."""
    lab = Lab(nodes=5)
    lab.elect(1)
    lab.cut((2,), (4, 5))  # it hears one other voter, which is no majority
    lab.kill(1)
    lab.until(lambda: lab.leader() is not None)
    assert lab.leader() in (3, 4, 5)
    assert lab[2].role is not Role.LEADER


def test_when_a_leaders_process_is_gone_the_next_voter_campaigns_first() -> None:
    """At a moment without chance: groups that lost their leader together elect together."""
    for seed in range(5):
        lab = Lab(seed=seed)
        lab.elect(1)
        lab.kill(1)
        lab.run(0.02)
        left = {node: lab[node].guard.elections.deadline - lab[node].guard.now() for node in (2, 3)}
        assert 0.0 < left[2] <= 0.05
        assert left[3] - left[2] == pytest.approx(0.14, abs=0.001)
        lab.until(lambda lab=lab: lab.leader() is not None)  # type: ignore[misc]
        assert lab.leader() == 2


def test_no_pre_vote_for_a_shorter_log() -> None:
    """It could not win: its campaigns would only make the term grow."""
    lab = Lab()
    lab.elect(1)
    lab.cut((3,), (1, 2))
    lab.commit(1, b"x")
    lab.kill(1, gone=False)
    lab.run(0.01)
    lab.heal()
    lab[2].guard.elections.deadline = lab.simulator.now + 10 * TIMEOUT
    lab.run(5 * TIMEOUT)
    assert (lab[2].term, lab[3].term) == (1, 1)
    assert any(m.WhichOneof("body") == "pre_vote_request" for s, _, m in lab.network.sent if s == 3)


def test_a_follower_never_campaigns_by_itself() -> None:
    """The library's election timeout is always past: only the guard lets it campaign."""
    lab = Lab()
    lab.elect(1)
    lab.run(5 * TIMEOUT)
    assert {lab[node].term for node in (1, 2, 3)} == {1}
    _campaign(lab, 2)  # loses: the others hear their leader
    lab.until(lambda: lab.leader() is not None and len({lab[node].term for node in (1, 2, 3)}) == 1)
    term = lab[1].term
    lab.run(5 * TIMEOUT)
    assert {lab[node].term for node in (1, 2, 3)} == {term}


def test_sending_again_keeps_no_leader_in_office() -> None:
    """Cut off with entries in flight: that it sends them again is no sign of a follower's life."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    lab.propose(1, b"x")
    lab.until(lambda: lab[1].role is not Role.LEADER, within=1.5 * TIMEOUT)
    assert lab.leader() != 1


def test_answers_to_an_old_leadership_keep_no_leader_in_office() -> None:
    """A node leads again; answers to its first leadership trickle in, and nothing else."""
    lab = Lab()
    lab.elect(1)
    old: list[tuple[NodeId, NodeId, Message]] = []
    lab.run(2 * TIMEOUT)
    old = [sent for sent in lab.network.sent if sent[1] == 1 and is_reply(sent[2])]
    lab.elect(2)
    lab.elect(1)
    lab.network.silent |= {(NodeId(2), NodeId(1)), (NodeId(3), NodeId(1))}
    for answer in old[-10:]:
        lab.network.release([answer])
        lab.run(TIMEOUT / 3)
    assert lab[1].role is not Role.LEADER


def test_a_transfer_takes_milliseconds() -> None:
    """The voters hear a leader that is well, and vote all the same: it asked for this."""
    lab = Lab()
    lab.elect(1)
    lab.commit(1, b"x")
    lab.until(lambda: lab[2].log.synced_index == lab[1].log.last_index)
    lab.run(0.1)
    lab[1].transfer(NodeId(2))
    lab.until(lambda: lab[2].role is Role.LEADER, within=0.1)
    assert lab.leader() == 2


def test_only_the_leader_can_ask_for_a_transfer() -> None:
    """Another member asks, or a leader of an earlier term: nobody campaigns."""
    lab = Lab()
    lab.elect(1)
    lab.elect(3)
    term = lab[3].term
    for source, spoken_in in ((1, term), (3, term - 1)):
        message = lab[1].guard.outbox.message()
        message.term = spoken_in
        message.timeout_now.SetInParent()
        host = lab.nodes[NodeId(2)].host
        assert host is not None
        host.receive(NodeId(source), [message])
        lab.run(TIMEOUT)
    assert (lab.leader(), lab[2].term) == (3, term)


def test_after_a_standstill_what_arrived_meanwhile_is_read_before_a_timer_acts() -> None:
    """Heartbeats reach the process a few milliseconds after it goes on: no campaign."""
    lab = Lab()
    lab.elect(1)
    process = lab.nodes[NodeId(3)].reactor
    assert process is not None
    lab.network.hold = lambda source, target, message: target == 3
    lab.run(0.1)
    before = len(lab.network.sent)
    process.paused_until = lab.simulator.now + 5 * TIMEOUT
    lab.run(5 * TIMEOUT + 0.02)
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.run(TIMEOUT)
    assert "pre_vote_request" not in {m.WhichOneof("body") for s, _, m in lab.network.sent[before:] if s == 3}
    assert (lab.leader(), lab[1].term, lab[3].term) == (1, 1, 1)


def test_a_read_is_not_confirmed_by_what_was_answered_before_it() -> None:
    """Every heartbeat was answered, then the leader is cut off: a later read is not confirmed."""
    lab = Lab()
    lab.elect(1)
    followers = lab[1].guard.leading.progress
    lab.until(lambda: all(p.acked_sequence == p.sequence for p in followers.values()))
    lab.cut((1,), (2, 3))
    answers: list[FluxError | None] = []
    lab[1].read_index(answers.append)
    lab.until(lambda: bool(answers), within=3 * TIMEOUT)
    assert isinstance(answers[0], FluxError)


def test_a_new_leader_confirms_no_read_before_its_own_entry_is_committed() -> None:
    """It has an acknowledged record and does not know yet that it is committed."""
    lab = Lab()
    lab.elect(1)
    lab.network.hold = lambda source, target, message: target == 2 and is_heartbeat(message)
    lab.commit(1, b"acknowledged")
    lab.until(lambda: lab[2].log.last_index == lab[1].log.last_index)
    lab.kill(1, gone=False)
    lab.run(0.01)
    lab[3].guard.elections.deadline = lab.simulator.now + 10 * TIMEOUT
    lab.network.hold = lambda source, target, message: is_append(message)
    lab.until(lambda: lab.leader() == 2)
    answers: list[FluxError | None] = []
    lab[2].read_index(answers.append)
    lab.run(TIMEOUT / 2)
    assert lab[2].high_watermark == 0 and not answers
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: bool(answers))
    assert answers == [None]
    assert lab[2].high_watermark == 1
