"""What a thin consumer tells its coordinator and its client, by what it is told and what it can read."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
from structlog.testing import capture_logs

from fluxd.broker.coordinator_session import taken_over
from fluxd.broker.fetch import FetchCall
from fluxd.broker.group_membership import MemberClient, Membership, Messages
from fluxd.broker.group_requests import GroupRequests
from fluxd.broker.thin_consumer import ThinConsumer
from fluxd.broker.thin_reads import ThinReads
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxlog.v1 import consume_pb2, groups_pb2, log_pb2, record_pb2

END = 100
CREDITS = 10
BAD = range(2, 40)


def orders(partition: int) -> groups_pb2.TopicPartition:
    return groups_pb2.TopicPartition(topic="orders", topic_id=b"o" * 16, partition=partition)


class Coordinator:
    """The group's end of the member's stream: says what the test says."""

    def __init__(self) -> None:
        self.stopping = False
        self.says: asyncio.Queue[groups_pb2.CoordinatorMessage | FluxError] = asyncio.Queue()
        self.joins: list[bytes] = []
        """With which member ids."""
        self.resumed = False
        """Who joins was a member all the time."""
        self.heard: asyncio.Queue[groups_pb2.MemberMessage] = asyncio.Queue()

    async def serve(
        self, join: groups_pb2.Join, messages: Messages, client: MemberClient
    ) -> AsyncIterator[groups_pb2.CoordinatorMessage]:
        listening = asyncio.ensure_future(self._listen(messages))
        try:
            self.joins.append(join.member_id)
            joined = groups_pb2.Joined(member_epoch=1, session_timeout_ms=2_500, resumed=self.resumed)
            yield groups_pb2.CoordinatorMessage(joined=joined)
            while not isinstance(said := await self.says.get(), FluxError):
                yield said
            raise said
        finally:
            listening.cancel()

    async def _listen(self, messages: Messages) -> None:
        async for message in messages:
            self.heard.put_nowait(message)

    def assign(self, *partitions: int, committed_offset: int | None = 0) -> None:
        assigned = groups_pb2.Assigned(generation=1)
        for partition in partitions:
            assigned.assignments.add(partition=orders(partition), committed_offset=committed_offset)
        self.says.put_nowait(groups_pb2.CoordinatorMessage(assigned=assigned))

    def revoke(self, partition: int) -> None:
        revoke = groups_pb2.Revoke(partitions=[orders(partition)], deadline_ms=10_000, generation=2)
        self.says.put_nowait(groups_pb2.CoordinatorMessage(revoke=revoke))


class Partitions:
    """What is read: END records in each partition, but for those that cannot be delivered. Where a partition begins is
    never found out.
    """

    def __init__(self, *, endless: tuple[int, ...] = ()) -> None:
        self.bad: dict[int, range] = {}
        """By partition: offsets that cannot be delivered."""
        self.failures: list[FluxError] = []
        """Of the next reads."""
        self._endless = endless

    async def fetch(self, call: FetchCall) -> bytes:
        if self.failures:
            raise self.failures.pop()
        bad = self.bad.get(call.partition, range(END, END))
        if call.offset in bad:
            metadata = {"base_offset": str(bad.start), "next_offset": str(bad.stop)}
            raise FluxError(Reason.CORRUPT_BATCH, f"orders-{call.partition}: no good", metadata=metadata)
        end = bad.start if call.offset < bad.start else END
        if call.partition in self._endless:
            end = call.offset + END
        elif call.offset == end:
            await asyncio.Event().wait()
        records = [record_pb2.Record(offset=offset) for offset in range(call.offset, end)]
        return log_pb2.FetchResponse(records=records).SerializeToString()

    async def list_offsets(
        self, request: log_pb2.ListOffsetsRequest, *, forwarded: bool
    ) -> log_pb2.ListOffsetsResponse:
        return cast(log_pb2.ListOffsetsResponse, await asyncio.Event().wait())


class Commits:
    """The group's committed offsets."""

    def __init__(self) -> None:
        self._committed: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    async def commit_offsets(
        self, request: groups_pb2.CommitOffsetsRequest, *, forwarded: bool
    ) -> groups_pb2.CommitOffsetsResponse:
        for each in request.offsets:
            self._committed.put_nowait((each.partition, each.offset))
        results = [groups_pb2.OffsetCommitResult(committed_offset=each.offset) for each in request.offsets]
        return groups_pb2.CommitOffsetsResponse(results=results)

    async def until(self, partition: int, offset: int) -> None:
        """Until this is committed, and no offset above it before."""
        committed = -1
        while committed < offset:
            of, number = await self._committed.get()
            committed = number if of == partition else committed
        assert committed == offset

    async def until_past(self, partition: int, offset: int) -> None:
        """Until an offset above this is committed."""
        committed = (-1, -1)
        while committed[0] != partition or committed[1] <= offset:
            committed = await self._committed.get()


class Scene:
    """A thin consumer between its coordinator, partitions and a client, which acknowledges the records that it gets."""

    def __init__(self, reads: ThinReads, *, group: str, accepts_undeliverable: bool) -> None:
        self.coordinator, self.commits = Coordinator(), Commits()
        subscribe = consume_pb2.Subscribe(
            group=group,
            topics=["orders"],
            credits=CREDITS,
            member_id=b"m" * 16,
            accepts_undeliverable=accepts_undeliverable,
        )
        self.consumer = ThinConsumer(
            cast(Membership, self.coordinator), cast(GroupRequests, self.commits), reads, subscribe,
            MemberClient("h", NodeId(1), forwarded=False), lambda: b"n" * 16,
        )  # fmt: skip
        self.subscribed: list[bytes] = []
        """Member ids that the client was told."""
        self.owned: list[int] | None = None
        """As the client was told last."""
        self.offsets: defaultdict[int, list[int]] = defaultdict(list)
        """Delivered, by partition."""
        self.undeliverable: list[consume_pb2.Undeliverable] = []
        self.skips: set[tuple[int, int]] = set()
        """Partitions and offsets that are not acknowledged."""
        self._acks: asyncio.Queue[consume_pb2.ConsumeRequest] = asyncio.Queue()

    async def requests(self) -> AsyncIterator[consume_pb2.ConsumeRequest]:
        """What the client sends."""
        while True:
            yield await self._acks.get()

    def ack(self, partition: int, first: int, last: int) -> None:
        ack = consume_pb2.Ack(topic="orders", partition=partition, first_offset=first, last_offset=last)
        self._acks.put_nowait(consume_pb2.ConsumeRequest(ack=ack))

    async def until(self, ready: Callable[[], object]) -> None:
        """Be the client until something is so."""
        while not ready():
            response = await self.consumer.next_response()
            assert response is not None, "the stream is over"
            match response.WhichOneof("body"):
                case "subscribed":
                    self.subscribed.append(response.subscribed.member_id)
                case "changed":
                    self.owned = [each.partition for each in response.changed.owned]
                case "undeliverable":
                    self.undeliverable.append(response.undeliverable)
                case "delivery":
                    delivery = response.delivery
                    self.offsets[delivery.partition] += [record.offset for record in delivery.records]
                    for record in delivery.records:
                        if (delivery.partition, record.offset) not in self.skips:
                            self.ack(delivery.partition, record.offset, record.offset)


@asynccontextmanager
async def scene(
    partitions: Partitions, reads: ThinReads | None = None, *, group: str = "g", accepts_undeliverable: bool = False
) -> AsyncIterator[Scene]:
    reads = reads or ThinReads(partitions, partitions)
    made = Scene(reads, group=group, accepts_undeliverable=accepts_undeliverable)
    works = (made.consumer.be_member(), made.consumer.commit_all(), made.consumer.obey(made.requests()))
    tasks = [asyncio.ensure_future(work) for work in works]
    for task in tasks:
        task.add_done_callback(made.consumer.task_ended)
    try:
        yield made
    finally:
        made.consumer.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(inside())


def test_a_partition_that_is_not_begun_is_given_up_by_its_id() -> None:
    """Where it begins is not known yet when it is revoked: it is released as the coordinator knows it, at once, and the
    client is told.
    """

    async def test() -> None:
        async with scene(Partitions()) as made:
            made.coordinator.assign(3, committed_offset=None)
            await made.until(lambda: made.owned == [3])
            made.coordinator.revoke(3)
            heard = await made.coordinator.heard.get()
            assert heard == groups_pb2.MemberMessage(released=groups_pb2.Released(partitions=[orders(3)]))
            await made.until(lambda: made.owned == [])

    run(test)


def test_what_fails_for_now_is_tried_again() -> None:
    """Also a topic that is not known: its coordinator says when it is gone."""

    async def test() -> None:
        partitions = Partitions()
        partitions.failures.append(FluxError(Reason.UNKNOWN_TOPIC, "not heard of yet"))
        async with scene(partitions) as made:
            made.coordinator.assign(3)
            await made.until(lambda: made.offsets[3] == list(range(END)))
            assert not partitions.failures, "it met the failure"
            assert not made.undeliverable

    run(test)


def test_who_is_taken_over_ends() -> None:
    """The client goes on over another stream, with the same member: this one is not to become a second member."""

    async def test() -> None:
        async with scene(Partitions()) as made:
            made.coordinator.assign(0)
            await made.until(lambda: made.owned == [0])
            made.coordinator.says.put_nowait(taken_over())
            with pytest.raises(FluxError) as caught:
                await made.until(lambda: False)
            assert caught.value.reason is Reason.FENCED_MEMBER
            assert made.coordinator.joins == [b"m" * 16]

    run(test)


def test_who_was_away_for_too_long_is_another_member_and_says_so() -> None:
    """With the new id the client can come back; what it had is another's, until it is assigned anew."""

    async def test() -> None:
        async with scene(Partitions()) as made:
            made.coordinator.assign(0)
            await made.until(lambda: made.owned == [0])
            made.coordinator.says.put_nowait(FluxError(Reason.FENCED_MEMBER, "no member any more"))
            await made.until(lambda: len(made.subscribed) == 2)
            assert made.subscribed == made.coordinator.joins == [b"m" * 16, b"n" * 16]
            made.coordinator.assign(1)
            await made.until(lambda: made.owned != [0])
            assert made.owned == [1]

    run(test)


@pytest.mark.parametrize("resumed", [True, False])
def test_what_was_taken_meanwhile_begins_at_what_the_group_has(resumed: bool) -> None:
    """Who comes back with its id, and was removed in between, does not go on where it was."""

    async def test() -> None:
        async with scene(Partitions()) as made:
            made.coordinator.assign(0)
            await made.until(lambda: made.offsets[0] == list(range(END)))
            made.coordinator.resumed = resumed
            made.coordinator.says.put_nowait(FluxError(Reason.NOT_LEADER, "the coordinator has moved"))
            made.coordinator.assign(0, 1, committed_offset=40)
            await made.until(lambda: made.owned == [0, 1] and len(made.offsets[1]) == 60)
            await made.until(lambda: resumed or made.offsets[0][END:] == list(range(40, END)))
            assert resumed == (len(made.offsets[0]) == END)
            assert made.subscribed == [b"m" * 16]

    run(test)


def test_a_record_that_is_not_acknowledged_holds_its_partition_back_sooner_or_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the node would remember what was acknowledged behind it without end. Other partitions go on."""
    monkeypatch.setattr(limits, "THIN_SPREAD_MAX", 200)

    async def test() -> None:
        async with scene(Partitions(endless=(0, 1))) as made:
            made.skips = {(0, 5)}
            made.coordinator.assign(0, 1)
            await made.until(lambda: made.offsets[1][-1:] > [1_000])
            held_at = made.offsets[0][-1]
            assert 5 + 200 <= held_at <= 5 + 200 + CREDITS
            made.ack(0, 5, 5)
            await made.until(lambda: made.offsets[0][-1] > 1_000)
            await made.commits.until_past(0, held_at)

    run(test)


def test_what_cannot_be_delivered_is_stepped_over_by_an_acknowledgement() -> None:
    """The client is told what and why. The partition stands there, and so does the group's offset; the other one goes
    on to its end. When it is acknowledged the partition goes on behind, and that is committed.
    """

    async def test() -> None:
        partitions = Partitions()
        partitions.bad[3] = BAD
        async with scene(partitions, accepts_undeliverable=True) as made:
            made.coordinator.assign(3, 4)
            await made.until(lambda: len(made.offsets[4]) == END and made.undeliverable)
            await made.commits.until(3, BAD.start)
            (told,) = made.undeliverable
            assert (told.topic, told.partition) == ("orders", 3)
            assert range(told.first_offset, told.last_offset + 1) == BAD
            assert (told.error.reason, told.error.message) == (Reason.CORRUPT_BATCH.value, "orders-3: no good")
            assert not told.error.retriable
            assert told.error.metadata["next_offset"] == str(BAD.stop)
            assert made.offsets[3] == [*range(BAD.start)]
            made.ack(3, told.first_offset, told.last_offset)
            await made.commits.until(3, BAD.stop)
            await made.until(lambda: made.offsets[3] == [*range(BAD.start), *range(BAD.stop, END)])
            await made.commits.until(3, END)
            assert len(made.undeliverable) == 1

    run(test)


def test_who_does_not_ask_for_it_is_told_by_the_end_of_the_stream() -> None:
    """With the same error, after what was read before; a partition that always has more does not keep it away."""

    async def test() -> None:
        partitions = Partitions(endless=(4,))
        partitions.bad[3] = BAD
        async with scene(partitions) as made:
            made.coordinator.assign(3, 4)
            with pytest.raises(FluxError) as ended:
                await made.until(lambda: False)
            assert made.offsets[3] == [*range(BAD.start)]
            assert ended.value.reason is Reason.CORRUPT_BATCH
            assert ended.value.metadata["next_offset"] == str(BAD.stop)

    run(test)


def test_the_operator_is_warned_once_in_a_while() -> None:
    """However often clients of a group come back to the same record."""

    async def test() -> None:
        partitions = Partitions()
        partitions.bad[3] = BAD
        reads = ThinReads(partitions, partitions)
        for group in ("g", "g", "g", "h"):
            async with scene(partitions, reads, group=group) as made:
                made.coordinator.assign(3)
                with pytest.raises(FluxError):
                    await made.until(lambda: False)

    with capture_logs() as logs:
        run(test)
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [(entry["event"], entry["group"]) for entry in warnings] == [
        ("records_undeliverable", "g"),
        ("records_undeliverable", "h"),
    ]
    assert (warnings[0]["partition"], warnings[0]["reason"]) == ("orders-3", "CORRUPT_BATCH")
    assert (warnings[0]["base_offset"], warnings[0]["next_offset"]) == (str(BAD.start), str(BAD.stop))
