"""What a thin consumer tells its coordinator and its client, by what it is told and what it can read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from fluxd.broker.fetch import FetchCall
from fluxd.broker.group_membership import MemberClient, Membership, Messages
from fluxd.broker.group_requests import GroupRequests
from fluxd.broker.thin_consumer import ThinConsumer
from fluxd.broker.thin_reads import ThinReads
from fluxd.core.types import NodeId
from fluxlog.v1 import consume_pb2, groups_pb2, log_pb2

ORDERS = groups_pb2.TopicPartition(topic="orders", topic_id=b"o" * 16, partition=3)
OWNED = consume_pb2.OwnedPartition(topic="orders", partition=3)


class Coordinator:
    """The group's end of the member's stream: says what the test says."""

    def __init__(self) -> None:
        self.stopping = False
        self.says: asyncio.Queue[groups_pb2.CoordinatorMessage] = asyncio.Queue()
        self.heard: asyncio.Queue[groups_pb2.MemberMessage] = asyncio.Queue()

    async def serve(
        self, join: groups_pb2.Join, messages: Messages, client: MemberClient
    ) -> AsyncIterator[groups_pb2.CoordinatorMessage]:
        listening = asyncio.ensure_future(self._listen(messages))
        try:
            joined = groups_pb2.Joined(member_epoch=1, session_timeout_ms=2_500)
            yield groups_pb2.CoordinatorMessage(joined=joined)
            while True:
                yield await self.says.get()
        finally:
            listening.cancel()

    async def _listen(self, messages: Messages) -> None:
        async for message in messages:
            self.heard.put_nowait(message)

    def assign(self, committed_offset: int | None) -> None:
        assigned = groups_pb2.Assigned(generation=1)
        assigned.assignments.add(partition=ORDERS, committed_offset=committed_offset)
        self.says.put_nowait(groups_pb2.CoordinatorMessage(assigned=assigned))

    def revoke(self) -> None:
        revoke = groups_pb2.Revoke(partitions=[ORDERS], deadline_ms=10_000, generation=2)
        self.says.put_nowait(groups_pb2.CoordinatorMessage(revoke=revoke))


class Partition:
    """What is read of the one partition, and where it begins: nothing is known unless the test says so."""

    async def fetch(self, call: FetchCall) -> bytes:
        return cast(bytes, await asyncio.Event().wait())

    async def list_offsets(
        self, request: log_pb2.ListOffsetsRequest, *, forwarded: bool
    ) -> log_pb2.ListOffsetsResponse:
        return cast(log_pb2.ListOffsetsResponse, await asyncio.Event().wait())


class Scene:
    """A thin consumer between its coordinator, a partition, and its client, which is the test."""

    def __init__(self) -> None:
        self.coordinator, self.partition = Coordinator(), Partition()
        self.consumer = ThinConsumer(
            cast(Membership, self.coordinator),
            cast(GroupRequests, None),
            ThinReads(self.partition, self.partition),
            consume_pb2.Subscribe(group="g", topics=["orders"], credits=10, member_id=b"m" * 16),
            MemberClient("h", NodeId(1), forwarded=False),
            lambda: b"n" * 16,
        )

    async def owned(self) -> list[consume_pb2.OwnedPartition]:
        """What the client is told next that it owns."""
        while (response := await self.consumer.next_response()) is not None:
            if response.HasField("changed"):
                return list(response.changed.owned)
        raise AssertionError("the stream is over")


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    being = asyncio.ensure_future(made.consumer.be_member())
    being.add_done_callback(made.consumer.task_ended)
    try:
        yield made
    finally:
        made.consumer.close()
        being.cancel()
        await asyncio.gather(being, return_exceptions=True)


def run(test: Callable[[Scene], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with asyncio.timeout(10), scene() as made:
            await test(made)

    asyncio.run(inside())


def test_a_partition_that_is_not_begun_is_given_up_by_its_id() -> None:
    """Where it begins is not known yet when it is revoked: it is released as the coordinator knows it, at once, and the
    client is told.
    """

    async def test(made: Scene) -> None:
        made.coordinator.assign(committed_offset=None)
        assert await made.owned() == [OWNED]
        made.coordinator.revoke()
        heard = await made.coordinator.heard.get()
        assert heard == groups_pb2.MemberMessage(released=groups_pb2.Released(partitions=[ORDERS]))
        assert await made.owned() == []

    run(test)
