"""Rows of heartbeat lists that a follower has confirmed (`heartbeats.py`): they are not compared again while nothing is
done with the replica, and always after that."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from fluxd.core import limits
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.heartbeats import Confirmed, Heartbeats, Row
from fluxd.raft.host import Host
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2
from tests.simulation.clock import DiskSpeed, SimReactor, Simulator
from tests.simulation.lab import Lab, Message, is_list
from tests.simulation.test_heartbeats import heard_at, heartbeats, last_list, progress, resting

INTERVAL, TIMEOUT = limits.HEARTBEAT_INTERVAL, limits.ELECTION_TIMEOUT_MIN
LEADER = NodeId(7)


# ---------------------------------------------------------------------- one replica, and all that can be done with it
def host_of(lab: Lab, number: int) -> Host:
    """Of a node that runs."""
    host = lab.nodes[NodeId(number)].host
    assert host is not None
    return host


def list_again(lab: Lab) -> list[int]:
    """Node 2 gets the list again that node 1 sent it last: the exceptions that it answers with."""
    message = last_list(lab, 2)
    message.heartbeat_list.round = host_of(lab, 2).heartbeats._leaders[NodeId(1)].round + 1
    assert list(message.heartbeat_list.partitions) == [0]
    sent = len(lab.network.sent)
    lab.network.release([(NodeId(1), NodeId(2), message)])
    (reply,) = [m for source, _, m in lab.network.sent[sent:] if source == 2]
    return list(reply.heartbeat_list_reply.exceptions)


def checked(lab: Lab) -> int:
    """Rows that node 2 has compared."""
    return heartbeats(lab, 2).counters["rows_checked"]


def cut_off() -> Lab:
    """At rest; from now on node 2 hears of node 1 only what the test lets it hear."""
    lab = resting()
    lab.network.hold = lambda source, target, message: source == 1 and target == 2
    return lab


def test_a_confirmed_row_is_not_compared_again() -> None:
    """Its leader is heard with each list."""
    lab = resting()
    before, confirmed = checked(lab), lab[2].guard.confirmed
    for _ in range(10):
        heard = heard_at(lab, 2)
        lab.run(1.5 * INTERVAL)
        assert heard_at(lab, 2) > heard
    assert confirmed is not None and lab[2].guard.confirmed is confirmed
    assert checked(lab) == before


def message_of(lab: Lab, source: int, term: int = 1) -> Message:
    """The beginning of one."""
    message = lab[source].guard.outbox.message()
    message.term = term
    return message


def newer_term(lab: Lab) -> None:
    """Another leader's reply tells of it."""
    message = message_of(lab, 3, term=2)
    message.higher_term.SetInParent()
    lab.network.release([(NodeId(3), NodeId(2), message)])


def vote(lab: Lab) -> None:
    """It votes for another one, that its leader has asked to take over."""
    message = message_of(lab, 3, term=2)
    message.vote_request.last_index = lab[3].log.last_index
    message.vote_request.last_term = 1
    message.vote_request.transfer = True
    lab.network.release([(NodeId(3), NodeId(2), message)])
    assert not lab[2].guard.votes_durable()


def campaign(lab: Lab) -> None:
    """It becomes a candidate."""
    message = message_of(lab, 1)
    message.timeout_now.SetInParent()
    lab.network.release([(NodeId(1), NodeId(2), message)])
    assert lab[2].role is Role.CANDIDATE


def lead(lab: Lab) -> None:
    """It becomes the leader."""
    campaign(lab)
    lab.until(lambda: lab[2].role is Role.LEADER)


def entry(lab: Lab) -> None:
    """One more, which it appends; the disk is slow."""
    lab.nodes[NodeId(2)].speed.hung_until = lab.simulator.now + 0.2
    lab.network.hold = lambda source, target, message: source == 1 and target == 2 and is_list(message)
    before = lab[2].log.last_index
    lab.propose(1, b"y")
    lab.until(lambda: lab[2].log.last_index > before)
    assert lab[2].log.dirty


def synced_entry(lab: Lab) -> None:
    """It is on the disk as well."""
    entry(lab)
    lab.until(lambda: not lab[2].log.dirty and lab[2].commit_index == lab[2].log.last_index)


def failure(lab: Lab) -> None:
    """It has stopped itself, after an error of the disk."""
    lab.nodes[NodeId(2)].disk.errors += 1
    host_of(lab, 2)._healing.stop(lab[2], OSError("test"))
    assert lab[2].role is Role.FAILED


def closing(lab: Lab) -> None:
    """The partition is deleted."""
    host_of(lab, 2).close(lab[2].group_id)


def reopening(lab: Lab) -> None:
    """It has verified nothing of this leader's log since."""
    failure(lab)
    lab.until(lambda: lab[2].role is not Role.FAILED)


def damage(lab: Lab) -> None:
    """Its log is set aside."""
    lab.nodes[NodeId(2)].damaged = True
    host_of(lab, 2)._set_aside(lab[2], "test")


CHANGES = (newer_term, vote, campaign, lead, entry, synced_entry, failure, closing, reopening, damage)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_has_changed_is_not_confirmed(change: Callable[[Lab], None]) -> None:
    """The list is the same as before."""
    lab = cut_off()
    assert (list_again(lab), lab[2].guard.confirmed is not None) == ([], True)
    change(lab)
    assert list_again(lab) == [0]


def pre_vote_request(lab: Lab) -> None:
    """A message that changes nothing."""
    message = message_of(lab, 3)
    message.pre_vote_request.proposed_term = 2
    lab.network.release([(NodeId(3), NodeId(2), message)])


def link_down(lab: Lab) -> None:
    """To its leader."""
    host_of(lab, 2).peer_down(NodeId(1), gone=False)


def link_up(lab: Lab) -> None:
    """To anybody."""
    host_of(lab, 2).peer_up(NodeId(3))


def step(lab: Lab) -> None:
    """For whatever reason."""
    lab[2].step()


def log_synced(lab: Lab) -> None:
    """More is durable."""
    lab[2].on_log_synced()


def votes_synced(lab: Lab) -> None:
    """Votes are durable."""
    lab[2].on_votes_synced()


def trimmed(lab: Lab) -> None:
    """The log's head is gone."""
    lab[2].on_trimmed()


DOORS = (pre_vote_request, link_down, link_up, step, log_synced, votes_synced, trimmed)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_whatever_was_done_with_a_replica_its_row_is_compared_again(door: Callable[[Lab], None]) -> None:
    """Whether or not it has changed anything is seen then."""
    lab = cut_off()
    assert list_again(lab) == []
    before = checked(lab)
    assert (list_again(lab), checked(lab)) == ([], before)
    door(lab)
    assert lab[2].guard.confirmed is None
    assert (list_again(lab), checked(lab)) == ([], before + 1)
    assert lab[2].guard.confirmed is not None


# ---------------------------------------------------------------------- its election timer
@pytest.mark.parametrize("seed", range(5))
def test_when_lists_stop_the_election_timer_goes_on_from_the_last_one(seed: int) -> None:
    """A follower campaigns not before the minimum, nor after the maximum timeout."""
    lab = Lab(seed=seed)
    lab.elect(1)
    lab.until(lambda: progress(lab, 2).rest is not None and progress(lab, 3).rest is not None)
    lab.run(20 * INTERVAL)
    lab.cut((1, 3), (2,))
    lab.run(0.02)  # what was on the way
    last, before = heard_at(lab, 2), len(lab.network.sent)

    def asks() -> bool:
        return any(m.WhichOneof("body") == "pre_vote_request" for _, _, m in lab.network.sent[before:])

    lab.run(last + TIMEOUT - lab.simulator.now)
    assert not asks()
    lab.run(last + limits.ELECTION_TIMEOUT_MAX - lab.simulator.now)
    assert asks()
    assert lab[2].guard.elections._heard_at == last


def test_who_is_asked_for_a_vote_remembers_when_its_leader_was_heard_with_a_list() -> None:
    """A replica that rests protects its leader (stickiness)."""
    lab = resting()
    lab.run(20 * INTERVAL)
    message = message_of(lab, 3, term=2)
    message.vote_request.last_index, message.vote_request.last_term = lab[3].log.last_index, 1
    lab.network.release([(NodeId(3), NodeId(2), message)])
    assert (lab[2].term, lab[2].guard.counters["sticky_vote"]) == (1, 1)


def test_a_leader_whose_process_is_gone_is_replaced_at_once() -> None:
    """Nobody waits for the timeout because the last list is young."""
    lab = resting()
    lab.kill(1)
    lab.until(lambda: lab.leader() in (2, 3), within=0.5 * TIMEOUT)
    assert [lab[number].term for number in (2, 3)] == [2, 2], "in the first election"


# ---------------------------------------------------------------------- many replicas
class Followers:
    """Replicas that fit or do not, as the test says, and the lists that their leader's node sends."""

    def __init__(self, partitions: int) -> None:
        self.simulator = Simulator()
        self.heartbeats = Heartbeats(
            SimReactor(self.simulator, random.Random(1), DiskSpeed()), self, self._check, self._lapse
        )
        self.rows = [self.row(number) for number in range(partitions)]
        self.unfit: set[int] = set()
        self.checked: list[int] = []
        self.lapsed: dict[int, float] = {}
        """When they were last heard then."""
        self.confirmed: dict[int, Confirmed] = {}
        self._sent: list[peer_pb2.GroupMessage] = []
        self._round = 0

    @staticmethod
    def row(partition: int, last_index: int = 5) -> Row:
        """As a leader lists it."""
        return Row(GroupId(bytes(16), partition), 0, 1, last_index)

    def _check(self, peer: NodeId, row: Row, confirmed: Confirmed) -> bool:
        assert (peer, row) == (LEADER, confirmed.row)
        number = row.group.partition
        self.checked.append(number)
        if number in self.unfit:
            return False
        self.confirmed[number] = confirmed
        return True

    def _lapse(self, group: GroupId) -> None:
        self.lapse(group.partition)

    def lapse(self, number: int) -> None:
        """As a replica ends it."""
        confirmed = self.confirmed.pop(number)
        confirmed.end()
        self.lapsed[number] = confirmed.heard_at

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """Transport's."""
        self._sent.append(message)
        return peer == LEADER and not frames

    def is_connected(self, peer: NodeId) -> bool:
        """Transport's."""
        return peer == LEADER

    def list(self, now: float, *, nonce: int = 1) -> tuple[list[int], list[int]]:
        """At this moment `rows` are listed: which were compared, and the exceptions."""
        self.simulator.now = now
        self._round += 1
        heartbeat = peer_pb2.HeartbeatList(process_nonce=nonce, round=self._round, topic_ids=[bytes(16)])
        for row in self.rows:
            heartbeat.topics.append(0)
            heartbeat.partitions.append(row.group.partition)
            heartbeat.generations.append(row.generation)
            heartbeat.terms.append(row.term)
            heartbeat.last_indexes.append(row.last_index)
        self.checked, self._sent = [], []
        self.heartbeats.on_list(LEADER, heartbeat)
        exceptions = [list(message.heartbeat_list_reply.exceptions) for message in self._sent]
        return self.checked, exceptions[0] if exceptions else [-1]


def test_of_a_list_that_comes_again_only_rows_that_are_not_confirmed_are_compared() -> None:
    """Those that did not fit, and those with whose replicas something was done."""
    followers = Followers(5)
    followers.unfit = {1}
    assert followers.list(1.0) == ([0, 1, 2, 3, 4], [1])
    assert followers.list(2.0) == ([1], [1])
    followers.lapse(3)
    followers.unfit = {3}
    assert followers.list(3.0) == ([1, 3], [3])
    followers.unfit = set()
    assert followers.list(4.0) == ([3], [])
    assert followers.list(5.0) == ([], [])
    assert {confirmed.heard_at for confirmed in followers.confirmed.values()} == {5.0}


def test_of_another_list_only_rows_that_were_not_confirmed_are_compared() -> None:
    """Numbers may be others; a replica that is listed no more, or otherwise, was heard last with the list before."""
    followers = Followers(5)
    followers.list(1.0)
    followers.unfit = {2}
    followers.rows = [followers.row(9), followers.row(4), followers.row(2, last_index=6), followers.row(0)]
    assert followers.list(2.0) == ([9, 2], [2])
    assert followers.lapsed == {1: 1.0, 2: 1.0, 3: 1.0}
    assert followers.confirmed.keys() == {0, 4, 9}
    followers.lapse(4)
    followers.unfit = {4}
    assert followers.list(3.0) == ([4, 2], [1])
    assert followers.lapsed[4] == 2.0


def test_a_list_that_says_nothing_confirms_nothing() -> None:
    """Columns of different length, a row that stands there twice: nobody was heard with it."""
    followers = Followers(3)
    followers.list(1.0)
    followers.rows.append(followers.rows[0])
    assert followers.list(2.0) == ([], [-1])
    assert followers.heartbeats.counters["bad_list"] == 1
    assert {confirmed.heard_at for confirmed in followers.confirmed.values()} == {1.0}
    followers.rows.pop()
    assert followers.list(3.0) == ([], [])
    assert {confirmed.heard_at for confirmed in followers.confirmed.values()} == {3.0}


def test_when_no_list_comes_replicas_look_for_themselves() -> None:
    """Before the first of their timers is due."""
    followers = Followers(3)
    followers.list(1.0)
    followers.simulator.now = 1.0 + 2 * INTERVAL
    followers.heartbeats.expire()
    assert followers.lapsed == {}
    followers.simulator.now = 1.0 + TIMEOUT - 0.1
    followers.heartbeats.expire()
    assert followers.lapsed == {0: 1.0, 1: 1.0, 2: 1.0}
    assert followers.list(2.0) == ([0, 1, 2], [])


def test_what_ends_twice_does_not_end_what_came_after_it() -> None:
    """A replica was confirmed anew meanwhile."""
    followers = Followers(1)
    followers.list(1.0)
    old = followers.confirmed[0]
    followers.lapse(0)
    followers.list(2.0)
    old.end()
    assert followers.list(3.0) == ([], [])


def test_a_group_that_is_closed_is_not_kept() -> None:
    """By what remembers that its row was confirmed."""
    lab = cut_off()
    list_again(lab)
    assert heartbeats(lab, 2)._leaders[NodeId(1)].confirmed
    host_of(lab, 2).close(lab[2].group_id)
    assert not heartbeats(lab, 2)._leaders[NodeId(1)].confirmed
