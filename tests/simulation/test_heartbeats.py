"""One heartbeat for all groups that rest (`heartbeats.py`): what a row may stand for, and what it may not."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from fluxd.core import limits
from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.heartbeats import Heartbeats
from fluxd.raft.progress import Progress
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2
from tests.simulation.lab import Lab, Message, is_append, is_list, outcome

INTERVAL, TIMEOUT = limits.HEARTBEAT_INTERVAL, limits.ELECTION_TIMEOUT_MIN


def resting(nodes: int = 3) -> Lab:
    """Node 1 leads, and rests towards all others."""
    lab = Lab(nodes)
    lab.elect(1)
    lab.commit(1, b"x")
    until_at_rest(lab)
    return lab


def until_at_rest(lab: Lab, *followers: int) -> None:
    """Listed towards these followers (all of them), and confirmed."""
    peers = followers or tuple(node for node in lab.nodes if node != 1)
    lab.until(lambda: all(progress(lab, peer).rest is not None for peer in peers))
    lab.run(2 * INTERVAL)
    assert all(progress(lab, peer).rest is not None for peer in peers)


def progress(lab: Lab, follower: int) -> Progress:
    """What node 1 knows of a follower."""
    return lab[1].guard.leading.progress[NodeId(follower)]


def heartbeats(lab: Lab, number: int) -> Heartbeats:
    """Of a node."""
    host = lab.nodes[NodeId(number)].host
    assert host is not None
    return host.heartbeats


def heard_at(lab: Lab, number: int) -> float:
    """When a follower last heard of its leader."""
    guard = lab[number].guard
    return guard.confirmed.heard_at if guard.confirmed else guard.elections._heard_at


def bodies(lab: Lab, since: int) -> set[str | None]:
    """Kinds of messages sent since there were so many."""
    return {message.WhichOneof("body") for _, _, message in lab.network.sent[since:]}


def last_list(lab: Lab, target: int) -> Message:
    """A copy of the last one that node 1 sent to a node."""
    lists = [m for source, to, m in lab.network.sent if (source, to) == (1, target) and is_list(m)]
    return Message.FromString(lists[-1].SerializeToString())


def is_list_reply(message: Message) -> bool:
    """An answer to a list."""
    return message.WhichOneof("body") == "heartbeat_list_reply"


def test_a_group_that_rests_is_not_stepped_and_says_nothing_of_its_own() -> None:
    """It costs its row in the lists; nobody campaigns, and the leader knows its followers to be there."""
    lab = resting()
    steps = []
    for number in lab.nodes:
        group = lab[number]
        group.step = lambda number=number: steps.append(number)  # type: ignore[method-assign, misc]
    before = len(lab.network.sent)
    lab.run(20 * TIMEOUT)
    assert steps == []
    assert bodies(lab, before) == {"heartbeat_list", "heartbeat_list_reply"}
    assert lab[1].quorum_missing() is None
    assert [follower.in_sync for follower in lab[1].leader_status().followers] == [True, True]
    assert all(follower.last_heard_ms < 2_000 * INTERVAL for follower in lab[1].leader_status().followers)


def test_a_group_with_a_replica_on_a_dead_node_rests_with_the_others() -> None:
    """It is neither stepped nor sends anything to that node, until it is there again: then it is sent what it lacks."""
    lab = resting()
    lab.kill(3)
    lab.commit(1, b"y")
    until_at_rest(lab, 2)
    steps = []
    step = lab[1].step
    lab[1].step = lambda: steps.append(1)  # type: ignore[method-assign]
    lab.run(20 * TIMEOUT)
    assert steps == []
    assert (lab[1].role, lab[1].term) == (Role.LEADER, 1)
    lab[1].step = step  # type: ignore[method-assign]
    lab.start(3)
    lab.until(lambda: lab.values(3) == [b"x", b"y"])
    until_at_rest(lab)


def test_a_resting_leader_with_a_dead_follower_steps_down_when_the_other_one_is_cut_off() -> None:
    """Nothing rests then: it is stepped, and notices that it is alone."""
    for cut in (True, False):
        lab = resting()
        lab.kill(3)
        until_at_rest(lab, 2)
        lab.run(5)
        if cut:
            lab.cut((1,), (2,))
        else:
            lab.kill(2)
        lab.run(TIMEOUT + 2 * INTERVAL)
        assert lab[1].role is Role.FOLLOWER


def test_the_first_proposal_after_a_long_rest_finds_its_leader_in_office() -> None:
    """The library heard of no reply for a minute: it is told of the lists before it is ticked."""
    lab = resting()
    lab.run(60)
    answers = lab.propose(1, b"after a rest")
    lab.until(lambda: bool(answers), within=0.2)
    assert (outcome(answers), lab[1].term, lab.leader()) == ("COMMITTED", 1, 1)
    until_at_rest(lab)


def test_a_read_after_a_rest_is_confirmed_by_answers_to_what_was_sent_after_it() -> None:
    """An answer to a list says nothing of who leads after the read was asked for."""
    lab = resting()
    lab.run(5)
    lab.network.hold = lambda source, target, message: message.WhichOneof("body") == "append_reply"
    done: list[object] = []
    lab[1].read_index(done.append)
    lab.run(2 * INTERVAL)
    assert done == []
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: done == [None])


def test_a_resting_leader_that_is_cut_off_steps_down_as_fast_as_a_busy_one() -> None:
    """Check-quorum: what lists have told is dated when it was told."""
    lab = resting()
    lab.run(5)
    lab.cut((1,), (2, 3))
    lab.run(TIMEOUT + 2 * INTERVAL)
    assert lab[1].role is Role.FOLLOWER
    lab.until(lambda: lab.leader() in (2, 3), within=2 * limits.ELECTION_TIMEOUT_MAX)


def test_an_answer_that_is_late_is_dated_when_it_came() -> None:
    """Ticked just before the timeout, a leader is not given another one."""
    lab = resting()
    lab.cut((1,), (2, 3))
    lab.run(0.5)  # of the second after which it is alone
    lab[1].read_index(lambda error: None)
    lab.run(TIMEOUT - 0.5 + INTERVAL)
    assert lab[1].role is Role.FOLLOWER


def test_followers_of_a_dead_leader_at_rest_campaign_in_time() -> None:
    """Nobody tells them that its process is gone."""
    lab = resting()
    lab.run(5)
    lab.kill(1, gone=False)
    lab.until(lambda: lab.leader() in (2, 3), within=limits.ELECTION_TIMEOUT_MAX + TIMEOUT)
    assert lab[lab.leader() or 0].term > 1


def test_a_lost_list_changes_nothing() -> None:
    """The next one comes in time."""
    lab = resting()
    for _ in range(5):
        lab.network.hold = lambda source, target, message: is_list(message)
        lab.until(lambda: len(lab.network.held) >= 2)
        lab.network.held = []
        lab.network.hold = lambda source, target, message: False
        lab.run(2 * INTERVAL)
    assert (lab.leader(), lab[1].term) == (1, 1)
    assert progress(lab, 2).rest is not None


def test_when_lists_are_not_answered_each_group_sends_its_own_heartbeats() -> None:
    """As to a node that knows no lists."""
    lab = Lab()
    lab.network.hold = lambda source, target, message: is_list(message)
    lab.elect(1)
    before = len(lab.network.sent)
    lab.run(10 * TIMEOUT)
    assert (lab.leader(), lab[1].term) == (1, 1)
    assert progress(lab, 2).rest is None and progress(lab, 3).rest is None
    assert "append_entries" in bodies(lab, before)
    assert not last_list(lab, 2).heartbeat_list.partitions
    lab.network.hold = lambda source, target, message: False
    until_at_rest(lab)


def test_when_answers_stop_groups_with_a_majority_go_on_resting() -> None:
    """A node that is slow to answer is not sent many messages instead of one; the leader knows that it is silent."""
    lab = resting()
    lab.network.hold = lambda source, target, message: source == 2 and is_list_reply(message)
    before = len(lab.network.sent)
    lab.run(5 * TIMEOUT)
    assert heartbeats(lab, 1).counters["silent_rounds"] > 5
    assert bodies(lab, before) == {"heartbeat_list", "heartbeat_list_reply"}
    assert (lab.leader(), lab[1].term) == (1, 1)
    status = {follower.node_id: follower for follower in lab[1].leader_status().followers}
    assert (status[2].in_sync, status[3].in_sync) == (False, True)
    lab.network.hold = lambda source, target, message: False
    lab.run(2 * INTERVAL)
    assert [follower.in_sync for follower in lab[1].leader_status().followers] == [True, True]


def told_followers(lab: Lab) -> list[peer_pb2.FollowerStatus]:
    """What node 1 tells other nodes of the followers."""
    return list(peer_pb2.LeaderStatus.FromString(lab[1].encoded_status()).followers)


def test_what_a_resting_leader_tells_does_not_change_and_is_not_worked_out_again() -> None:
    """Each time anew it would be most of what idle partitions cost. When followers were heard is told for all of them
    together, by the answers to lists."""
    lab = resting()
    told = {id(lab[1].encoded_status())}
    for _ in range(3):
        lab.run(0.1 * TIMEOUT)
        told.add(id(lab[1].encoded_status()))
    assert len(told) == 1
    before = lab[1].encoded_status()
    lab.run(20 * TIMEOUT)
    assert lab[1].encoded_status() == before
    assert [(f.in_sync, f.rests, f.HasField("last_heard_ms")) for f in told_followers(lab)] == [(True, True, False)] * 2
    now, answered = lab[1].guard.now(), heartbeats(lab, 1).answered()
    assert answered.keys() == {2, 3}
    assert all(now - moment < 2 * INTERVAL for moment in answered.values())


def test_a_resting_leader_tells_at_once_of_records_and_in_time_of_a_follower_that_is_silent() -> None:
    """In sync ends with time alone: nobody steps the group then."""
    lab = resting()
    before = lab[1].encoded_status()
    lab.commit(1, b"y")
    assert peer_pb2.LeaderStatus.FromString(lab[1].encoded_status()).high_watermark == lab[1].high_watermark
    assert lab[1].encoded_status() != before
    until_at_rest(lab)
    assert [follower.in_sync for follower in told_followers(lab)] == [True, True]
    lab.network.hold = lambda source, target, message: source == 2 and is_list_reply(message)
    lab.run(limits.IN_SYNC_TIMEOUT + 2 * INTERVAL)
    assert [(follower.in_sync, follower.rests) for follower in told_followers(lab)] == [(False, True), (True, True)]
    lab.network.hold = lambda source, target, message: False
    lab.run(2 * INTERVAL)
    assert [follower.in_sync for follower in told_followers(lab)] == [True, True]


def test_a_replica_at_rest_is_small() -> None:
    """Nodes have thousands: neither a dictionary of dozens of attributes for each, nor settings that all have in
    common, nor empty deques."""
    lab = resting()
    for number in lab.nodes:
        group = lab[number]
        conf = group._raft._SyncObj__conf  # type: ignore[attr-defined]
        assert vars(conf).keys() == {"journalFile", "onStateChanged"}
        assert not vars(group)
        assert all(name.startswith("_on") for name in vars(group.guard)), "what the library's own Transport has"
        held = [*vars(group.guard.outbox).values(), *vars(group.guard.leading).values()]
        assert not [value for value in held if isinstance(value, deque)]


def test_stale_and_repeated_lists_are_not_answered() -> None:
    """A list of a moment that is past must not keep followers waiting for a leader, nor be confirmed."""
    lab = resting()
    old = last_list(lab, 2)
    lab.run(2 * INTERVAL)
    before = len(lab.network.sent)
    before_heard_at = heard_at(lab, 2)
    lab.network.release([(NodeId(1), NodeId(2), old), (NodeId(1), NodeId(2), last_list(lab, 2))])
    assert heartbeats(lab, 2).counters["stale_list"] == 2
    assert (lab.network.sent[before:], heard_at(lab, 2)) == ([], before_heard_at)


def test_a_list_of_an_earlier_process_is_stale() -> None:
    """Its rounds are counted anew in each process."""
    lab = resting()
    old = last_list(lab, 2)
    old.heartbeat_list.round += 1_000
    lab.kill(1)
    lab.start(1)
    lab.until(lambda: lab.leader() is not None)
    lab.elect(1)
    until_at_rest(lab)
    before = len(lab.network.sent)
    lab.network.release([(NodeId(1), NodeId(2), old)])
    assert lab.network.sent[before:] == []
    assert heartbeats(lab, 2).counters["stale_list"] == 1


def test_an_answer_to_an_earlier_process_does_not_count() -> None:
    """Nor one to a round that is not waited for any more."""
    lab = resting()
    lab.network.hold = lambda source, target, message: is_list_reply(message)
    lab.until(lambda: bool(lab.network.held))
    lab.network.hold = lambda source, target, message: False
    kept = lab.network.held[0]
    lab.network.release()
    heard_at = progress(lab, int(kept[0])).heard_at
    lab.run(0.01)
    lab.network.release([kept])
    assert progress(lab, int(kept[0])).heard_at == heard_at
    assert heartbeats(lab, 1).counters["stale_list_reply"] == 1
    kept[2].heartbeat_list_reply.process_nonce += 1
    kept[2].heartbeat_list_reply.round += 1
    lab.network.release([kept])
    assert heartbeats(lab, 1).counters["foreign_list_reply"] == 1


def test_an_answer_does_not_count_for_a_group_that_was_listed_later() -> None:
    """It was busy when that list was sent: nobody has looked at it since."""
    lab = resting()
    lab.network.hold = lambda source, target, message: is_list_reply(message) and source == 2
    lab.until(lambda: bool(lab.network.held))
    lab.commit(1, b"y")
    lab.until(lambda: progress(lab, 2).rest is not None)
    heard_at = progress(lab, 2).heard_at
    lab.run(0.01)
    lab.network.hold = lambda source, target, message: False
    lab.network.release(lab.network.held[:1])
    assert progress(lab, 2).rest is not None
    assert progress(lab, 2).heard_at == heard_at


@pytest.mark.parametrize("power", [False, True])
def test_a_follower_that_was_started_again_is_an_exception(power: bool) -> None:
    """It has verified nothing of this leader's log; what its disk has lost, it lacks."""
    lab = resting()
    lab.network.hold = lambda source, target, message: target == 2 and not is_list(message)
    lab.kill(2, power=power, gone=False)
    lab.start(2)
    before = len(lab.network.sent)
    lab.until(lambda: any(source == 2 and is_list_reply(m) for source, _, m in lab.network.sent[before:]))
    reply = next(m for source, _, m in lab.network.sent[before:] if source == 2 and is_list_reply(m))
    assert list(reply.heartbeat_list_reply.exceptions) in ([0], [])
    assert heartbeats(lab, 2).counters["rows_refused"] == heartbeats(lab, 2).counters["rows_checked"]
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    until_at_rest(lab)
    assert (lab.leader(), lab[1].term) == (1, 1)


def test_a_wiped_follower_is_an_exception_until_it_was_copied() -> None:
    """Its node lives and answers lists, its replica takes no part."""
    lab = resting()
    victim = lab.nodes[NodeId(3)]
    victim.wipe()
    lab.network.hold = lambda source, target, message: message.WhichOneof("body") == "copy_request"
    lab.start(3)
    lab.network.release([(NodeId(1), NodeId(3), _fresh(last_list(lab, 3)))])
    assert heartbeats(lab, 3).counters["rows_refused"] == heartbeats(lab, 3).counters["rows_checked"] == 1
    lab.run(3 * TIMEOUT)
    assert progress(lab, 3).rest is None
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    until_at_rest(lab)


def _fresh(message: Message) -> Message:
    message.heartbeat_list.round += 1
    return message


def _wrong(message: Message, column: str, change: int) -> Message:
    values = getattr(_fresh(message).heartbeat_list, column)
    values[0] += change
    return message


@pytest.mark.parametrize(
    ("column", "change"),
    [("terms", 1), ("terms", -1), ("generations", 1), ("last_indexes", 1), ("last_indexes", -1), ("partitions", 1)],
)
def test_a_row_must_fit_exactly(column: str, change: int) -> None:
    """Another term, generation, log end or group: an exception, and nothing else happens here."""
    lab = resting()
    before_heard_at, group = heard_at(lab, 2), lab[2]
    lab.run(0.01)
    before = (group.term, group.commit_index, group.log.last_index)
    sent = len(lab.network.sent)
    lab.network.release([(NodeId(1), NodeId(2), _wrong(last_list(lab, 2), column, change))])
    ((_, _, reply),) = lab.network.sent[sent:]
    assert list(reply.heartbeat_list_reply.exceptions) == [0]
    assert (group.term, group.commit_index, group.log.last_index) == before
    assert heard_at(lab, 2) == before_heard_at


def test_a_row_of_another_node_is_an_exception() -> None:
    """It follows somebody else in that term."""
    lab = resting()
    sent = len(lab.network.sent)
    lab.network.release([(NodeId(3), NodeId(2), _fresh(last_list(lab, 2)))])
    ((_, _, reply),) = lab.network.sent[sent:]
    assert list(reply.heartbeat_list_reply.exceptions) == [0]


def test_a_follower_whose_term_is_not_on_its_disk_confirms_nothing() -> None:
    """Nothing that reflects a term leaves before it is durable (I7)."""
    lab = resting()
    group = lab[2]
    group.guard.votes_durable = lambda: False  # type: ignore[method-assign]
    group.on_votes_synced()
    lab.until(lambda: progress(lab, 2).rest is None)
    assert progress(lab, 3).rest is not None


def test_a_follower_with_something_unsynced_confirms_nothing() -> None:
    """As far as its disk is concerned it lacks the entry."""
    lab = resting()
    log = lab[2].log
    log._sync.mark = replace(log._sync.mark, index=RaftIndex(log.last_index - 1))
    lab[2].on_log_synced()
    sent = len(lab.network.sent)
    lab.network.release([(NodeId(1), NodeId(2), _fresh(last_list(lab, 2)))])
    assert list(lab.network.sent[sent][2].heartbeat_list_reply.exceptions) == [0]


def test_a_leader_does_not_list_what_is_under_way() -> None:
    """An entry that one follower lacks: towards that one there is no rest, towards the other there is."""
    lab = resting()
    lab.network.hold = lambda source, target, message: target == 2 and is_append(message)
    lab.commit(1, b"y")
    until_at_rest(lab, 3)
    lab.run(0.5)
    assert progress(lab, 2).rest is None
    listed = last_list(lab, 2)
    assert not listed.heartbeat_list.partitions


def test_a_follower_that_may_leave_is_not_listed() -> None:
    """It is about to take itself out: the leader counts on it no more."""
    lab = resting()
    assert lab[1].guard.leading.may_leave(NodeId(3))
    assert progress(lab, 3).rest is None
    lab.run(limits.IN_SYNC_TIMEOUT)
    assert progress(lab, 3).rest is None and progress(lab, 2).rest is not None
    assert not last_list(lab, 3).heartbeat_list.partitions


def test_a_lost_leadership_is_not_listed() -> None:
    """It rested when it heard of a newer term."""
    lab = resting()
    message = lab[2].guard.outbox.message()
    message.term = 2
    message.higher_term.SetInParent()
    lab.network.release([(NodeId(2), NodeId(1), message)])
    assert lab[1].role is Role.FOLLOWER
    lab.run(INTERVAL)
    assert not last_list(lab, 2).heartbeat_list.partitions
    lab.until(lambda: lab.leader() is not None)


def test_a_list_whose_columns_do_not_fit_is_dropped() -> None:
    """It says nothing of anybody."""
    lab = resting()
    bad = _fresh(last_list(lab, 2))
    bad.heartbeat_list.terms.append(1)
    worse = _fresh(_fresh(last_list(lab, 2)))
    worse.heartbeat_list.topics[0] = 7
    sent = len(lab.network.sent)
    lab.network.release([(NodeId(1), NodeId(2), bad), (NodeId(1), NodeId(2), worse)])
    assert heartbeats(lab, 2).counters["bad_list"] == 2
    assert lab.network.sent[sent:] == []


def test_exceptions_that_are_no_rows_are_ignored() -> None:
    """Whatever a peer answers."""
    lab = resting()
    lab.network.hold = lambda source, target, message: is_list_reply(message) and source == 2
    lab.until(lambda: bool(lab.network.held))
    lab.network.hold = lambda source, target, message: False
    lab.network.held[0][2].heartbeat_list_reply.exceptions.extend([7, 1 << 31])
    lab.network.release()
    assert progress(lab, 2).rest is not None
    assert isinstance(lab.network.sent[-1][2], peer_pb2.GroupMessage)
