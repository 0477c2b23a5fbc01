"""Requests reach the controller or the leader, here or one hop away; waiting for leaders."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from fluxd.broker.administration import Administration, wait_for_leaders
from fluxd.broker.controller import Controller, TopicResult
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import METADATA_GROUP, METADATA_TOPIC, GroupId, Offset
from fluxd.raft.spec import Role
from fluxlog.v1 import admin_pb2
from tests.unit.broker_fakes import Cluster, FakeGroup, leads, partition
from tests.unit.broker_scene import FakeController, FakeRoutes, Scene


def created(request: bytes) -> bytes:
    name = admin_pb2.CreateTopicRequest.FromString(request).name
    return admin_pb2.CreateTopicResponse(name=name, created=True, partitions=1).SerializeToString()


def test_a_change_goes_to_the_controller() -> None:
    """One hop, and then this node's own metadata is brought up to date."""
    scene = Scene()
    scene.calls.answers["CreateTopic"] = created
    assert scene.create().created
    assert scene.calls.calls == [(2, "CreateTopic"), (2, "ListOffsets")]


def test_a_forwarded_change_is_not_passed_on() -> None:
    """Whoever gets a forwarded request and is not the controller says so."""
    scene = Scene()
    with pytest.raises(FluxError) as caught:
        scene.create(forwarded=True)
    assert caught.value.reason is Reason.NOT_LEADER
    assert scene.calls.calls == []


def test_a_change_is_made_here_by_the_controller() -> None:
    """On the controller itself nothing is passed on."""
    scene = Scene()
    topic_id = scene.cluster.topic("orders", partition(1, 2, 3))
    result = TopicResult(scene.cluster.view.image.topics[topic_id], changed=True)

    async def make() -> TopicResult:
        return result

    scene.admin = Administration(
        scene.cluster.view,
        FakeRoutes(scene.cluster),
        scene.currency,
        cast(Controller, FakeController(make)),
        scene.calls,
    )
    group = scene.cluster.groups[METADATA_GROUP] = FakeGroup(METADATA_GROUP)
    group.become(Role.LEADER, 4, 1)
    response = scene.create()
    assert (response.topic_id, response.created, response.replication_factor) == (topic_id, True, 3)
    assert scene.calls.calls == []


def test_a_refusal_for_want_of_leadership_is_tried_again() -> None:
    """NOT_LEADER wrote nothing: asked again; another refusal is the caller's at once."""
    scene = Scene()
    tries: list[int] = []

    def answer(request: bytes) -> bytes:
        tries.append(1)
        if len(tries) < 3:
            raise FluxError(Reason.NOT_LEADER, "no longer")
        return created(request)

    scene.calls.answers["CreateTopic"] = answer
    assert scene.create().created
    assert len(tries) == 3

    def exists(request: bytes) -> bytes:
        raise FluxError(Reason.TOPIC_EXISTS, "exists")

    scene.calls.answers["CreateTopic"] = exists
    with pytest.raises(FluxError) as caught:
        scene.create()
    assert caught.value.reason is Reason.TOPIC_EXISTS


def test_an_unknown_outcome_is_not_tried_again() -> None:
    """A lost answer may stand for a change that was made."""
    scene = Scene()

    def lost(request: bytes) -> bytes:
        raise FluxError(Reason.OUTCOME_UNKNOWN, "lost")

    scene.calls.answers["CreateTopic"] = lost
    with pytest.raises(FluxError) as caught:
        scene.create()
    assert caught.value.reason is Reason.OUTCOME_UNKNOWN
    assert [method for _, method in scene.calls.calls] == ["CreateTopic"]


def test_a_transfer_is_done_by_the_leader() -> None:
    """Here when this node leads, and it ends when the new leader is known; a node without a replica is UNKNOWN_NODE."""
    scene = Scene()
    cluster = scene.cluster
    group = cluster.groups[GroupId(cluster.topic("orders", partition(1, 2)), 0)]
    group.become(Role.LEADER, 3, 1)

    async def transfer(to: int) -> admin_pb2.TransferLeadershipResponse:
        request = admin_pb2.TransferLeadershipRequest(topic="orders", partition=0, to_node=to)
        task = asyncio.ensure_future(scene.admin.transfer_leadership(request, forwarded=False))
        await asyncio.sleep(0)
        if group.transfers:
            group.become(Role.FOLLOWER, 4, 2)
        return await task

    with pytest.raises(FluxError) as caught:
        asyncio.run(transfer(3))
    assert caught.value.reason is Reason.UNKNOWN_NODE
    assert asyncio.run(transfer(1)).leader_node == 1
    assert group.transfers == []
    response = asyncio.run(transfer(2))
    assert group.transfers == [2]
    assert (response.leader_node, response.leader_epoch) == (2, 4)


def test_records_are_deleted_by_the_leader() -> None:
    """The answer says where the partition begins now; a refusal is passed on, the cluster's own topics are safe."""
    scene = Scene()
    group = scene.cluster.groups[GroupId(scene.cluster.topic("orders", partition(1, 2)), 0)]
    group.become(Role.LEADER, 3, 1)
    group.high_watermark = Offset(10)
    request = admin_pb2.DeleteRecordsRequest(topic="orders", before_offset=7)
    response = asyncio.run(scene.admin.delete_records(request, forwarded=False))
    assert (response.log_start_offset, response.high_watermark) == (7, 10)
    group.confirmed_high_watermark = Offset(11)  # a new leader's own is behind what its predecessor has told
    request.before_offset = 11
    response = asyncio.run(scene.admin.delete_records(request, forwarded=False))
    assert (response.log_start_offset, response.high_watermark) == (11, 11)
    group.refusal = FluxError(Reason.OFFSET_OUT_OF_RANGE, "behind the end")
    with pytest.raises(FluxError, match="behind the end"):
        asyncio.run(scene.admin.delete_records(request, forwarded=False))
    request.topic = METADATA_TOPIC
    with pytest.raises(FluxError) as caught:
        asyncio.run(scene.admin.delete_records(request, forwarded=False))
    assert caught.value.reason is Reason.PERMISSION_DENIED


def test_a_transfer_is_passed_on_to_the_leader() -> None:
    """One hop to the node that leads."""
    scene = Scene()
    group_id = GroupId(scene.cluster.topic("orders", partition(2, 3)), 0)
    scene.cluster.tell(2, leads(group_id, 5), leads(METADATA_GROUP, 3))
    scene.calls.answers["TransferLeadership"] = lambda request: admin_pb2.TransferLeadershipResponse(
        leader_node=3
    ).SerializeToString()
    request = admin_pb2.TransferLeadershipRequest(topic="orders", partition=0, to_node=3)
    assert asyncio.run(scene.admin.transfer_leadership(request, forwarded=False)).leader_node == 3
    with pytest.raises(FluxError) as caught:
        asyncio.run(scene.admin.transfer_leadership(request, forwarded=True))
    assert caught.value.reason is Reason.NOT_LEADER


def test_lists_and_descriptions() -> None:
    """Sorted by name, internal topics on demand only; unknown names are errors beside the others; healthy ones can be
    left out.
    """
    scene = Scene()
    scene.cluster.topic("b", partition(1, 2, 3))
    a = scene.cluster.topic("a", partition(1, 2, 3), partition(2, 3, 1))
    topics = asyncio.run(scene.admin.list_topics(admin_pb2.ListTopicsRequest())).topics
    assert [topic.name for topic in topics] == ["a", "b"]
    everything = asyncio.run(scene.admin.list_topics(admin_pb2.ListTopicsRequest(include_internal=True))).topics
    assert [topic.name for topic in everything] == [METADATA_TOPIC, "a", "b"]

    def describe(**fields: object) -> admin_pb2.DescribeTopicsResponse:
        request = admin_pb2.DescribeTopicsRequest(**fields)  # type: ignore[arg-type]
        return asyncio.run(scene.admin.describe_topics(request))

    some = describe(names=["b", "nothing", "b"])
    assert [topic.name for topic in some.topics] == ["b"]
    assert [(error.reason, error.metadata["topic"]) for error in some.errors] == [
        (Reason.UNKNOWN_TOPIC.value, "nothing")
    ]
    assert [topic.name for topic in describe(names=[METADATA_TOPIC]).topics] == [METADATA_TOPIC]
    group = scene.cluster.groups[GroupId(a, 0)]
    group.become(Role.LEADER, 3, 1)
    group.in_sync = {2, 3}
    scene.cluster.tell(2)
    scene.cluster.tell(3)
    ill = describe(under_replicated_only=True)
    assert [(topic.name, [p.partition for p in topic.partitions]) for topic in ill.topics] == [("a", [1]), ("b", [0])]


def test_waiting_for_leaders() -> None:
    """It ends when the last partition has one, or when the time is up."""
    cluster = Cluster()
    topic_id = cluster.topic("orders", partition(1, 2, 3), partition(2, 3, 1))
    groups = [GroupId(topic_id, 0), GroupId(topic_id, 1)]

    async def wait() -> tuple[bool, bool]:
        early = await wait_for_leaders(cluster.view, groups, 0.001)
        task = asyncio.ensure_future(wait_for_leaders(cluster.view, groups, 60.0))
        await asyncio.sleep(0)
        cluster.groups[groups[0]].become(Role.LEADER, 3, 1)
        await asyncio.sleep(0)
        assert not task.done()
        cluster.tell(2, leads(groups[1], 3))
        return early, await task

    assert asyncio.run(wait()) == (False, True)
    assert asyncio.run(wait_for_leaders(cluster.view, groups, 60.0))
