"""Leadership goes back to the preferred leader when that is well, and stays where an operator put it."""

from __future__ import annotations

from fluxd.broker.balance import LeaderBalancer
from fluxd.core import limits
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.spec import Role
from tests.unit.broker_fakes import Cluster, FakeGroup, partition

SETTLED = limits.LEADER_BALANCE_SETTLE + 2 * limits.LEADER_BALANCE_INTERVAL


class Scene:
    """This node (1) and partitions that node 2 should lead."""

    def __init__(self, partitions: int = 1) -> None:
        self.cluster = Cluster()
        topic_id = self.cluster.topic("orders", *[partition(2, 1, 3)] * partitions)
        self.groups = [self.cluster.groups[GroupId(topic_id, number)] for number in range(partitions)]
        self.balancer = LeaderBalancer(self.cluster.clock.reactor, self.cluster.view, self.cluster.groups)
        self.balancer.start()

    @property
    def group(self) -> FakeGroup:
        return self.groups[0]

    def pass_time(self, seconds: float, *, up: bool = True) -> None:
        for _ in range(round(seconds / 0.5)):
            if up:
                self.cluster.view.peer_seen(NodeId(2))
            self.cluster.clock.advance(0.5)


def test_leadership_goes_back_when_the_preferred_leader_is_well_again() -> None:
    """Led here after a failure: nothing happens while node 2 is away or behind; once in sync for a while it gets it
    back.
    """
    scene = Scene()
    scene.group.become(Role.LEADER, 3, 1)
    scene.pass_time(SETTLED, up=False)
    assert scene.group.transfers == []
    scene.pass_time(SETTLED)
    assert scene.group.transfers == []
    scene.group.in_sync = {2}
    scene.pass_time(limits.LEADER_BALANCE_SETTLE - limits.LEADER_BALANCE_INTERVAL)
    assert scene.group.transfers == []
    scene.pass_time(2 * limits.LEADER_BALANCE_INTERVAL)
    assert scene.group.transfers == [2]


def test_being_well_must_last() -> None:
    """A replica that falls out of sync again has to settle anew."""
    scene = Scene()
    scene.group.become(Role.LEADER, 3, 1)
    for _ in range(3):
        scene.group.in_sync = {2}
        scene.pass_time(limits.LEADER_BALANCE_SETTLE - limits.LEADER_BALANCE_INTERVAL)
        scene.group.in_sync = set()
        scene.pass_time(limits.LEADER_BALANCE_INTERVAL)
    assert scene.group.transfers == []


def test_what_the_preferred_leader_gave_away_stays() -> None:
    """Node 2 led, and handed over while it was well: not undone, until node 2 has been away."""
    scene = Scene()
    scene.group.become(Role.FOLLOWER, 3, 2)
    scene.group.become(Role.CANDIDATE, 4, None)
    scene.group.become(Role.LEADER, 4, 1, handed_over=True)
    scene.pass_time(limits.LEADER_BALANCE_INTERVAL)
    scene.group.in_sync = {2}
    scene.pass_time(2 * SETTLED)
    assert scene.group.transfers == []
    scene.group.in_sync = set()
    scene.pass_time(SETTLED, up=False)
    scene.group.in_sync = {2}
    scene.pass_time(SETTLED)
    assert scene.group.transfers == [2]


def test_what_the_preferred_leader_lost_goes_back_however_soon_it_is_well() -> None:
    """Node 2 led, and stood still or died for so short a time that it never seemed out of sync."""
    scene = Scene()
    scene.group.in_sync = {2}
    scene.group.become(Role.FOLLOWER, 3, 2)
    scene.group.become(Role.LEADER, 4, 1)
    scene.pass_time(SETTLED)
    assert scene.group.transfers == [2]


def test_what_a_stopping_node_handed_over_goes_back_when_it_has_been_started_again() -> None:
    """Node 2 handed over, ended, and was back before anybody missed it."""
    scene = Scene()
    scene.group.in_sync = {2}
    scene.group.become(Role.FOLLOWER, 3, 2)
    scene.group.become(Role.LEADER, 4, 1, handed_over=True)
    scene.pass_time(2 * SETTLED)
    assert scene.group.transfers == []
    scene.cluster.view.peer_joined(NodeId(2))
    scene.pass_time(SETTLED)
    assert scene.group.transfers == [2]


def test_only_leaders_that_are_not_preferred_hand_over() -> None:
    """A follower does nothing, nor does a leader that is the preferred one."""
    cluster = Cluster()
    topic_id = cluster.topic("orders", partition(1, 2, 3), partition(2, 1, 3))
    mine, other = (cluster.groups[GroupId(topic_id, number)] for number in range(2))
    mine.become(Role.LEADER, 3, 1)
    mine.in_sync = other.in_sync = {2, 3}
    balancer = LeaderBalancer(cluster.clock.reactor, cluster.view, cluster.groups)
    balancer.start()
    for _ in range(20):
        cluster.view.peer_seen(NodeId(2))
        cluster.clock.advance(0.5)
    assert mine.transfers == other.transfers == []


def test_few_at_a_time() -> None:
    """At most LEADER_TRANSFERS_PER_ROUND in one round; the others follow, and a stopped balancer does nothing."""
    scene = Scene(partitions=2 * limits.LEADER_TRANSFERS_PER_ROUND)
    for group in scene.groups:
        group.become(Role.LEADER, 3, 1)
        group.in_sync = {2}
    while not any(group.transfers for group in scene.groups):
        scene.pass_time(limits.LEADER_BALANCE_INTERVAL)
    assert sum(len(group.transfers) for group in scene.groups) == limits.LEADER_TRANSFERS_PER_ROUND
    scene.pass_time(limits.LEADER_BALANCE_INTERVAL)
    assert [len(group.transfers) for group in scene.groups] == [1] * len(scene.groups)
    scene.balancer.stop()
    scene.pass_time(2 * SETTLED)
    assert [len(group.transfers) for group in scene.groups] == [1] * len(scene.groups)
