"""What the guard keeps apart: terms, generations, members, streams. Each test is the one that fails when its fence is
taken out (`mutants.py`)."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.types import NodeId
from fluxd.raft.spec import Role
from tests.simulation.lab import Lab, Message, is_append, is_heartbeat, is_reply, outcome

BIG = b"." * 1_000_000


def _say(lab: Lab, source: int, target: int, message: Message) -> None:
    host = lab.nodes[NodeId(target)].host
    assert host is not None
    host.receive(NodeId(source), [message])


def _is_vote(source: NodeId, target: NodeId, message: Message) -> bool:
    return message.WhichOneof("body") == "vote_reply"


def _votes(lab: Lab, term: int) -> list[tuple[NodeId, NodeId, Message]]:
    return [held for held in lab.network.held if held[2].term == term]


def test_a_vote_that_arrives_three_times_counts_once() -> None:
    """Two of five elect nobody, however often they say it; the third does."""
    lab = Lab(nodes=5)
    lab.let_campaign(1)
    lab.network.hold = _is_vote
    lab.until(lambda: len(lab.network.held) == 4)
    first, second = lab.network.held[:2]
    lab.network.release([first, first, first])
    assert lab.leader() is None
    lab.network.release([second])
    assert lab.leader() == 1


def test_a_vote_of_an_earlier_term_elects_nobody() -> None:
    """Late votes of the first campaign arrive in the second one."""
    lab = Lab(nodes=5)
    lab.let_campaign(1)
    lab.network.hold = _is_vote
    lab.until(lambda: len(_votes(lab, 1)) == 4)
    lab.until(lambda: len(_votes(lab, 2)) == 4)
    assert (lab.leader(), lab[1].term) == (None, 2)
    lab.network.release(_votes(lab, 1))
    assert lab.leader() is None
    lab.network.release(_votes(lab, 2)[:2])
    assert lab.leader() == 1


def test_a_message_of_another_generation_is_not_heard() -> None:
    """A member of an older or newer set of replicas speaks of other terms."""
    lab = Lab()
    lab.elect(1)
    message = lab[2].guard.outbox.message()
    message.generation, message.term = 1, 99
    message.higher_term.SetInParent()
    _say(lab, 2, 1, message)
    assert (lab[1].role, lab[1].term) == (Role.LEADER, 1)
    assert lab[1].guard.counters["stranger"] == 1


def test_a_stranger_is_not_heard() -> None:
    """Not a member, whatever term it speaks of."""
    lab = Lab()
    lab.elect(1)
    message = lab[2].guard.outbox.message()
    message.term = 99
    for body in (message.higher_term, message.append_reply, message.vote_request):
        body.SetInParent()
        _say(lab, 99, 1, message)
    lab.run(0.1)
    assert (lab[1].role, lab[1].term) == (Role.LEADER, 1)
    assert lab[1].guard.counters["stranger"] == 3


def test_an_acknowledgement_of_an_earlier_leadership_commits_nothing() -> None:
    """Node 2 acknowledged two entries of node 1's first leadership; another leader replaced them. When node 1 leads
    again, at the same indexes, that acknowledgement arrives at last: with it a majority seems to have the new entry.
    """
    lab = Lab(nodes=5)
    lab.elect(3)
    lab.network.hold = lambda source, target, message: (
        (source == 1 and target != 2 and is_append(message)) or ((source, target) == (2, 1) and is_reply(message))
    )
    lab.network.weather.delay_low = lab.network.weather.delay_high = 0.001  # in order
    lab[3].transfer(NodeId(1))
    lab.until(lambda: lab[1].role is Role.LEADER)
    lab.propose(1, b"x")
    lab.until(lambda: lab[2].log.last_index == lab[2].log.synced_index == lab[1].log.last_index > 3)
    lab.run(0.1)
    stuck = [held for held in lab.network.held if held[0] == 2]
    acknowledged = max(message.append_reply.durable_index for _, _, message in stuck)
    lab.network.held.clear()
    lab.cut((1, 2), (3, 4, 5))
    lab.until(lambda: lab.leader() in (3, 4, 5))
    lab.heal()
    lab.cut((2,), (1, 3, 4, 5))
    leader = lab.leader()
    assert leader is not None
    lab.until(lambda: lab[1].log.last.checksum == lab[leader].log.last.checksum)
    lab.run(0.5)
    lab.network.hold = lambda source, target, message: source == 1 and target in (4, 5) and is_append(message)
    lab[leader].transfer(NodeId(1))
    lab.until(lambda: lab[1].role is Role.LEADER)
    assert lab[1].log.last_index == acknowledged
    lab.run(0.1)
    lab.network.release(stuck)
    lab.run(0.1)
    assert lab[1].commit_index < acknowledged
    lab.network.hold = lambda source, target, message: False
    lab.heal()
    lab.until(lambda: lab.leader() is not None and len({lab[n].log.last.checksum for n in range(1, 6)}) == 1)


def test_a_second_refusal_for_one_gap_restarts_nothing() -> None:
    """Both refusals were on their way when the first one was honoured."""
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
    refusals = [held for held in lab.network.held if not held[2].append_reply.success]
    assert len(refusals) >= 2
    lab.network.held.clear()
    before = len(lab.network.sent)
    for refusal in refusals:
        lab.network.release([refusal])
        lab.run(0.02)
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: lab[2].log.last_index == lab[3].log.last_index)
    frames = [f for s, t, m in lab.network.sent[before:] if t == 2 and s == 3 for f in m.append_entries.frames]
    assert len(frames) == len(set(frames)) > 0


def test_a_higher_term_deposes_and_takes_no_vote() -> None:
    """The leader steps down through the library's front door, and its vote in that term is still free."""
    lab = Lab()
    lab.elect(1)
    message = lab[2].guard.outbox.message()
    message.term = 77
    message.higher_term.SetInParent()
    _say(lab, 2, 1, message)
    assert (lab[1].role, lab[1].term) == (Role.FOLLOWER, 77)
    assert lab[1].journal.getVotedForNodeId() is None


def test_a_member_with_a_higher_term_comes_back_into_the_group() -> None:
    """It was to take over and was cut off: its refusals make the leader campaign anew; neither ignores the other."""
    lab = Lab()
    lab.elect(1)
    lab.network.hold = lambda source, target, message: message.WhichOneof("body") == "vote_request"
    lab[1].transfer(NodeId(3))
    lab.until(lambda: lab[3].term == 2)
    lab.network.held.clear()
    lab.cut((3,), (1, 2))
    lab.network.hold = lambda source, target, message: False
    lab.until(lambda: lab.leader() == 1 and not lab[1].guard.leading.handing_over)
    lab.commit(1, b"without 3")
    lab.heal()
    lab.until(lambda: lab.leader() is not None and len({lab[n].log.last.checksum for n in (1, 2, 3)}) == 1)
    leader = lab.leader()
    assert leader is not None
    lab.commit(leader, b"with 3")


def test_late_acknowledgements_of_pipelined_entries_wind_nothing_back() -> None:
    """One follower's answers are slow, the other's make the group go on: each entry is sent to it once."""
    lab = Lab()
    lab.elect(1)
    lab.run(0.1)
    lab.network.hold = lambda source, target, message: (source, target) == (2, 1) and is_reply(message)
    before = len(lab.network.sent)
    for n in range(4):
        lab.commit(1, b"%d" % n)
    lab.run(0.1)
    while lab.network.held:
        lab.network.release([lab.network.held.pop(0)])
        lab.run(0.02)
    frames = [f for s, t, m in lab.network.sent[before:] if t == 2 and s == 1 for f in m.append_entries.frames]
    assert len(frames) == len(set(frames)) == 4
    assert lab.counts["truncations"] == 0


def test_a_heartbeat_does_not_overtake_the_entries_on_the_other_stream() -> None:
    """Data is slow on its way to one follower: heartbeats say nothing of it, so nothing is refused nor sent again."""
    lab = Lab()
    lab.elect(1)
    lab.network.hold = lambda source, target, message: target == 2 and is_append(message)
    before = len(lab.network.sent)
    for n in range(3):
        lab.commit(1, b"%d" % n)
    lab.run(limits.ELECTION_TIMEOUT_MIN * 0.6)
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: lab[2].log.last_index == lab[1].log.last_index)
    assert any(target == 2 and is_heartbeat(message) for _, target, message in lab.network.sent[before:])
    assert not [m for s, _, m in lab.network.sent[before:] if s == 2 and is_reply(m) and not m.append_reply.success]
    frames = [f for s, t, m in lab.network.sent[before:] if t == 2 and s == 1 for f in m.append_entries.frames]
    assert len(frames) == len(set(frames)) == 3


def test_followers_hear_of_a_commit_at_once() -> None:
    """They serve readers, who must not wait for the next heartbeat."""
    lab = Lab()
    lab.elect(1)
    lab.commit(1, b"x")
    lab.run(0.02)
    assert [lab[node].high_watermark for node in (2, 3)] == [1, 1]


def test_entries_that_were_lost_on_the_way_are_sent_again() -> None:
    """The link stands and nobody reports a loss."""
    lab = Lab()
    lab.elect(1)
    lab.network.hold = lambda source, target, message: is_append(message)
    answers = lab.propose(1, b"x")
    lab.run(0.1)
    lab.network.held.clear()
    lab.network.hold = lambda source, target, message: False
    lab.until(lambda: outcome(answers) == "COMMITTED", within=2 * limits.ELECTION_TIMEOUT_MIN)
    assert lab[1].term == 1, "by the same leader"


def test_what_was_on_a_broken_link_is_sent_again_with_the_next_answer() -> None:
    """The loss is known: nobody waits for patience to end."""
    lab = Lab()
    lab.elect(1)
    lab.kill(3, gone=False)
    lab.network.hold = lambda source, target, message: is_append(message)
    answers = lab.propose(1, b"x")
    lab.run(0.1)
    host = lab.nodes[NodeId(1)].host
    assert host is not None
    host.peer_down(NodeId(2), gone=False)
    lab.network.held.clear()
    lab.network.hold = lambda source, target, message: False
    host.peer_up(NodeId(2))
    lab.until(lambda: outcome(answers) == "COMMITTED", within=2 * limits.HEARTBEAT_INTERVAL)


def test_what_is_on_its_way_to_a_silent_follower_is_bounded() -> None:
    """It receives and never answers: the others go on, and the leader sends it no more than the window."""
    lab = Lab()
    lab.elect(1)
    lab.network.silent.add((NodeId(3), NodeId(1)))
    before = len(lab.network.sent)
    for n in range(3 * limits.REPLICATION_WINDOW_BYTES // len(BIG)):
        lab.commit(1, b"%d" % n + BIG)
    sent = sum(len(f) for s, t, m in lab.network.sent[before:] if t == 3 and s == 1 for f in m.append_entries.frames)
    assert limits.REPLICATION_WINDOW_BYTES / 2 < sent <= limits.REPLICATION_WINDOW_BYTES + limits.ENTRY_FRAME_BYTES_MAX
    lab.heal()
    lab.until(lambda: lab[3].log.last_index == lab[1].log.last_index)


def _cut_off_with_a_tail(lab: Lab) -> int:
    """Node 1 has entries that nobody else has, at indexes where the next leader commits others."""
    lab.elect(1)
    lab.cut((1,), (2, 3))
    lab.propose(1, b"old")
    lab.until(lambda: lab.leader() in (2, 3))
    leader = lab.leader()
    assert leader is not None
    for n in range(5):
        lab.commit(leader, b"new-%d" % n)
    return leader


def test_a_heartbeat_commits_nothing_behind_what_it_verified() -> None:
    """The next leader's heartbeat names an entry that both have and a commit index far behind it: the tail that stands
    there must not be committed.
    """
    lab = Lab()
    leader = _cut_off_with_a_tail(lab)
    lab.network.hold = lambda source, target, message: target == 1 and is_append(message)
    committed = lab[1].commit_index
    lab.heal()
    lab.until(lambda: lab[1].term == lab[leader].term and lab[1].guard.following.verified > 0)
    assert lab[1].commit_index == committed < lab[leader].commit_index
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: lab[1].commit_index == lab[leader].commit_index)
    assert b"old" not in lab.values(1)


def test_entries_that_are_there_already_truncate_nothing_behind_them() -> None:
    """The first of several pipelined messages arrives a second time, after the last: the bare library truncates what
    it has acknowledged.
    """
    lab = Lab()
    lab.elect(1)
    seen = len(lab.network.sent)
    for n in range(4):
        lab.commit(1, b"%d" % n)
    lab.until(lambda: lab[2].log.last_index == lab[1].log.last_index)
    lab.run(0.5)
    first = next(m for s, t, m in lab.network.sent[seen:] if t == 2 and is_append(m))
    last = lab[2].log.last_index
    lab[2].guard.following._last_sequence = {
        False: 0,
        True: 0,
    }  # the comparison with the log is to protect, not a fence
    _say(lab, 1, 2, first)
    assert lab[2].log.last_index == last
    assert lab.counts["truncations"] == 0
    assert lab[2].role is Role.FOLLOWER, lab[2].why
