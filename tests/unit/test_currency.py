"""Whether this node's metadata are current, and where they come from when no replica of its own takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from fluxd.broker.controller import MetadataGroup
from fluxd.broker.currency import MetadataCurrency
from fluxd.broker.metadata import CommittedLog
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import apply
from fluxd.core.metadata_snapshot import snapshot
from fluxd.core.state_chunks import state_chunks
from fluxd.core.status import error_message
from fluxd.core.types import METADATA_GROUP, NodeId, Offset
from fluxd.raft.spec import Role
from fluxlog.v1 import log_pb2, record_pb2
from tests.unit.broker_fakes import FakeGroup, partition
from tests.unit.broker_scene import Scene


def fetch_until(
    scene: Scene, currency: MetadataCurrency, offset: int, *, first: Callable[[], None] = lambda: None
) -> None:
    """Fetch the metadata until all below an offset is applied; `first` is called when it has begun."""

    async def work() -> None:
        task = asyncio.ensure_future(currency.fetch_metadata())
        for _ in range(5):
            await asyncio.sleep(0)
        first()
        async with asyncio.timeout(10):
            await scene.follower.wait_applied(Offset(offset))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())


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

    fetch_until(scene, scene.currency, 1)
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

    def fail() -> None:
        assert scene.calls.calls == []
        group.become(Role.FAILED, 3, None)

    fetch_until(scene, currency, 1, first=fail)
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

    fetch_until(scene, scene.currency, 9)
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
