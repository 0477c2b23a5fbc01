"""Consumer groups on a real cluster of three nodes."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from fluxlog.v1 import admin_pb2, errors_pb2, groups_pb2, groups_pb2_grpc
from tests.integration.cluster import Cluster, code_of, error_info, produce_request, wait_until
from tests.integration.members import Member, committed, describe, owned_by, wait_owned

pytestmark = pytest.mark.slow
FENCED = errors_pb2.ERROR_REASON_FENCED_MEMBER


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("groups")) as running:
        yield running


def test_members_share_a_topic_and_take_over_from_each_other(cluster: Cluster) -> None:
    """A second member gets half, without both owning a partition at any time; when it leaves, the first has all."""
    cluster.create_topic("shared", partitions=4)
    first = Member(cluster.node(1), "share", "shared")
    wait_owned("shared", 4, first)
    second = Member(cluster.node(2), "share", "shared")
    wait_owned("shared", 4, first, second)
    assert len(first.revoked) == 2
    second.leave()
    wait_owned("shared", 4, first)
    first.leave()
    answer = groups_pb2_grpc.GroupsStub(cluster.node(3).channel).ListGroups(groups_pb2.ListGroupsRequest(), timeout=10)
    assert "share" not in [group.group for group in answer.groups], "no member, no offset: nothing is left"


def test_a_member_that_comes_back_in_time_keeps_its_partitions(cluster: Cluster) -> None:
    """Over another node, with the same epoch; the other member is not disturbed."""
    cluster.create_topic("kept", partitions=4)
    first, second = Member(cluster.node(1), "keep", "kept"), Member(cluster.node(2), "keep", "kept")
    wait_owned("kept", 4, first, second)
    before, epoch = dict(first.owned), first.epoch
    first.hang_up()
    again = Member(cluster.node(3), "keep", "kept", member_id=first.member_id)
    wait_owned("kept", 4, again, second)
    assert (again.resumed, again.epoch, again.owned.keys()) == (True, epoch, before.keys())
    assert len(second.owned) == 2
    again.leave()
    second.leave()


def test_a_member_that_stays_away_loses_its_partitions(cluster: Cluster) -> None:
    """After its session's time; its late commit is fenced; offsets of its partitions stay."""
    cluster.create_topic("gone", partitions=2)
    first = Member(cluster.node(1), "go", "gone", session_timeout_ms=1_000)
    wait_owned("gone", 2, first)
    assert first.commit(("gone", 0), 7).committed_offset == 7
    second = Member(cluster.node(2), "go", "gone", session_timeout_ms=1_000)
    wait_owned("gone", 2, first, second)
    first.hang_up()
    wait_owned("gone", 2, second)
    assert first.commit(("gone", 0), 8).error.reason == FENCED
    assert committed(cluster.node(3), "go") == {("gone", 0): 7}
    assert second.committed[("gone", 0)] == 7
    second.leave()


def test_a_member_that_is_too_slow_to_give_up_is_fenced(cluster: Cluster) -> None:
    """What it does not release is taken after the rebalance timeout; it is told, and cannot commit it any more."""
    cluster.create_topic("slow", partitions=2)
    first = Member(cluster.node(1), "slow", "slow", stubborn=True, rebalance_timeout_ms=1_000)
    wait_owned("slow", 2, first)
    second = Member(cluster.node(2), "slow", "slow")
    wait_until(lambda: len(second.owned) == 1, "the second has its share")
    assert len(first.revoked) == 1
    wait_until(lambda: bool(first.lost), "the first is told")
    (taken,) = first.lost
    assert first.commit(taken, 3).error.reason == FENCED
    assert second.commit(taken, 3).committed_offset == 3
    first.leave()
    second.leave()


def test_idle_members_and_broadcast(cluster: Cluster) -> None:
    """More members than partitions: one has none, and describe says so. Another group has every partition again."""
    cluster.create_topic("few", partitions=2)
    members = [Member(cluster.node(number), "queue", "few", name=f"m{number}") for number in (1, 2, 3)]
    wait_owned("few", 2, *members)
    other = Member(cluster.node(1), "broadcast", "few")
    wait_owned("few", 2, other)

    def settled() -> bool:
        description = describe(cluster.node(2), "queue")
        return description.state == groups_pb2.GROUP_STATE_STABLE and len(description.members) == 3

    wait_until(settled, "the group is stable")
    description = describe(cluster.node(3), "queue")
    idle = [member.client_name for member in description.members if not member.partitions]
    assert len(idle) == 1
    assert f"idle: {idle[0]}" in description.why
    assert {member.via_node for member in description.members} == {1, 2, 3}
    assert all(member.host.startswith("127.0.0.1:") for member in description.members)
    for member in (*members, other):
        member.leave()


def test_offsets_go_back_only_when_it_is_said(cluster: Cluster) -> None:
    """A lower commit changes nothing; rewind does; reset does while nobody is there; describe tells the lag."""
    topic = "offsets"
    cluster.create_topic(topic, partitions=1)
    for number in range(10):
        cluster.node(1).log_stub.Produce(produce_request(topic, b"%d" % number), timeout=10)
    stub = groups_pb2_grpc.GroupsStub(cluster.node(2).channel)
    member = Member(cluster.node(1), "off", topic)
    wait_owned(topic, 1, member)
    assert member.commit((topic, 0), 6).committed_offset == 6
    assert member.commit((topic, 0), 4).committed_offset == 6
    assert member.commit((topic, 0), 4, rewind=True).committed_offset == 4
    partition = describe(cluster.node(3), "off").partitions[0]
    assert (partition.lag_records, partition.high_watermark, partition.unknown_lag) == (6, 10, False)
    assert partition.lag_ms > 0
    where = groups_pb2.TopicPartition(topic=topic, partition=0)
    reset = groups_pb2.ResetOffsetsRequest(group="off", resets=[groups_pb2.OffsetReset(partition=where, offset=1)])
    with pytest.raises(grpc.RpcError) as refused:
        stub.ResetOffsets(reset, timeout=10)
    assert error_info(refused.value).reason == "GROUP_NOT_EMPTY"
    member.leave()
    stub.ResetOffsets(reset, timeout=10)
    assert committed(cluster.node(1), "off") == {(topic, 0): 1}
    stub.DeleteGroup(groups_pb2.DeleteGroupRequest(group="off"), timeout=10)
    answer = stub.DescribeGroups(groups_pb2.DescribeGroupsRequest(groups=["off"]), timeout=10)
    assert [error.reason for error in answer.errors] == [errors_pb2.ERROR_REASON_UNKNOWN_GROUP]


def test_topics_may_come_later_grow_and_go(cluster: Cluster) -> None:
    """A topic that is not there is waited for; new partitions are assigned; those of a deleted topic are lost."""
    member = Member(cluster.node(2), "later", "not-yet")
    wait_until(lambda: member.epoch > 0, "joined")
    assert "no such topic" in describe(cluster.node(1), "later").why
    cluster.create_topic("not-yet", partitions=1)
    wait_owned("not-yet", 1, member)
    cluster.node(1).admin.AddPartitions(admin_pb2.AddPartitionsRequest(name="not-yet", total_partitions=3), timeout=10)
    wait_owned("not-yet", 3, member)
    member.commit(("not-yet", 1), 5)
    cluster.node(1).admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name="not-yet"), timeout=10)
    wait_until(lambda: not owned_by(member), "the partitions are lost")
    wait_until(lambda: not committed(cluster.node(3), "later"), "the offsets are forgotten")
    member.leave()


@pytest.mark.parametrize(
    ("join", "reason"),
    [
        (groups_pb2.Join(group="bad name", member_id=bytes(16), topics=["t"]), "INVALID_GROUP_NAME"),
        (groups_pb2.Join(group="g", member_id=b"short", topics=["t"]), "INVALID_ARGUMENT"),
        (groups_pb2.Join(group="g", member_id=bytes(16)), "INVALID_ARGUMENT"),
        (groups_pb2.Join(group="g", member_id=bytes(16), topics=["t"], session_timeout_ms=1), "INVALID_ARGUMENT"),
        (groups_pb2.Join(group="g", member_id=bytes(16), topics=["__consumer_offsets"]), "INVALID_TOPIC_NAME"),
        (None, "INVALID_ARGUMENT"),
    ],
)
def test_bad_joins_are_refused(cluster: Cluster, join: groups_pb2.Join | None, reason: str) -> None:
    """Each with its own reason; a stream that does not begin with Join, too."""
    stub = groups_pb2_grpc.GroupsStub(cluster.node(1).channel)
    first = groups_pb2.MemberMessage(join=join) if join else groups_pb2.MemberMessage(leave=groups_pb2.Leave())
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Join(iter([first]), timeout=10))
    assert code_of(refused.value) is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(refused.value).reason == reason


def test_the_groups_log_belongs_to_the_cluster(cluster: Cluster) -> None:
    """Nobody produces to it, deletes it or gives it more partitions."""
    name = "__consumer_offsets"
    member = Member(cluster.node(1), "any", "shared")
    wait_until(lambda: member.epoch > 0, "joined")
    for call in (
        lambda: cluster.node(1).log_stub.Produce(produce_request(name, b"x"), timeout=10),
        lambda: cluster.node(1).admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name=name), timeout=10),
        lambda: cluster.node(1).admin.AddPartitions(
            admin_pb2.AddPartitionsRequest(name=name, total_partitions=90), timeout=10
        ),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert error_info(refused.value).reason == "PERMISSION_DENIED"
    member.leave()
