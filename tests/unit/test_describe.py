"""Descriptions: the numbers, and the reasons in words."""

from __future__ import annotations

from fluxd.broker.describe import cluster_description, is_under_replicated, partition_description
from fluxd.core import limits
from fluxd.core.types import METADATA_GROUP, GroupId, NodeId, Offset
from fluxd.raft.spec import Role
from fluxlog.v1 import admin_pb2, peer_pb2
from tests.unit.broker_fakes import Cluster, FakeGroup, leads, partition


def with_partition(*nodes: int) -> tuple[Cluster, GroupId]:
    cluster = Cluster()
    return cluster, GroupId(cluster.topic("orders", partition(*nodes)), 0)


def describe(cluster: Cluster, group_id: GroupId) -> admin_pb2.PartitionDescription:
    return partition_description(cluster.view, cluster.view.image.topics[group_id.topic_id], group_id.partition)


def lead_here(cluster: Cluster, group_id: GroupId) -> FakeGroup:
    group = cluster.groups[group_id]
    group.become(Role.LEADER, 3, 1)
    group.in_sync, group.heard_ms = {2, 3}, {2: 40, 3: 50}
    group.high_watermark = group.log_end_offset = Offset(7)
    cluster.tell(2)
    cluster.tell(3)
    return group


def test_a_healthy_partition_that_this_node_leads() -> None:
    """Everything in sync: the numbers are the leader's own, and there is nothing to explain."""
    cluster, group_id = with_partition(1, 2, 3)
    lead_here(cluster, group_id)
    out = describe(cluster, group_id)
    assert (out.leader_node, out.leader_epoch, list(out.replicas), list(out.isr)) == (1, 3, [1, 2, 3], [1, 2, 3])
    assert (out.high_watermark, out.log_end_offset, out.size_bytes, out.status_age_ms) == (7, 7, 1_000, 0)
    assert [replica.state for replica in out.replica_states] == [
        admin_pb2.REPLICA_STATE_LEADER,
        admin_pb2.REPLICA_STATE_FOLLOWER,
        admin_pb2.REPLICA_STATE_FOLLOWER,
    ]
    assert [replica.last_heard_ms for replica in out.replica_states] == [0, 40, 50]
    assert out.why == ""
    assert not is_under_replicated(out)


def test_a_replica_that_lags_is_explained() -> None:
    """Out of sync: how far behind and when last heard, in numbers and in words."""
    cluster, group_id = with_partition(1, 2, 3)
    group = lead_here(cluster, group_id)
    group.in_sync, group.durable, group.heard_ms = {2}, {3: 4}, {2: 10, 3: 2_500}
    out = describe(cluster, group_id)
    assert list(out.isr) == [1, 2]
    assert out.replica_states[2].lag_entries == 6
    assert out.why == "out of sync: node 3: 6 entries behind, last heard 2.5 s ago"
    assert is_under_replicated(out)


def test_a_replica_that_had_everything_and_fell_silent() -> None:
    """Nothing is said of what it has now."""
    cluster, group_id = with_partition(1, 2, 3)
    group = lead_here(cluster, group_id)
    group.in_sync, group.heard_ms = {2}, {2: 10, 3: 2_500}
    assert describe(cluster, group_id).why == "out of sync: node 3: had everything when last heard 2.5 s ago"


def test_who_takes_no_part_is_not_in_sync_whatever_the_leader_told_last() -> None:
    """What a leader elsewhere tells is older than what this node finds itself."""
    cluster, group_id = with_partition(1, 2, 3)
    cluster.tell(2, leads(group_id, 3, in_sync=[1, 3]))
    cluster.tell(3)
    assert list(describe(cluster, group_id).isr) == [1, 2, 3]
    trouble = peer_pb2.ReplicaTrouble(topic_id=group_id.topic_id, partition=0, why="the disk was replaced")
    cluster.tell(3, troubles=[trouble])
    out = describe(cluster, group_id)
    assert (list(out.isr), out.replica_states[2].in_sync) == ([1, 2], False)
    cluster.tell(3)
    cluster.view.peer_lost(NodeId(3))
    out = describe(cluster, group_id)
    assert (list(out.isr), out.replica_states[2].in_sync) == ([1, 2], False)


def test_a_down_node_and_an_unadmitted_replica_are_told_apart() -> None:
    """The state of each replica says whether its node is down or its disk was lost."""
    cluster, group_id = with_partition(1, 2, 3)
    lead_here(cluster, group_id).in_sync = set()
    trouble = peer_pb2.ReplicaTrouble(topic_id=group_id.topic_id, partition=0, why="the disk was replaced")
    cluster.tell(3, troubles=[trouble])
    cluster.view.peer_lost(NodeId(2))
    out = describe(cluster, group_id)
    assert [replica.state for replica in out.replica_states[1:]] == [
        admin_pb2.REPLICA_STATE_UNREACHABLE,
        admin_pb2.REPLICA_STATE_UNADMITTED,
    ]
    assert out.why.startswith("writes are refused: 2 of 3 replicas are needed, 1 in sync; node 2: its node is down")
    assert "node 3: unadmitted: the disk was replaced" in out.why


def test_who_lags_takes_part() -> None:
    """With a node down and the other follower far behind, writes are accepted, and acknowledged when it has them."""
    cluster, group_id = with_partition(1, 2, 3)
    group = lead_here(cluster, group_id)
    group.in_sync, group.durable, group.heard_ms = set(), {2: 4}, {2: 10}
    cluster.view.peer_lost(NodeId(3))
    why = describe(cluster, group_id).why
    assert why.startswith("acknowledgements are late: 2 of 3 replicas are needed, 1 in sync; node 2: 6 entries behind")


def test_no_leader_for_lack_of_replicas() -> None:
    """With too few replicas the reason names what is needed and who is missing."""
    cluster, group_id = with_partition(1, 2, 3)
    out = describe(cluster, group_id)
    assert (out.leader_node, list(out.isr)) == (0, [])
    assert out.why.startswith("no leader: 2 of 3 replicas are needed, 1 can take part; node 2: its node is down")
    assert "never heard from" in out.why


def test_no_leader_during_an_election() -> None:
    """With enough replicas up an election is under way; offsets are what this node knows."""
    cluster, group_id = with_partition(1, 2, 3)
    cluster.tell(2)
    group = cluster.groups[group_id]
    group.become(Role.CANDIDATE, 5, None)
    group.high_watermark, group.log_end_offset = Offset(4), Offset(6)
    out = describe(cluster, group_id)
    assert out.why.startswith("no leader: an election is under way; node 3: its node is down")
    assert (out.high_watermark, out.log_end_offset) == (4, 6)
    assert out.replica_states[0].state == admin_pb2.REPLICA_STATE_CANDIDATE
    group.missing = (NodeId(2), NodeId(3))
    assert describe(cluster, group_id).why.endswith("this node does not reach nodes 2, 3")


def test_a_partition_elsewhere_is_described_with_its_age() -> None:
    """A node without a replica describes it from what the leader told, and says how old that is."""
    cluster, group_id = with_partition(2, 3)
    cluster.tell(3)
    cluster.tell(2, leads(group_id, 4, in_sync=[3], high_watermark=9, log_end_offset=9))
    cluster.clock.advance(0.4)
    out = describe(cluster, group_id)
    assert (out.leader_node, list(out.isr), out.high_watermark, out.status_age_ms) == (2, [2, 3], 9, 400)
    assert out.replica_states[1].last_heard_ms == 420
    cluster.view.peer_lost(NodeId(2))
    out = describe(cluster, group_id)
    assert (out.leader_node, list(out.isr), out.high_watermark) == (0, [], 9)


def test_a_leader_that_has_told_nothing_yet() -> None:
    """A leader known from the own replica before its first status: nobody is claimed to be in sync."""
    cluster, group_id = with_partition(1, 2, 3)
    cluster.tell(2)
    cluster.groups[group_id].become(Role.FOLLOWER, 5, 2)
    out = describe(cluster, group_id)
    assert (out.leader_node, list(out.isr)) == (2, [])
    assert "has just been elected" in out.why


def test_the_cluster() -> None:
    """Nodes with their state, leaderships and replicas; counts of partitions in trouble: there internal topics count,
    too, since a cluster whose own are not well is not.
    """
    cluster = Cluster()
    topic_id = cluster.topic("orders", partition(1, 2, 3), partition(2, 3, 1), partition(3, 1, 2))
    cluster.view.cluster_id = "c"
    lead_here(cluster, GroupId(topic_id, 0))
    cluster.tell(2, leads(GroupId(topic_id, 1), 3, in_sync=[3]), leads(METADATA_GROUP, 8, in_sync=[1, 3]))
    out = cluster_description(cluster.view)
    assert (out.cluster_id, out.node_id, out.controller_node, out.controller_epoch) == ("c", 1, 2, 8)
    assert (out.topics, out.partitions, out.leaderless_partitions, out.under_replicated_partitions) == (1, 3, 1, 2)
    assert [(node.node_id, node.leader_partitions, node.replica_partitions) for node in out.nodes] == [
        (1, 1, 3),
        (2, 1, 3),
        (3, 0, 3),
    ]
    offsets = cluster.topic("__consumer_offsets", partition(1, 2, 3), partition(2, 3, 1))
    ill = (leads(GroupId(offsets, 1), 3, in_sync=[3]), leads(METADATA_GROUP, 8, in_sync=[3]))
    cluster.tell(2, leads(GroupId(topic_id, 1), 3, in_sync=[3]), *ill)
    out = cluster_description(cluster.view)
    assert (out.topics, out.partitions) == (1, 3)
    assert [node.replica_partitions for node in out.nodes] == [3, 3, 3]
    assert (out.leaderless_partitions, out.under_replicated_partitions) == (1 + 1, 2 + 3)
    assert [node.process_id for node in out.nodes] == [101, 102, 103]
    assert out.nodes[0].last_heard_ms == 0
    cluster.clock.advance(limits.NODE_DOWN_AFTER + 0.1)
    assert [node.state for node in cluster_description(cluster.view).nodes] == [
        admin_pb2.NODE_STATE_UP,
        admin_pb2.NODE_STATE_DOWN,
        admin_pb2.NODE_STATE_DOWN,
    ]


def test_damage_of_replicas_that_take_part_is_told() -> None:
    """Another node's and this one's: they are in sync, and something is wrong with them all the same."""
    cluster, group_id = with_partition(1, 2, 3)
    group = lead_here(cluster, group_id)
    trouble = peer_pb2.ReplicaTrouble(
        topic_id=group_id.topic_id, partition=0, why="its log is damaged: 1.seg", takes_part=True
    )
    cluster.tell(3, troubles=[trouble])
    out = describe(cluster, group_id)
    assert out.replica_states[2].state == admin_pb2.REPLICA_STATE_FOLLOWER
    assert out.replica_states[2].in_sync
    assert out.why == "node 3: its log is damaged: 1.seg"
    assert not is_under_replicated(out)
    assert cluster.view.trouble(group_id, NodeId(3)) is None
    group.why = "its log is damaged: 2.seg"
    assert describe(cluster, group_id).why == "node 1: its log is damaged: 2.seg; node 3: its log is damaged: 1.seg"
    status = cluster.view.local_status()
    assert [(t.why, t.takes_part, t.failed) for t in status.troubles] == [("its log is damaged: 2.seg", True, False)]
    assert len(status.leading) == 1


def test_a_node_whose_disk_is_full_but_for_the_reserve_is_told() -> None:
    """Of this node and of another one, until there is room; who is also behind is said to be behind, too."""
    cluster, group_id = with_partition(1, 2, 3)
    group = lead_here(cluster, group_id)
    cluster.disk_full = True
    assert describe(cluster, group_id).why.startswith("node 1: its disk has less than 64 MiB left")
    assert "64 MiB" in cluster.view.local_status().why
    assert "64 MiB" in cluster_description(cluster.view).nodes[0].why
    cluster.disk_full = False
    cluster.tell(2, why="its disk has less than 64 MiB left")
    assert describe(cluster, group_id).why == "node 2: its disk has less than 64 MiB left"
    group.in_sync, group.durable = {3}, {2: group.last_index - 5}
    said = describe(cluster, group_id).why
    assert said == "out of sync: node 2: 5 entries behind, last heard 0.0 s ago; its disk has less than 64 MiB left"
    assert [node.why for node in cluster_description(cluster.view).nodes][1] == "its disk has less than 64 MiB left"
    cluster.tell(2)
    cluster.clock.advance(limits.NODE_DOWN_AFTER + 0.1)
    assert not cluster_description(cluster.view).nodes[1].why


def test_a_damaged_file_of_a_node_is_told() -> None:
    """Beside what else is wrong with the node, in all three descriptions, until it is sound."""
    cluster, group_id = with_partition(1, 2, 3)
    lead_here(cluster, group_id)
    cluster.files_why = ["", "damaged, and being written anew: meta.json: position 0: gone"]
    why = "damaged, and being written anew: meta.json: position 0: gone"
    assert describe(cluster, group_id).why == f"node 1: {why}"
    assert not is_under_replicated(describe(cluster, group_id))
    assert cluster.view.local_status().why == why
    assert cluster_description(cluster.view).nodes[0].why == why
    cluster.disk_full = True
    assert cluster.view.local_status().why.endswith(f"takes no records; {why}")
    cluster.disk_full, cluster.files_why = False, ["", ""]
    assert (cluster.view.local_status().why, describe(cluster, group_id).why) == ("", "")
