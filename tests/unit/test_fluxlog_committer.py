"""What the library commits when a partition is sought: against the server's own rules for committed offsets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fluxlog import Consumer, TopicPartition
from fluxlog.aio import committer as committing
from fluxlog.aio.committer import Committer
from fluxlog.aio.connection import Connection
from fluxlog.aio.feed import Track
from fluxlog.errors import FluxlogError
from fluxlog.v1 import groups_pb2
from tests.group_kit import TOPIC, GroupLab


class Server(Connection):
    """The coordinator's state machine; a member owns two partitions."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.lab = GroupLab()
        self.lab.join(1)
        self.lab.balance(partitions=2)
        self.requests = 0
        self.before_answering: list[Callable[[], None]] = []
        """One for each request to come: called when it has been carried out."""

    async def call(self, method: object, request: Any, **options: object) -> Any:
        """CommitOffsets."""
        assert isinstance(request, groups_pb2.CommitOffsetsRequest)
        self.requests += 1
        answer = groups_pb2.CommitOffsetsResponse()
        for item in request.offsets:
            committed = self.lab.commit(self.lab.member(1), item.partition, item.offset, rewind=item.rewind).committed
            answer.results.add(topic=item.topic, partition=item.partition, committed_offset=committed[0])
        if self.before_answering:
            self.before_answering.pop(0)()
        return answer


class Scene:
    """A consumer that reads two partitions, from 90 on, which is committed."""

    def __init__(self) -> None:
        self.server = Server()
        self.consumer = Consumer(self.server, "t")
        self.tracks: list[Track] = []
        for number in range(2):
            self.server.lab.commit(self.server.lab.member(1), number, 90)
            where = TopicPartition("t", number)
            self.consumer._feed.add(where, TOPIC, 90, committed=90)
            self.tracks.append(self.consumer._feed.tracks[where])
        member = self.server.lab.member(1)
        self.committer = Committer(
            self.server, "g", identity=lambda: (member.member_id, member.epoch),
            tracks=self.consumer._feed.tracks.values, handled=self.consumer._hand.handled,
            busy=lambda: self.consumer._hand.busy, interval=0.0,
        )  # fmt: skip

    def handle(self, number: int, offset: int) -> None:
        """Everything below it."""
        self.tracks[number].position = self.tracks[number].handled = offset

    async def commit(self, offset_of: Callable[[Track], int] | None = None) -> None:
        """What has been handled."""
        await self.committer.commit(self.tracks, offset_of=offset_of)

    def committed(self) -> list[int | None]:
        """As the server has it."""
        return [self.server.lab.committed(number) for number in range(2)]


def run(scene_of: Callable[[Scene], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            scene = Scene()
            try:
                await scene_of(scene)
            finally:
                await scene.consumer.close()
                await scene.server.close()

    asyncio.run(bounded())


@pytest.fixture
def one_a_request() -> Iterator[None]:
    """So that the second partition's commit is sent when the first one's has been answered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(committing, "_ITEMS_MAX", 1)
        yield


@pytest.mark.parametrize("sought", [50, 95], ids=["below what was committed", "above it"])
def test_a_seek_back_while_a_commit_is_on_its_way_is_committed_by_the_next_one(sought: int) -> None:
    async def scene_of(scene: Scene) -> None:
        scene.handle(0, 100)
        scene.server.before_answering.append(lambda: scene.consumer.seek("t", 0, sought))
        await scene.commit()
        assert scene.committed() == [100, 90]
        scene.handle(0, sought + 1)
        await scene.commit()
        assert scene.committed() == [sought + 1, 90]

    run(scene_of)


@pytest.mark.usefixtures("one_a_request")
def test_a_seek_back_between_two_requests_of_a_commit_is_not_taken_for_committed() -> None:
    async def scene_of(scene: Scene) -> None:
        scene.handle(0, 100)
        scene.handle(1, 100)
        scene.server.before_answering.append(lambda: scene.consumer.seek("t", 1, 50))
        await scene.commit()
        assert scene.server.requests == 2
        await scene.commit()
        assert scene.committed() == [100, 50]

    run(scene_of)


def test_a_seek_to_the_record_in_hand_takes_back_that_it_was_committed() -> None:
    """Also after the background has looked, for which that record is not handled."""

    async def scene_of(scene: Scene) -> None:
        scene.handle(0, 100)
        await scene.commit(lambda track: track.position + 1 if track is scene.tracks[0] else track.position)
        await scene.commit()
        assert scene.committed() == [101, 90]
        scene.consumer.seek("t", 0, 100)
        await scene.commit()
        assert scene.committed() == [100, 90]

    run(scene_of)


def test_what_would_change_nothing_is_not_sent() -> None:
    """The record in hand was committed; until it is handled there is no news."""

    async def scene_of(scene: Scene) -> None:
        await scene.commit(lambda track: track.position + 1)
        assert scene.server.requests == 1
        await scene.commit()
        assert scene.server.requests == 1
        scene.handle(0, 92)
        await scene.commit()
        assert scene.server.requests == 2
        assert scene.committed() == [92, 91]

    run(scene_of)


def test_a_seek_whose_commit_failed_is_committed_by_the_next_one() -> None:
    async def scene_of(scene: Scene) -> None:
        def fail() -> None:
            raise FluxlogError("UNAVAILABLE", "the answer is lost", retriable=True)

        scene.consumer.seek("t", 0, 50)
        scene.server.before_answering.append(fail)
        with pytest.raises(FluxlogError, match="lost"):
            await scene.commit()
        scene.consumer.seek("t", 0, 40)
        await scene.commit()
        assert scene.committed() == [40, 90]

    run(scene_of)
