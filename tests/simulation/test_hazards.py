"""Each hazard of pysyncobj that the guard closes, as the schedule that shows it on the bare library (H in
docs/raft.md).

Random schedules alone miss half of these: keep them.
"""

from __future__ import annotations

import importlib
import pickle

import pytest

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.proposal import Committed
from fluxd.raft.spec import Role
from tests.simulation.lab import Lab, is_heartbeat, is_reply, outcome

BIG = b"." * 200_000


def test_h1_acknowledgements_of_pipelined_entries_make_nothing_be_sent_or_truncated_again() -> None:
    """A late acknowledgement winds nextIndex back in the bare library: it re-sends, and the follower truncates
    what it acknowledged. One follower's answers are late, the other's make the group go on.
    """
    lab = Lab()
    lab.elect(1)
    lab.run(0.1)
    lab.network.hold = lambda source, target, message: (source, target) == (2, 1) and is_reply(message)
    before = len(lab.network.sent)
    for n in range(4):
        lab.commit(1, b"%d" % n + BIG)
    lab.run(0.1)
    while lab.network.held:
        lab.network.release([lab.network.held.pop(0)])
        lab.run(0.02)
    frames = [f for s, t, m in lab.network.sent[before:] if (s, t) == (1, 2) for f in m.append_entries.frames]
    assert len(frames) == len(set(frames)) == 4, "an entry was sent twice on a healthy network"
    assert lab.counts["truncations"] == 0
    lab.network.hold = lambda source, target, message: False
    lab.kill(1)
    lab.until(lambda: lab.leader() in (2, 3))
    leader = lab.leader()
    assert leader is not None
    assert len([v for v in lab.values(leader) if v.endswith(BIG)]) == 4


def test_h2_several_rewinds_for_one_gap_are_honoured_once() -> None:
    """A new leader's entries are refused one after another for one gap; the second refusal must not restart the
    re-send.
    """
    lab = Lab()
    lab.elect(1)
    lab.cut((2,), (1, 3))
    for n in range(5):
        lab.commit(1, b"%d" % n)
    lab.elect(3)
    lab.network.hold = lambda source, target, message: (source, target) == (2, 3) and is_reply(message)
    lab.heal()
    for n in range(4):
        lab.commit(3, b"more-%d" % n)
    refusals = [m for _, _, m in lab.network.held if not m.append_reply.success]
    assert len(refusals) >= 2
    before = len(lab.network.sent)
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: lab[2].log.last_index == lab[3].log.last_index)
    lab.run(0.5)
    frames = [f for s, t, m in lab.network.sent[before:] if t == 2 and s == 3 for f in m.append_entries.frames]
    assert len(frames) == len(set(frames)) > 0
    assert lab[3].guard.counters["fenced_reset"] >= 1
    assert lab.counts["truncations"] == 0


def test_h3_a_stale_append_of_an_old_stream_truncates_nothing() -> None:
    """A heartbeat stuck in the old stream of a reconnect is delivered last."""
    lab = Lab()
    lab.elect(1)
    lab.network.hold = lambda source, target, message: target == 2 and is_heartbeat(message)
    lab.run(0.7)
    stale = [m for m in lab.network.held if m[1] == 2]
    lab.network.hold = lambda source, target, message: False
    lab.network.held.clear()
    assert stale
    for n in range(5):
        lab.commit(1, b"%d" % n)
    lab.until(lambda: lab[2].log.last_index == lab[1].log.last_index)
    last = lab[2].log.last_index
    lab.network.release(stale)
    assert lab[2].log.last_index == last
    following = lab[2].guard.following
    following._last_sequence = {False: 0, True: 0}  # even without the fence the comparison with the own log protects
    lab.network.release(stale)
    assert lab[2].log.last_index == last


def test_h4_a_commit_index_is_clamped_to_what_the_message_verified() -> None:
    """A cut-off leader's uncommitted tail must not be committed by the next leader's commit index."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    tail = [lab.propose(1, b"old-%d" % n) for n in range(3)]
    lab.until(lambda: lab.leader() in (2, 3))
    leader = lab.leader()
    assert leader is not None
    for n in range(10):
        lab.commit(leader, b"new-%d" % n)
    lab.heal()
    lab.until(lambda: lab[1].log.last.checksum == lab[leader].log.last.checksum)
    assert not [v for v in lab.values(1) if v.startswith(b"old")]
    assert {outcome(a) for a in tail} <= {"UNKNOWN", "REJECTED"}


def test_h7_an_acknowledgement_of_an_earlier_leadership_is_not_counted() -> None:
    """Node 2's stuck acknowledgement of term 1 arrives when node 1 leads again, with other entries at these indexes."""
    lab = Lab(nodes=5)
    lab.elect(1)
    lab.cut((1, 2), (3, 4, 5))
    lab.network.hold = lambda source, target, message: (source, target) == (2, 1) and is_reply(message)
    for n in range(6):
        lab.propose(1, b"x%d" % n)
    lab.run(0.3)
    stuck = [m for m in lab.network.held if m[2].append_reply.success]
    lab.network.hold = lambda source, target, message: False
    lab.network.held.clear()
    assert max(m.append_reply.durable_index for _, _, m in stuck) > 2
    lab.until(lambda: lab.leader() in (3, 4, 5))
    leader = lab.leader()
    assert leader is not None
    lab.heal()
    lab.cut((2,), (1, 3, 4, 5))
    lab.commit(leader, b"between")
    lab.until(lambda: lab[1].log.last_index == lab[leader].log.last_index)
    lab.elect(1)
    lab.cut((1, 3), (4, 5))
    pending = [lab.propose(1, b"n%d" % n) for n in range(3)]
    lab.run(0.1)
    lab.network.release(stuck)
    lab.run(0.3)
    assert not any(outcome(a) == "COMMITTED" for a in pending)
    assert lab[1].guard.counters["stale_reply"] >= 1


def test_h8_a_vote_counts_once_and_only_from_a_member() -> None:
    """A duplicated vote, and one of a stranger, elect nobody."""
    lab = Lab(nodes=5)
    lab.cut((1, 2), (3, 4, 5))
    lab.network.hold = lambda source, target, message: message.WhichOneof("body") == "vote_reply"
    lab.cut((1,), (2,))
    candidate = lab[1]
    candidate.guard.elections._campaign()
    lab.run(0.05)
    message = candidate.guard.outbox.message()
    message.vote_reply.SetInParent()
    host = lab.nodes[NodeId(1)].host
    assert host is not None
    for _ in range(3):
        host.receive(NodeId(2), [message])
        host.receive(NodeId(99), [message])
    lab.run(0.01)
    assert lab[1].role is not Role.LEADER
    assert lab[1].guard.counters["stranger"] == 3


def test_h9_a_follower_acknowledges_only_what_its_disk_has() -> None:
    """With both followers' disks hanging nothing is committed, and nobody is deposed: liveness and durability are
    apart.
    """
    lab = Lab()
    lab.elect(1)
    for node in (2, 3):
        lab.nodes[NodeId(node)].speed.hung_until = lab.simulator.now + 4.0
    answers = lab.propose(1, b"x")
    lab.run(3.5)
    assert outcome(answers) == "PENDING"
    assert lab[1].role is Role.LEADER
    lab.until(lambda: outcome(answers) == "COMMITTED", within=2.0)


def test_h10_a_leader_counts_itself_only_when_its_own_disk_has_the_entry() -> None:
    """One follower acknowledges, the other is away, the leader's disk hangs: not committed until it has synced."""
    lab = Lab()
    lab.elect(1)
    lab.kill(3, gone=False)
    lab.nodes[NodeId(1)].speed.hung_until = lab.simulator.now + 0.8
    answers = lab.propose(1, b"x")
    lab.run(0.6)
    assert lab[1].guard.leading.progress[NodeId(2)].match == lab[1].log.last_index
    assert outcome(answers) == "PENDING"
    lab.until(lambda: outcome(answers) == "COMMITTED")


def test_h10_a_group_of_one_commits_nothing_before_its_disk() -> None:
    """The bare library commits at once in a group of one."""
    lab = Lab(nodes=1)
    lab.until(lambda: lab.leader() == 1 and lab[1].commit_index == lab[1].log.last_index)
    lab.nodes[NodeId(1)].speed.hung_until = lab.simulator.now + 0.5
    answers = lab.propose(1, b"x")
    lab.run(0.4)
    assert outcome(answers) == "PENDING"
    lab.until(lambda: outcome(answers) == "COMMITTED")
    lab.kill(1, power=True)
    lab.start(1)
    lab.until(lambda: lab.leader() == 1)
    assert lab.values(1) == [b"x"]


def test_e4_a_leader_whose_disk_hangs_hands_over() -> None:
    """fsync hangs for 20 s, followers are healthy: the bare library neither commits nor steps down."""
    lab = Lab()
    lab.elect(1)
    lab.nodes[NodeId(1)].speed.hung_until = lab.simulator.now + 20.0
    answers = lab.propose(1, b"x")
    lab.until(lambda: lab.leader() in (2, 3), within=4.0)
    lab.until(lambda: bool(answers), within=1.0)
    assert outcome(answers) == "UNKNOWN"
    leader = lab.leader()
    assert leader is not None
    lab.commit(leader, b"y")
    assert lab.values(leader) == [b"x", b"y"]


def test_e6_a_wiped_disk_does_not_vote() -> None:
    """Acknowledged on 1 and 2; 2 loses its disk, 1 is away: 2 and 3 must not elect a leader that lacks it."""
    lab = Lab()
    lab.elect(1)
    lab.kill(3)
    lab.commit(1, b"acknowledged")
    lab.kill(1)
    lab.nodes[NodeId(2)].wipe()
    lab.start(2)
    lab.start(3)
    lab.run(10.0)
    assert lab.leader() is None
    replica = lab.nodes[NodeId(2)].replica
    assert replica is not None and replica.role is Role.UNADMITTED and "wiped" in replica.why
    lab.start(1)
    lab.until(lambda: lab.leader() in (1, 3))
    leader = lab.leader()
    assert leader is not None
    assert b"acknowledged" in lab.values(leader)


def test_q03_a_checkpoint_that_names_other_entries_is_ignored() -> None:
    """A commit index is kept with the term there: after a power cut it must not declare another tail committed."""
    lab = Lab()
    lab.elect(1)
    for n in range(5):
        lab.commit(1, b"%d" % n)
    lab.run(1.0)
    checkpoint = lab[2].log.checkpoint
    lab.kill(2, power=True)
    lab.start(2)
    reread = lab[2].log.checkpoint
    assert reread is not None and reread.commit_term == lab[2].log.term_at(RaftIndex(reread.commit_index))
    assert checkpoint is None or reread.commit_index >= checkpoint.commit_index
    assert lab[2].commit_index <= lab[1].commit_index


def test_h17_a_deposed_leader_confirms_no_read() -> None:
    """Cut off, it believes to lead; a read that must be current is not confirmed."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    answers: list[FluxError | None] = []
    lab[1].read_index(answers.append)
    lab.until(lambda: lab.leader() in (2, 3))
    lab.until(lambda: bool(answers), within=3.0)
    assert isinstance(answers[0], FluxError)


def test_h18_every_proposal_is_answered_when_leadership_is_lost() -> None:
    """In flight: UNKNOWN. Still waiting behind it: REJECTED. Nothing is left without an answer."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    first = lab.propose(1, b"first")
    lab.run(0.01)
    waiting = [lab.propose(1, b"%d" % n) for n in range(3)]
    lab.run(2.5)
    assert outcome(first) == "UNKNOWN"
    assert [outcome(a) for a in waiting] == ["REJECTED"] * 3
    assert lab[1].role is not Role.LEADER


def test_h20_a_node_that_hears_nobody_disturbs_nobody() -> None:
    """A deaf node makes the bare library change leaders 33 times a minute; pre-vote and stickiness keep term and
    leader.
    """
    lab = Lab()
    lab.elect(1)
    term = lab[1].term
    lab.network.silent |= {(NodeId(1), NodeId(3)), (NodeId(2), NodeId(3))}
    lab.run(30.0)
    assert (lab.leader(), lab[1].term) == (1, term)
    lab.heal()
    lab.run(5.0)
    assert (lab.leader(), lab[1].term, lab[3].term) == (1, term, term)


def test_h20_a_partial_partition_keeps_the_leader() -> None:
    """The link between leader and one follower is dead, both reach the third."""
    lab = Lab()
    lab.elect(1)
    term = lab[1].term
    lab.cut((1,), (3,))
    lab.run(30.0)
    assert (lab.leader(), lab[1].term) == (1, term)


def test_h21_a_leader_that_hears_nobody_is_replaced_within_seconds() -> None:
    """It can send but not hear: check-quorum ends its leadership (bare library: 31 s)."""
    lab = Lab()
    lab.elect(1)
    lab.network.silent |= {(NodeId(2), NodeId(1)), (NodeId(3), NodeId(1))}
    lab.until(lambda: lab.leader() in (2, 3), within=6.0)


def test_h22_a_process_that_stood_still_reads_before_it_acts() -> None:
    """Heartbeats wait in its socket: it must not take its own standstill for the leader's."""
    lab = Lab()
    lab.elect(1)
    term, before = lab[1].term, len(lab.network.sent)
    follower = lab.nodes[NodeId(3)].reactor
    assert follower is not None
    follower.paused_until = lab.simulator.now + 5.0
    lab.run(6.0)
    leader = lab.nodes[NodeId(1)].reactor
    assert leader is not None
    leader.paused_until = lab.simulator.now + 0.9
    lab.run(6.0)
    assert (lab.leader(), lab[1].term) == (1, term)
    bodies = {m.WhichOneof("body") for s, _, m in lab.network.sent[before:] if s == 3}
    assert "pre_vote_request" not in bodies


def test_h29_each_entry_is_sent_once_and_never_truncated_at_a_long_round_trip() -> None:
    """RTT of ten ticks: the bare library sends each entry 10.8 times."""
    lab = Lab(nodes=2)
    lab.elect(1)
    lab.network.weather.delay_low = lab.network.weather.delay_high = 0.05
    before = len(lab.network.sent)
    answers = []
    for n in range(100):
        answers.append(lab.propose(1, b"%d" % n))
        lab.run(0.02)
    lab.until(lambda: all(answers))
    frames = [f for s, t, m in lab.network.sent[before:] if t == 2 for f in m.append_entries.frames]
    assert len(frames) == len(set(frames)) > 5
    assert lab.counts["truncations"] == 0


def test_h31_a_divergent_tail_is_replaced_in_a_few_round_trips() -> None:
    """One truncation, found by the conflicting term and not index by index."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    for n in range(30):
        lab.propose(1, b"old-%d" % n)
    lab.until(lambda: lab.leader() in (2, 3))
    leader = lab.leader()
    assert leader is not None
    for n in range(30):
        lab.commit(leader, b"new-%d" % n)
    before = len(lab.network.sent)
    lab.heal()
    lab.until(lambda: lab[1].log.last.checksum == lab[leader].log.last.checksum)
    refusals = [m for s, _, m in lab.network.sent[before:] if s == 1 and is_reply(m) and not m.append_reply.success]
    assert len(refusals) <= 4
    assert lab.counts["truncations"] == 1
    assert not [value for value in lab.values(1) if value.startswith(b"old")]


def test_q01_the_rate_of_commits_is_not_capped_by_a_period() -> None:
    """With one round in flight a send period of 5 ms allows 184 commits a second; here the network and the disk
    decide.
    """
    lab = Lab()
    lab.elect(1)
    lab.network.weather.delay_low = lab.network.weather.delay_high = 0.00001
    for node in lab.nodes.values():
        node.speed.low = node.speed.high = 0.00001
    began = lab.simulator.now
    for n in range(200):
        lab.commit(1, b"%d" % n)
    assert (lab.simulator.now - began) / 200 < 0.0002


def test_transfer_moves_leadership_without_losing_what_is_in_flight() -> None:
    """Proposals in flight are answered COMMITTED before the handover; later ones are REJECTED with a reason."""
    lab = Lab()
    lab.elect(1)
    answers = lab.propose(1, b"in flight")
    lab.run(0.0005)
    assert lab[1].transfer(NodeId(2)) is None
    refused = lab.propose(1, b"too late")
    lab.until(lambda: lab.leader() == 2, within=1.0)
    assert (outcome(answers), outcome(refused)) == ("COMMITTED", "REJECTED")
    assert b"too late" not in lab.values(2)


def test_a_dead_leader_process_is_replaced_without_waiting_for_the_timeout() -> None:
    """Its connection is refused: followers campaign within a fraction of the election timeout."""
    lab = Lab()
    lab.elect(1)
    lab.commit(1, b"x")
    lab.kill(1, gone=True)
    lab.until(lambda: lab.leader() in (2, 3), within=0.9)
    assert lab[lab.leader() or 0].log.last_index >= 3, "it has what was committed, and an entry of its own"


@pytest.mark.parametrize(("dead", "successor"), [(1, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("seed", range(10))
def test_a_dead_leader_is_followed_by_the_next_voter_alone(dead: int, successor: int, seed: int) -> None:
    """Where hundreds of partitions lose their leader at once, each has one campaign: the others wait for it first."""
    lab = Lab(seed=seed)
    lab.elect(dead)
    lab.commit(dead, b"x")
    lab.kill(dead, gone=True)
    lab.until(lambda: lab.leader() is not None, within=0.9)
    assert lab.leader() == successor


def test_without_a_quorum_the_leader_refuses_at_once() -> None:
    """Both followers' processes are gone: REJECTED with the missing nodes, not queued."""
    lab = Lab()
    lab.elect(1)
    lab.kill(2)
    lab.kill(3)
    answers = lab.propose(1, b"x")
    assert isinstance(answers[0], FluxError)
    assert answers[0].reason is Reason.NO_QUORUM
    assert answers[0].metadata == {"replicas": "3", "needed": "2", "missing_nodes": "2,3"}


def test_expected_offset_has_one_winner() -> None:
    """Of several appends with one expected offset exactly one is written, at that offset."""
    lab = Lab()
    lab.elect(1)
    lab.commit(1, b"zero")
    answers = [lab.propose(1, b"%d" % n, expected=1) for n in range(4)]
    lab.until(lambda: all(answers))
    assert sorted(outcome(a) for a in answers) == ["COMMITTED", "REJECTED", "REJECTED", "REJECTED"]
    winner = next(a[0] for a in answers if isinstance(a[0], Committed))
    assert winner.base_offset == 1
    loser = next(a[0] for a in answers if isinstance(a[0], FluxError))
    assert loser.reason is Reason.WRONG_EXPECTED_OFFSET


def test_no_pickle_is_ever_used() -> None:
    """Election, commits, failover and restart with pickle replaced by a trap."""

    def trap(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    with pytest.MonkeyPatch.context() as patch:
        for module in (importlib.import_module("pysyncobj.pickle"), pickle):
            for name in ("loads", "load", "dumps", "dump"):
                patch.setattr(module, name, trap, raising=False)
        lab = Lab()
        lab.elect(1)
        for n in range(30):
            lab.commit(1, b"%d" % n)
        lab.kill(1, power=True)
        lab.until(lambda: lab.leader() in (2, 3))
        leader = lab.leader()
        assert leader is not None
        lab.commit(leader, b"after")
        lab.start(1)
        lab.until(lambda: lab[1].log.last_index == lab[leader].log.last_index)
        assert len(lab.values(1)) == 31
