"""Requests reach the controller or the leader, here or one hop away; currency of the metadata; waiting for leaders."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from fluxd.broker.administration import Administration, wait_for_leaders
from fluxd.broker.cluster import LeaderHint
from fluxd.broker.controller import Controller, MetadataGroup, TopicResult
from fluxd.broker.currency import MetadataCurrency
from fluxd.broker.metadata import CommittedLog, MetadataFollower
from fluxd.broker.routes import Route
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import apply
from fluxd.core.metadata_snapshot import snapshot
from fluxd.core.state_chunks import state_chunks
from fluxd.core.status import error_message
from fluxd.core.types import METADATA_GROUP, METADATA_TOPIC, GroupId, NodeId, Offset
from fluxd.raft.spec import Role
from fluxlog.v1 import admin_pb2, log_pb2, record_pb2
from tests.unit.broker_fakes import Cluster, FakeGroup, leads, partition

Answer = Callable[[bytes], bytes]


class FakeCalls:
    """Other nodes, as functions from request to answer."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[tuple[NodeId, str]] = []

    async def unary(self, node: NodeId, method: str, request: bytes, *, timeout_s: float, writes: bool) -> bytes:
        self.calls.append((node, method.rpartition("/")[2]))
        await asyncio.sleep(0)
        return self.answers[method.rpartition("/")[2]](request)


class FakeRoutes:
    """Routes over the view, without waiting."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def find(self, topic: str, partition: int, topic_id: bytes) -> Route:
        known = self._cluster.view.topic(topic)
        if known is None:
            raise FluxError(Reason.UNKNOWN_TOPIC, topic, metadata={"topic": topic})
        return Route(known, partition, known.group_id(partition))

    async def await_leader(self, route: Route, seconds: float) -> LeaderHint:
        hint = self.leader(route)
        if hint is None:
            raise FluxError(Reason.NO_LEADER, route.name)
        return hint

    def leader(self, route: Route) -> LeaderHint | None:
        return self._cluster.view.leader(route.group_id)

    def leading(self, route: Route) -> FakeGroup | None:
        group = self._cluster.groups.get(route.group_id)
        return group if group is not None and group.role is Role.LEADER else None

    def named(self, error: FluxError, route: Route) -> FluxError:
        return error


class FakeController:
    """Answers what it is told to."""

    def __init__(self, result: Callable[[], Awaitable[TopicResult]]) -> None:
        self.create_topic = lambda request: result()


class Scene:
    """Node 1, and node 2 as the controller unless told otherwise."""

    def __init__(self, controller: FakeController | None = None) -> None:
        self.cluster = Cluster()
        self.calls = FakeCalls()
        self.calls.answers["ListOffsets"] = self.latest
        self.follower = MetadataFollower(
            self.cluster.clock.reactor, self.cluster.metadata.image, on_fatal=lambda error: None
        )
        self.currency = MetadataCurrency(self.cluster.view, self.follower, None, self.calls)
        self.admin = Administration(
            self.cluster.view,
            FakeRoutes(self.cluster),
            self.currency,
            cast(Controller | None, controller),
            self.calls,
        )
        self.end = 0
        self.cluster.tell(2, leads(METADATA_GROUP, 3))

    def latest(self, request: bytes) -> bytes:
        query = log_pb2.ListOffsetsRequest.FromString(request).queries[0]
        assert (query.topic, query.latest) == (METADATA_TOPIC, True)
        found = log_pb2.OffsetFound(offset=self.end)
        return log_pb2.ListOffsetsResponse(results=[log_pb2.OffsetResult(found=found)]).SerializeToString()

    def create(self, *, forwarded: bool = False, wait_ms: int = 0) -> admin_pb2.CreateTopicResponse:
        request = admin_pb2.CreateTopicRequest(name="orders", wait_ms=wait_ms)
        return asyncio.run(self.admin.create_topic(request, forwarded=forwarded))


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


# ---- currency


def test_confirming_waits_for_what_was_committed() -> None:
    """It returns once this node has applied up to the controller's end; calls at the same time share a round."""
    scene = Scene()
    command = scene.cluster.metadata.commands.delete_topic(b"x" * 16)
    record = record_pb2.Record(value=command.SerializeToString(), offset=0)
    scene.end = 1

    async def confirm() -> None:
        tasks = [asyncio.ensure_future(scene.currency.confirm()) for _ in range(5)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        scene.follower.feed([record])
        await asyncio.gather(*tasks)

    asyncio.run(confirm())
    assert 1 <= len(scene.calls.calls) <= 2


def test_currency_without_a_controller() -> None:
    """`confirm` says that nobody could be asked, or what the controller answered; `refresh` goes on."""
    scene = Scene()
    scene.cluster.view.peer_lost(NodeId(2))
    with pytest.raises(FluxError) as caught:
        asyncio.run(scene.currency.confirm())
    assert caught.value.reason is Reason.NO_CONTROLLER
    asyncio.run(scene.currency.refresh())
    scene.cluster.view.peer_seen(NodeId(2))
    error = error_message(FluxError(Reason.NOT_LEADER, "not any more"), writes=False)
    answer = log_pb2.ListOffsetsResponse(results=[log_pb2.OffsetResult(error=error)]).SerializeToString()
    scene.calls.answers["ListOffsets"] = lambda request: answer
    with pytest.raises(FluxError) as caught:
        asyncio.run(scene.currency.confirm())
    assert caught.value.reason is Reason.NOT_LEADER


def test_a_cut_off_round_confirms_nobody() -> None:
    """When the call that runs a round is cancelled, those who share it are not told that the metadata is current."""
    scene = Scene()
    scene.end = 1

    async def confirm() -> BaseException | None:
        first = asyncio.ensure_future(scene.currency.confirm())
        await asyncio.sleep(0)
        second = asyncio.ensure_future(scene.currency.confirm())
        await asyncio.sleep(0)
        third = asyncio.ensure_future(scene.currency.confirm())
        for _ in range(5):
            await asyncio.sleep(0)
        first.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        return third.exception()

    error = asyncio.run(confirm())
    assert isinstance(error, FluxError)


def test_the_controller_itself_asks_its_majority() -> None:
    """Where this node leads the metadata group it reads the index there."""
    scene = Scene()
    asked: list[Callable[[FluxError | None], None]] = []

    class Leading(FakeGroup):
        def read_index(self, done: Callable[[FluxError | None], None]) -> None:
            asked.append(done)
            done(None)

    group = Leading(METADATA_GROUP, role=Role.LEADER)
    currency = MetadataCurrency(scene.cluster.view, scene.follower, cast(MetadataGroup, group), scene.calls)
    asyncio.run(currency.confirm())
    assert len(asked) == 1
    assert scene.calls.calls == []


def test_metadata_is_fetched_where_no_replica_takes_part() -> None:
    """Records come from the controller, in order, from where this node is."""
    scene = Scene()
    command = scene.cluster.metadata.commands.create_topic("orders", [partition(1, 2, 3)], {})
    offsets: list[int] = []

    def fetch(request: bytes) -> bytes:
        message = log_pb2.FetchRequest.FromString(request)
        offsets.append(message.offset)
        response = log_pb2.FetchResponse()
        if message.offset == 0:
            response.records.add(offset=0, value=command.SerializeToString())
        return response.SerializeToString()

    scene.calls.answers["Fetch"] = fetch

    async def work() -> None:
        task = asyncio.ensure_future(scene.currency.fetch_metadata())
        async with asyncio.timeout(10):
            await scene.follower.wait_applied(Offset(1))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    assert scene.follower.image.topic("orders") is not None
    assert offsets[0] == 0


def test_a_replica_that_stops_itself_is_replaced_by_fetching() -> None:
    """While this node's own replica of the metadata takes part nothing is fetched; once it has failed, the rest is."""
    scene = Scene()
    command = scene.cluster.metadata.commands.create_topic("orders", [partition(1, 2, 3)], {})
    group = FakeGroup(METADATA_GROUP)
    scene.follower.follow(cast(CommittedLog, group))
    currency = MetadataCurrency(scene.cluster.view, scene.follower, cast(MetadataGroup, group), scene.calls)

    def fetch(request: bytes) -> bytes:
        response = log_pb2.FetchResponse()
        if log_pb2.FetchRequest.FromString(request).offset == 0:
            response.records.add(offset=0, value=command.SerializeToString())
        return response.SerializeToString()

    scene.calls.answers["Fetch"] = fetch

    async def work() -> None:
        task = asyncio.ensure_future(currency.fetch_metadata())
        for _ in range(5):
            await asyncio.sleep(0)
        assert scene.calls.calls == []
        group.become(Role.FAILED, 3, None)
        async with asyncio.timeout(10):
            await scene.follower.wait_applied(Offset(1))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    assert scene.follower.image.topic("orders") is not None


def test_a_node_that_fetches_finds_the_state_behind_what_was_trimmed() -> None:
    """It is told where the log begins now, reads on from there, and goes back to where the state was taken."""
    scene = Scene()
    metadata = scene.cluster.metadata
    create = metadata.commands.create_topic("orders", [partition(1, 2, 3)], {})
    there, _ = apply(metadata.image, create)
    (chunk,) = state_chunks(Offset(7), snapshot(there, Offset(7)))
    records = {7: metadata.commands.create_topic("more", [partition(2)], {}), 8: metadata.commands.state_chunk(chunk)}
    asked: list[int] = []

    def fetch(request: bytes) -> bytes:
        offset = log_pb2.FetchRequest.FromString(request).offset
        asked.append(offset)
        if offset < 6:
            raise FluxError(Reason.OFFSET_OUT_OF_RANGE, "a test", metadata={"log_start_offset": "6"})
        response = log_pb2.FetchResponse()
        response.records.add(offset=max(offset, 6), value=records.get(offset, create).SerializeToString())
        return response.SerializeToString()

    scene.calls.answers["Fetch"] = fetch

    async def work() -> None:
        task = asyncio.ensure_future(scene.currency.fetch_metadata())
        async with asyncio.timeout(10):
            await scene.follower.wait_applied(Offset(9))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    assert asked[:6] == [0, 6, 7, 8, 7, 8]
    image = scene.follower.image
    assert (image.topic("orders") is not None, image.topic("more") is not None) == (True, True)


def test_a_copy_that_has_become_the_replica_is_followed() -> None:
    """Fetching ends; it begins again when that replica stops."""
    scene = Scene()
    scene.calls.answers["Fetch"] = lambda request: log_pb2.FetchResponse().SerializeToString()
    group = FakeGroup(METADATA_GROUP)

    async def turns() -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def work() -> None:
        task = asyncio.ensure_future(scene.currency.fetch_metadata())
        await turns()
        assert scene.calls.calls
        scene.currency.group = cast(MetadataGroup, group)
        await turns()
        assert group.on_commit
        fetched = len(scene.calls.calls)
        await turns()
        assert len(scene.calls.calls) == fetched
        group.become(Role.FAILED, 3, None)
        await turns()
        assert len(scene.calls.calls) > fetched
        assert not group.on_commit
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
