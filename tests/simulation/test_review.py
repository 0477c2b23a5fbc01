"""A replica, a disk or a caller misbehaves: everybody is answered once, and nobody else suffers."""

from __future__ import annotations

import errno

import pytest

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import GroupId, NodeId, Offset, Term
from fluxd.raft.opening import Opened, open_replica
from fluxd.raft.proposal import Append, AppendResult
from fluxd.raft.spec import Role
from fluxd.storage.votes import COMPACT_BYTES, RECORD_BYTES, VoteFile
from tests.simulation.clients import encode
from tests.simulation.disk import Keep
from tests.simulation.lab import Lab, Message, is_append, is_heartbeat, outcome
from tests.simulation.node import GROUP, VOTES


def _let_fail(lab: Lab) -> None:
    """In these schedules a replica stops itself, which the invariants take for a violation."""
    lab.invariants.after_step = lambda node: None  # type: ignore[method-assign]
    lab.network.on_send = lambda source, target, message: None


def test_a_leader_that_stopped_itself_still_answers() -> None:
    """Its disk is full: what waited is UNKNOWN, what comes later is REJECTED, and it can be described."""
    lab = Lab()
    group = lab.elect(1)
    _let_fail(lab)
    lab.nodes[NodeId(1)].disk.fail_next("append", OSError(errno.ENOSPC, "disk full"), path=".seg")
    first = lab.propose(1, b"first")
    lab.run(0.1)
    assert group.role is Role.FAILED
    assert outcome(first) == "UNKNOWN"
    later = lab.propose(1, b"later")
    assert outcome(later) == "REJECTED"
    assert isinstance(later[0], FluxError) and "disk full" in later[0].message
    assert group.quorum_missing() is None
    reads: list[FluxError | None] = []
    group.read_index(reads.append)
    assert len(reads) == 1 and reads[0] is not None


def _broken(*_: object) -> None:
    raise RuntimeError("a caller's bug")


def test_a_callback_that_raises_keeps_no_other_from_its_answer() -> None:
    """Batches that share one entry, a duplicate, a read, listeners: the replica goes on, and all are told."""
    lab = Lab()
    group = lab.elect(1)
    _let_fail(lab)
    heard: list[int] = []
    reads: list[FluxError | None] = []
    group.on_commit += [_broken, lambda: heard.append(group.commit_index)]
    group.submit(Append(encode([b"broken"]), 1, _broken))
    answers = [lab.propose(1, b"%d" % n) for n in range(3)]
    producer = bytes(16)
    duplicates: list[AppendResult] = []
    for done in (_broken, _broken, duplicates.append):
        group.submit(Append(encode([b"same"], producer), 1, done, producer))
    group.read_index(_broken)
    group.read_index(reads.append)
    lab.run(0.2)
    assert [outcome(a) for a in (*answers, duplicates)] == ["COMMITTED"] * 4
    assert heard and reads == [None]
    assert group.role is Role.LEADER


def test_a_callback_that_raises_when_leadership_ends_keeps_no_other_from_its_answer() -> None:
    """The library is in the middle of its step then; other groups' steps follow."""
    lab = Lab()
    group = lab.elect(1)
    _let_fail(lab)
    group.on_role.insert(0, _broken)
    lab.cut((1,), (2, 3))
    group.submit(Append(encode([b"broken"]), 1, _broken))
    in_flight = lab.propose(1, b"in flight")
    lab.run(0.01)
    group.submit(Append(encode([b"broken, too"]), 1, _broken))
    waiting = lab.propose(1, b"waiting")
    reads: list[FluxError | None] = []
    group.read_index(_broken)
    group.read_index(reads.append)
    lab.run(2.0)
    assert (outcome(in_flight), outcome(waiting)) == ("UNKNOWN", "REJECTED")
    assert len(reads) == 1 and reads[0] is not None
    assert group.role is not Role.FAILED
    lab.heal()
    lab.until(lambda: lab[1].log.last.checksum == lab[2].log.last.checksum)


OTHER = GroupId(bytes(16), 7)


def test_votes_that_could_not_be_written_are_never_taken_for_durable() -> None:
    """The vote file is written anew, a vote is given meanwhile, and adding it to the new file fails (disk full): the
    next sync would cover a file without that vote.
    """
    lab = Lab()
    lab.elect(1)
    node = lab.nodes[NodeId(2)]
    assert node.host is not None
    votes = node.host._votes
    assert votes is not None
    _let_fail(lab)
    for term in range(2 * COMPACT_BYTES // RECORD_BYTES):
        votes.put(OTHER, 0, Term(term), None)
    node.speed.low = node.speed.high = 0.3
    lab.kill(1)
    lab[3].guard.elections.retire()
    lab.until(lambda: bool(votes._since_begin and votes._job and votes._job.replacement))
    node.disk.fail_next("append", OSError(errno.ENOSPC, "disk full"), path=VOTES)
    lab.until(lambda: "disk full" in votes.trouble)
    assert votes.dirty
    lab.until(lambda: not votes.trouble and not votes.dirty)  # I7 watches what node 2 says
    known = votes.get(GROUP, 0)
    node.disk.power_cut(Keep.NOTHING)
    assert known is not None
    assert VoteFile.open(node.disk, VOTES).get(GROUP, 0) == known


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_handover_waits_for_what_was_accepted_before_it(seed: int) -> None:
    """Submitted and not yet proposed: asking the follower first would have it campaign against that entry."""
    lab = Lab(seed=seed)
    group = lab.elect(1)
    lab.run(1.0)
    answers = [lab.propose(1, b"%d" % n) for n in range(3)]
    assert group.transfer(NodeId(2)) is None
    lab.until(lambda: lab.leader() == 2, within=1.0)
    assert [outcome(a) for a in answers] == ["COMMITTED"] * 3


def test_a_slow_link_is_not_filled_with_copies() -> None:
    """A follower that was away catches up over a link where one message takes longer than an election timeout: what is
    on its way is late, not lost. Sent again every second it would queue up faster than it drains.
    """
    lab = Lab()
    lab.elect(1)
    lab.cut((2,), (1, 3))
    for _ in range(12):
        lab.commit(1, bytes(900_000))
    link: list[Message] = []
    sent = [0]

    def carry() -> None:
        deliver = lab.network._nodes[NodeId(2)]
        deliver(NodeId(1), link[0].SerializeToString())
        del link[0]
        if link:
            lab.simulator.at(lab.simulator.now + 2.0, carry)

    def slow(source: NodeId, target: NodeId, message: Message) -> bool:
        if target != 2 or not is_append(message):
            return False
        link.append(message)
        sent[0] += 1
        if len(link) == 1:
            lab.simulator.at(lab.simulator.now + 2.0, carry)
        return True

    lab.network.hold = slow
    lab.heal()
    lab.until(lambda: lab[2].log.last_index == lab[1].log.last_index, within=100.0)
    assert sent[0] <= 4 * 12


def test_under_load_the_next_entry_carries_the_commit_index() -> None:
    """A message of its own for each commit would be a fifth of all messages; when nothing waits it leaves at once."""
    lab = Lab()
    group = lab.elect(1)
    first, before = group.log.last_index, len(lab.network.sent)
    for n in range(200):
        lab.propose(1, b"%d" % n)
        lab.run(0.0005)
    lab.until(lambda: group.commit_index == group.log.last_index)
    sent = [message for source, _, message in lab.network.sent[before:] if source == 1]
    assert group.log.last_index - first > 10
    assert sum(map(is_heartbeat, sent)) * 4 < sum(map(is_append, sent))
    lab.commit(1, b"alone")
    told = lab.simulator.now
    lab.until(lambda: lab[2].commit_index == group.commit_index)
    assert lab.simulator.now - told < 0.01


def test_a_proposal_that_breaks_an_invariant_is_answered_all_the_same() -> None:
    """The replica stops itself in the middle of proposing: the batches are in neither queue then."""
    lab = Lab()
    group = lab.elect(1)
    _let_fail(lab)
    answers = [lab.propose(1, b"%d" % n) for n in range(2)]
    group._queue[1].base_offset = Offset(99)
    lab.run(0.1)
    assert group.role is Role.FAILED
    assert [outcome(a) for a in answers] == ["UNKNOWN"] * 2


def test_a_disk_that_fails_while_the_node_stops_keeps_no_group_open() -> None:
    """A clean stop syncs what it can; what it cannot was never acknowledged."""
    lab = Lab()
    group = lab.elect(1)
    _let_fail(lab)
    node = lab.nodes[NodeId(1)]
    assert node.host is not None
    answers = lab.propose(1, b"x")
    group.step()
    assert group.log.dirty
    node.disk.fail_next("sync", OSError(errno.EIO, "bad disk"))
    node.host.stop()
    assert not node.host.groups
    assert outcome(answers) == "UNKNOWN"


def test_a_stopping_node_hands_over_even_if_the_first_attempt_was_too_early() -> None:
    """The followers' disks hang for a bit longer than an attempt lasts: within the time it has, it tries again."""
    lab = Lab()
    lab.elect(1)
    for follower in (2, 3):
        lab.nodes[NodeId(follower)].speed.hung_until = lab.simulator.now + 1.2
    answers = lab.propose(1, b"x")
    lab.run(0.01)
    host = lab.nodes[NodeId(1)].host
    assert host is not None
    ended: list[float] = []
    began = lab.simulator.now
    host.hand_over(lambda: ended.append(lab.simulator.now - began))
    lab.until(lambda: bool(ended))
    assert ended[0] < limits.ELECTION_TIMEOUT_MAX
    assert lab[1].role is not Role.LEADER
    assert outcome(answers) == "COMMITTED"


def test_a_follower_far_behind_in_tiny_entries_does_not_hold_up_the_loop() -> None:
    """Each entry costs time however small it is: what is sent in one step is bounded in entries, not only in bytes."""
    lab = Lab()
    group = lab.elect(1)
    lab.network.weather.delay_low = lab.network.weather.delay_high = 0.0001
    lab.cut((2,), (1, 3))
    while group.log.last_index < 300:
        lab.commit(1, b"tiny")
    lab.network.weather.delay_low = lab.network.weather.delay_high = 0.01
    before = len(lab.network.sent)
    lab.heal()
    lab.until(lambda: lab[2].log.last_index == group.log.last_index)
    appends = [message.append_entries for _, target, message in lab.network.sent[before:] if target == 2]
    assert max(len(append.frames) for append in appends) <= 128
    frames = [frame for append in appends for frame in append.frames]
    assert len(frames) == len(set(frames)) > 250


def test_the_largest_entry_is_no_transmission() -> None:
    """The library would pickle an entry that is larger than its batch."""
    lab = Lab()
    group = lab.elect(1)
    answers = lab.propose(1, bytes(limits.BATCH_BYTES_MAX))
    lab.until(lambda: bool(answers))
    assert outcome(answers) == "COMMITTED"
    assert len(group.journal[-1][0]) > limits.BATCH_BYTES_MAX


def test_a_replica_that_is_closed_and_opened_again_waits_for_its_vote() -> None:
    """In the same process, with its last vote not yet synced: what it says of that term could be forgotten."""
    lab = Lab()
    lab.elect(1)
    node = lab.nodes[NodeId(2)]
    host = node.host
    assert host is not None
    spec = lab[2].spec
    node.speed.hung_until = lab.simulator.now + 1.0
    lab.cut((2,), (1, 3))
    lab[2].guard.adopt_term(NodeId(3), 7)
    host.wake(lab[2])
    lab.run(0.01)
    host.close(spec.group_id)
    host.open(spec)
    assert lab[2].term == 7
    assert not lab[2].guard.votes_durable()
    lab.heal()
    lab.run(0.9)  # I7 watches what node 2 says
    lab.until(lambda: lab[2].guard.votes_durable() and lab.leader() is not None)


def test_leadership_is_not_offered_to_a_node_that_cannot_be_reached() -> None:
    """Nothing is accepted while a handover is tried, so a hopeless one must not begin."""
    lab = Lab()
    group = lab.elect(1)
    lab.kill(2)
    lab.run(0.1)
    refused = group.transfer(NodeId(2))
    assert refused is not None and refused.reason is Reason.REPLICA_OFFLINE and "node 2" in refused.message
    answers = lab.propose(1, b"x")
    lab.until(lambda: bool(answers), within=0.5)
    assert outcome(answers) == "COMMITTED"


def test_a_replica_that_cannot_begin_stays_out_and_takes_nobody_along() -> None:
    """Its files vanish between the opening of its log and its first step (chaos seed 103: a topic's deletion)."""
    lab = Lab()
    lab.elect(1)
    node = lab.nodes[NodeId(2)]
    spec = lab[2].spec
    lab.kill(2)
    lab.start(2)
    host = node.host
    assert host is not None
    host.close(spec.group_id)
    opened = open_replica(node.disk, spec, has_voted=True)
    assert isinstance(opened, Opened)
    node.disk.remove_tree(f"partitions/{spec.group_id.directory_name}")
    replica = host._adopt(spec, opened)
    assert replica.role is Role.UNADMITTED
    assert "could not be started" in replica.why and "FileNotFoundError" in replica.why
