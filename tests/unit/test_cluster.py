"""What a node knows of the cluster: who leads, who is up, and whose tale is newer."""

from __future__ import annotations

import pytest

from fluxd.broker.cluster import LeaderHint
from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.types import GroupId, NodeId, Term
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2
from tests.unit.broker_fakes import Cluster, leads, partition


def with_partition() -> tuple[Cluster, GroupId]:
    cluster = Cluster()
    return cluster, GroupId(cluster.topic("orders", partition(1, 2, 3)), 0)


def leader_of(cluster: Cluster, group_id: GroupId) -> int | None:
    hint = cluster.view.leader(group_id)
    return None if hint is None else hint.node_id


def test_topics_and_addresses() -> None:
    """Topics are found by name and id; addresses come from the last status, else from the registration."""
    cluster, group_id = with_partition()
    view = cluster.view
    topic = view.topic("orders")
    assert topic is not None
    assert view.topic_by_id(group_id.topic_id) is topic
    assert view.topic("nothing") is None
    assert view.group_name(group_id) == "orders-0"
    assert view.address(NodeId(1)) == "host1:7000"
    assert view.address(NodeId(2)) == "host2:7000"
    assert view.address(NodeId(9)) == ""
    view.observe_status(peer_pb2.NodeStatus(node_id=2, advertised_address="moved:1"))
    assert view.address(NodeId(2)) == "moved:1"


def test_a_leader_is_known_from_what_nodes_tell() -> None:
    """The highest epoch wins, whatever the order in which nodes tell."""
    cluster, group_id = with_partition()
    assert leader_of(cluster, group_id) is None
    cluster.tell(2, leads(group_id, 5))
    assert cluster.view.leader(group_id) == LeaderHint(NodeId(2), "host2:7000", Term(5))
    cluster.tell(3, leads(group_id, 4))
    assert leader_of(cluster, group_id) == 2
    cluster.tell(3, leads(group_id, 6))
    assert leader_of(cluster, group_id) == 3
    cluster.tell(2, leads(group_id, 5))
    assert leader_of(cluster, group_id) == 3


def test_a_leader_that_no_longer_says_so_is_none() -> None:
    """When the newest leader stops telling of the partition, nobody leads it."""
    cluster, group_id = with_partition()
    cluster.tell(2, leads(group_id, 5))
    cluster.tell(2)
    assert leader_of(cluster, group_id) is None


def test_the_own_replica_wins_when_its_term_is_not_older() -> None:
    """This node's replica is first-hand: its leader at the same or a higher term, and an election at a higher one."""
    cluster, group_id = with_partition()
    group = cluster.groups[group_id]
    cluster.tell(2, leads(group_id, 5))
    cluster.view.peer_seen(NodeId(3))
    group.become(Role.FOLLOWER, 6, 3)
    assert leader_of(cluster, group_id) == 3
    group.become(Role.LEADER, 7, 1)
    assert cluster.view.leads(group_id)
    assert leader_of(cluster, group_id) == 1
    group.become(Role.CANDIDATE, 8, None)
    assert leader_of(cluster, group_id) is None
    cluster.tell(2, leads(group_id, 9))
    assert leader_of(cluster, group_id) == 2


def test_a_replica_that_takes_no_part_is_not_asked() -> None:
    """An unadmitted replica knows nothing of leaders, however high the term it has seen."""
    cluster, group_id = with_partition()
    cluster.groups[group_id].become(Role.UNADMITTED, 9, None)
    cluster.tell(2, leads(group_id, 5))
    assert leader_of(cluster, group_id) == 2


def test_a_node_is_down_after_silence_or_at_once_when_gone() -> None:
    """A node is up while it was heard from within NODE_DOWN_AFTER; gone, it is down at once; a leader on it is no
    answer.
    """
    cluster, group_id = with_partition()
    view = cluster.view
    assert view.is_up(NodeId(1))
    assert not view.is_up(NodeId(2))
    assert view.silence_s(NodeId(2)) is None
    cluster.tell(2, leads(group_id, 5))
    assert view.is_up(NodeId(2))
    cluster.clock.advance(limits.NODE_DOWN_AFTER + 0.1)
    assert not view.is_up(NodeId(2))
    assert leader_of(cluster, group_id) is None
    silence = view.silence_s(NodeId(2))
    assert silence is not None
    assert silence > limits.NODE_DOWN_AFTER
    view.peer_seen(NodeId(2))
    assert leader_of(cluster, group_id) == 2
    view.peer_lost(NodeId(2))
    assert not view.is_up(NodeId(2))
    assert leader_of(cluster, group_id) is None


def test_watchers_hear_of_changes() -> None:
    """Watchers are called for a new leader told, one withdrawn, one lost, and a change of an own replica's role; until
    they end it.
    """
    cluster, group_id = with_partition()
    heard: list[GroupId] = []
    unwatch = cluster.view.watch_leaders(heard.append)
    cluster.tell(2, leads(group_id, 5))
    assert heard == [group_id]
    cluster.tell(2, leads(group_id, 5))
    assert heard == [group_id]
    cluster.view.peer_lost(NodeId(2))
    assert heard == [group_id] * 2
    cluster.tell(2)
    assert heard == [group_id] * 3
    cluster.groups[group_id].become(Role.LEADER, 6, 1)
    assert heard == [group_id] * 4
    unwatch()
    cluster.groups[group_id].become(Role.FOLLOWER, 7, 2)
    assert heard == [group_id] * 4


def test_who_waits_for_one_leader_is_not_told_of_the_others() -> None:
    """A watcher of one partition is called for that one alone, until it ends it; others of the same one go on."""
    cluster = Cluster()
    topic_id = cluster.topic("orders", partition(2, 1, 3), partition(2, 1, 3))
    watched, other = GroupId(topic_id, 0), GroupId(topic_id, 1)
    heard: list[str] = []
    unwatch = cluster.view.watch_leader(watched, lambda: heard.append("first"))
    cluster.view.watch_leader(watched, lambda: heard.append("second"))
    cluster.groups[other].become(Role.LEADER, 6, 1)
    assert heard == []
    cluster.groups[watched].become(Role.LEADER, 6, 1)
    assert heard == ["first", "second"]
    unwatch()
    cluster.groups[watched].become(Role.FOLLOWER, 7, 2)
    assert heard == ["first", "second", "second"]


def test_the_local_status_tells_what_is_led_and_what_is_ill() -> None:
    """Led partitions with their followers, and replicas that take no part with the reason."""
    cluster = Cluster()
    topic_id = cluster.topic("orders", partition(1, 2, 3), partition(2, 1, 3), partition(3, 1, 2))
    led, ill, failed = (cluster.groups[GroupId(topic_id, number)] for number in range(3))
    led.become(Role.LEADER, 4, 1)
    ill.role, ill.why = Role.UNADMITTED, "the disk was replaced"
    failed.role, failed.why = Role.FAILED, "sync failed"
    status = cluster.view.local_status()
    assert (status.node_id, status.process_id, status.advertised_address) == (1, 101, "host1:7000")
    leading = [peer_pb2.LeaderStatus.FromString(row) for row in status.leading]
    assert [(leader.partition, leader.leader_epoch) for leader in leading] == [(0, 4)]
    assert [(trouble.partition, trouble.failed, trouble.why) for trouble in status.troubles] == [
        (1, False, "the disk was replaced"),
        (2, True, "sync failed"),
    ]


def test_of_what_is_told_again_only_the_differences_count() -> None:
    """A row that changed replaces the one of its partition, a row that is missing ends it, and the others stay."""
    cluster = Cluster()
    topic_id = cluster.topic("orders", *[partition(1, 2, 3)] * 3)
    groups = [GroupId(topic_id, number) for number in range(3)]
    cluster.tell(2, *[leads(group_id, 5, high_watermark=1) for group_id in groups])
    heard: list[GroupId] = []
    cluster.view.watch_leaders(heard.append)
    cluster.tell(2, leads(groups[0], 5, high_watermark=1), leads(groups[1], 5, high_watermark=2))
    told = [cluster.view.told_leading(group_id) for group_id in groups]
    assert [found and found[0].high_watermark for found in told] == [1, 2, None]
    assert heard == [groups[2]]


def test_the_leader_before_counts_again_when_the_newer_one_no_longer_says_so() -> None:
    """Although it tells what it told all the time."""
    cluster, group_id = with_partition()
    cluster.tell(2, leads(group_id, 5))
    cluster.tell(3, leads(group_id, 6))
    cluster.tell(3)
    cluster.tell(2, leads(group_id, 5))
    assert leader_of(cluster, group_id) == 2


def test_a_follower_at_rest_was_heard_when_its_node_answered() -> None:
    """A row does not change with each answer to a list: the status says once for each node when that was."""
    cluster, group_id = with_partition()
    status = leads(group_id, 5, in_sync=[1, 3])
    status.followers[1].ClearField("last_heard_ms")
    status.followers[1].rests = True
    for ms_ago in (100, 300):
        cluster.tell(2, status, answered={1: 40, 3: ms_ago})
        told = cluster.view.told_leading(group_id)
        assert told is not None
        assert [follower.last_heard_ms for follower in told[0].followers] == [20, ms_ago]


def test_a_status_with_a_row_that_is_none_is_refused_whole() -> None:
    """What was told before stands."""
    cluster, group_id = with_partition()
    cluster.tell(2, leads(group_id, 5))
    with pytest.raises(FluxError, match="not a LeaderStatus"):
        cluster.view.observe_status(peer_pb2.NodeStatus(node_id=2, leading=[b"\xff"]))
    assert leader_of(cluster, group_id) == 2


def test_a_told_trouble_is_known() -> None:
    """Why another node's replica takes no part is known from its status."""
    cluster, group_id = with_partition()
    trouble = peer_pb2.ReplicaTrouble(topic_id=group_id.topic_id, partition=0, failed=False, why="wiped")
    cluster.tell(2, troubles=[trouble])
    assert cluster.view.trouble(group_id, NodeId(2)) == (Role.UNADMITTED, "wiped")
    assert cluster.view.trouble(group_id, NodeId(3)) is None
    cluster.tell(2)
    assert cluster.view.trouble(group_id, NodeId(2)) is None
