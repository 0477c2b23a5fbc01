"""A group consumer on behalf of a client that has a stub and nothing else: one stream of consume.proto.

Inside the node it is what a client library is outside: a member of the group (through this node's `Membership`,
wherever the coordinator is), a reader of the partitions it owns (through `ThinReads`, wherever they are), and it
commits what the client acknowledged. A coordinator that moves is not seen by the client. When the membership cannot be
renewed within the session's time, delivery stops: by then another member may have the partitions.

What is in memory for a client is bounded: its credits in records, one fetch for each partition, a few responses, and
for each partition which records were acknowledged behind one that is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from fluxd.broker.coordinator_session import TAKEN_OVER
from fluxd.broker.group_membership import MemberClient, Membership
from fluxd.broker.group_requests import GroupRequests
from fluxd.broker.thin_partition import ThinPartition
from fluxd.broker.thin_reads import ThinReads
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_message
from fluxd.observability import get_logger
from fluxlog.v1 import consume_pb2, groups_pb2, log_pb2, record_pb2

log = get_logger()

_RETRY = 0.1
_LAST_COMMITS = 20
"""Tries, before a client that leaves is let go: what is not committed is delivered again."""
_RESPONSES_WAITING = 8

Key = tuple[str, int]
Requests = AsyncIterator[consume_pb2.ConsumeRequest]
Content = consume_pb2.Delivery | consume_pb2.Undeliverable


class ThinConsumer:
    """One client's stream. See the module."""

    def __init__(
        self,
        membership: Membership,
        groups: GroupRequests,
        reads: ThinReads,
        subscribe: consume_pb2.Subscribe,
        client: MemberClient,
        new_id: Callable[[], bytes],
    ) -> None:
        self._membership, self._groups, self._reads = membership, groups, reads
        self._subscribe, self._client, self._new_id = subscribe, client, new_id
        self._credits = subscribe.credits
        self._credit_came = asyncio.Event()
        self._owned: dict[Key, ThinPartition] = {}
        self._reading: dict[Key, asyncio.Task[None]] = {}
        self._responses: asyncio.Queue[consume_pb2.ConsumeResponse] = asyncio.Queue(_RESPONSES_WAITING)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outgoing: asyncio.Queue[groups_pb2.MemberMessage | None] = asyncio.Queue()
        self._epoch = 0
        self._first_assignment = False
        self._owned_as_told: list[Key] = []
        self._leaving = False
        self._acknowledged = asyncio.Event()
        self._lapse: asyncio.TimerHandle | None = None

    # ---- the client's side

    async def next_response(self) -> consume_pb2.ConsumeResponse | None:
        """What goes out next; None: the stream is over.

        Raises:
            FluxError: it is over because of this.
        """
        waiting = asyncio.ensure_future(self._responses.get())
        try:
            either: list[asyncio.Future[Any]] = [waiting, self._ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            self._ended.result()
            return None
        finally:
            waiting.cancel()

    def task_ended(self, task: asyncio.Future[None]) -> None:
        """One of the stream's tasks is over: so is the stream, after what waits to go out."""
        error = None if task.cancelled() else task.exception()
        if self._ended.done() or task.cancelled():
            return
        if error is not None:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)
        self._stop_reading()  # a busy partition would keep the end from the client

    def _stop_reading(self) -> None:
        for task in self._reading.values():
            task.cancel()

    def close(self) -> None:
        """Stop reading."""
        if self._lapse is not None:
            self._lapse.cancel()
        self._stop_reading()
        if self._ended.done() and not self._ended.cancelled():
            self._ended.exception()  # it is known, or nobody is there to be told

    async def obey(self, requests: Requests) -> None:
        """Take what the client sends; at its end, leave the group, and wait until the stream is over by that."""
        async for request in requests:
            match request.WhichOneof("body"):
                case "ack":
                    self._acknowledge(request.ack)
                case "leave":
                    break
                case _:
                    raise FluxError(Reason.INVALID_ARGUMENT, "after Subscribe: Ack or LeaveGroup, one each message")
        for key in tuple(self._reading):
            self._reading.pop(key).cancel()
        for _ in range(_LAST_COMMITS):
            if await self._commit(self._owned.values()):
                break
            await asyncio.sleep(_RETRY)
        self._leaving = True
        self._outgoing.put_nowait(groups_pb2.MemberMessage(leave=groups_pb2.Leave()))
        await asyncio.Event().wait()

    def _acknowledge(self, ack: consume_pb2.Ack) -> None:
        owned = self._owned.get((ack.topic, ack.partition))
        if owned is None:
            return
        if ack.last_offset < ack.first_offset:
            raise FluxError(Reason.INVALID_ARGUMENT, f"last_offset {ack.last_offset} is below {ack.first_offset}")
        self._give_credit(owned.acknowledge(ack.first_offset, ack.last_offset))
        self._acknowledged.set()

    def _give_credit(self, count: int) -> None:
        self._credits += count
        self._credit_came.set()

    # ---- the member

    async def be_member(self) -> None:
        """Be a member until the client leaves.

        Raises:
            FluxError: what trying again does not help against.
        """
        id_told = b""
        while True:
            self._outgoing = asyncio.Queue()
            join = groups_pb2.Join(
                group=self._subscribe.group, member_id=self._subscribe.member_id, topics=self._subscribe.topics,
                client_name=self._subscribe.client_name, session_timeout_ms=self._subscribe.session_timeout_ms,
                rebalance_timeout_ms=self._subscribe.rebalance_timeout_ms,
            )  # fmt: skip
            try:
                messages = self._membership.serve(join, _until_none(self._outgoing), self._client)
                async with aclosing(messages):  # type: ignore[type-var]
                    async for message in messages:
                        if message.HasField("joined"):
                            self._joined(message.joined)
                            if id_told != self._subscribe.member_id:
                                id_told = self._subscribe.member_id
                                await self._say_subscribed(message.joined)
                        await self._take(message)
                return
            except FluxError as error:
                if self._leaving:
                    return  # it is over when its session's time is
                self._membership_broke(error)
            await asyncio.sleep(_RETRY)

    def _joined(self, joined: groups_pb2.Joined) -> None:
        self._epoch, self._first_assignment = joined.member_epoch, True
        if not joined.resumed:  # what it had was taken from it meanwhile
            self._drop_all()
        if self._lapse is not None:
            self._lapse.cancel()
            self._lapse = None

    async def _say_subscribed(self, joined: groups_pb2.Joined) -> None:
        subscribed = consume_pb2.Subscribed(
            member_id=self._subscribe.member_id, session_timeout_ms=joined.session_timeout_ms
        )
        await self._responses.put(consume_pb2.ConsumeResponse(subscribed=subscribed))

    def _membership_broke(self, error: FluxError) -> None:
        if self._membership.stopping or TAKEN_OVER in error.metadata:
            raise error
        if error.reason is Reason.FENCED_MEMBER:
            self._subscribe.member_id = self._new_id()
            self._drop_all()
        elif not error.traits.retriable and error.reason is not Reason.OUTCOME_UNKNOWN:
            raise error
        elif self._lapse is None:
            seconds = (self._subscribe.session_timeout_ms or limits.SESSION_TIMEOUT_MS_DEFAULT) / 1000
            self._lapse = asyncio.get_running_loop().call_later(seconds, self._drop_all)

    async def _take(self, message: groups_pb2.CoordinatorMessage) -> None:
        match message.WhichOneof("body"):
            case "assigned":
                await self._assigned(message.assigned)
            case "revoke":
                await self._revoke(message.revoke.partitions)
            case "lost":
                self._drop((each.topic, each.partition) for each in message.lost.partitions)
                await self._say_owned()

    async def _assigned(self, assigned: groups_pb2.Assigned) -> None:
        named = {(each.partition.topic, each.partition.partition): each for each in assigned.assignments}
        if self._first_assignment:  # it is all that this member has
            self._first_assignment = False
            self._drop([key for key in self._owned_now() if key not in named])
        for key, each in named.items():
            if key not in self._owned and key not in self._reading:
                reading = self._reading[key] = asyncio.ensure_future(self._read(key, each))
                reading.add_done_callback(self.task_ended)
        if self._owned_now() != self._owned_as_told:
            await self._say_owned()

    async def _revoke(self, partitions: Iterable[groups_pb2.TopicPartition]) -> None:
        """Deliver no more, and give each up when everything is acknowledged; at once where nothing was delivered."""
        not_begun = list[groups_pb2.TopicPartition]()
        for each in partitions:
            key = (each.topic, each.partition)
            reading, owned = self._reading.pop(key, None), self._owned.get(key)
            if reading is not None:
                reading.cancel()
            if owned is None:
                not_begun.append(each)
            else:
                owned.revoking = True
                self._acknowledged.set()
        if not_begun:
            self._release(not_begun)
            await self._say_owned()

    def _release(self, partitions: list[groups_pb2.TopicPartition]) -> None:
        released = groups_pb2.Released(partitions=partitions)
        self._outgoing.put_nowait(groups_pb2.MemberMessage(released=released))

    def _drop_all(self) -> None:
        self._drop(self._owned_now())

    def _drop(self, keys: Iterable[Key]) -> None:
        """These are not this member's any more."""
        for key in tuple(keys):
            reading, owned = self._reading.pop(key, None), self._owned.pop(key, None)
            if reading is not None:
                reading.cancel()
            if owned is not None:
                self._give_credit(owned.outstanding)

    def _owned_now(self) -> list[Key]:
        return sorted(self._owned.keys() | self._reading.keys())

    async def _say_owned(self) -> None:
        self._owned_as_told = self._owned_now()
        owned = [consume_pb2.OwnedPartition(topic=topic, partition=number) for topic, number in self._owned_as_told]
        changed = consume_pb2.PartitionsChanged(owned=owned)
        await self._responses.put(consume_pb2.ConsumeResponse(changed=changed))

    # ---- commits

    async def commit_all(self) -> None:
        """Commit what was acknowledged, and give up what is to be given up and drained; one round at a time."""
        while True:
            await self._acknowledged.wait()
            self._acknowledged.clear()
            if not await self._commit(self._owned.values()):
                self._acknowledged.set()
                await asyncio.sleep(_RETRY)
                continue
            drained = [key for key, owned in self._owned.items() if owned.may_go]
            if drained:
                self._release([self._owned.pop(key).partition for key in drained])
                await self._say_owned()

    async def _commit(self, partitions: Iterable[ThinPartition]) -> bool:
        """Commit what has advanced; False where that has to be tried again."""
        advanced = [(owned, owned.done_up_to) for owned in partitions if owned.done_up_to > owned.committed]
        if not advanced:
            return True
        request = groups_pb2.CommitOffsetsRequest(
            group=self._subscribe.group, member_id=self._subscribe.member_id, member_epoch=self._epoch
        )
        for owned, offset in advanced[: limits.OFFSET_COMMITS_MAX]:
            where = owned.partition
            request.offsets.add(topic=where.topic, topic_id=where.topic_id, partition=where.partition, offset=offset)
        try:
            answer = await self._groups.commit_offsets(request, forwarded=False)
        except FluxError as error:
            log.debug("thin_commit_failed", reason=error.reason.name, message=error.message)
            return False
        complete = len(advanced) <= limits.OFFSET_COMMITS_MAX
        for (owned, offset), result in zip(advanced, answer.results, strict=False):
            if result.error.retriable:
                complete = False
            else:  # or it is fenced: then it is dropped when the coordinator says so
                owned.committed = offset
        return complete

    # ---- reading

    async def _read(self, key: Key, assignment: groups_pb2.Assignment) -> None:
        """Deliver a partition's records for as long as it is this member's."""
        begin = await self._reads.begin(assignment, self._subscribe.start_at)
        owned = self._owned[key] = ThinPartition(assignment.partition, begin)
        while True:
            await self._credit(owned)
            try:
                response = await self._reads.fetch(self._subscribe.group, owned, as_batches=self._subscribe.as_batches)
            except FluxError as error:
                if not self._subscribe.accepts_undeliverable:
                    raise
                await self._stand(owned, error)
                continue
            if response.entries:
                await self._deliver_entries(owned, response)
            elif response.records:
                await self._deliver(owned, response.records)

    async def _credit(self, owned: ThinPartition) -> None:
        """Wait until there is one, for this partition."""
        while self._credits <= 0 or not owned.may_deliver:
            self._credit_came.clear()
            await self._credit_came.wait()

    async def _deliver(self, owned: ThinPartition, records: Iterable[record_pb2.Record]) -> None:
        """As the credits allow, piece by piece."""
        waiting = list(records)
        while waiting:
            await self._credit(owned)
            piece, waiting = waiting[: self._credits], waiting[self._credits :]
            offsets = [record.offset for record in piece]
            await self._put(owned, offsets, offsets[-1] + 1, consume_pb2.Delivery(records=piece))

    async def _deliver_entries(self, owned: ThinPartition, response: log_pb2.FetchResponse) -> None:
        end = response.status.next_offset
        if end > owned.position:
            await self._put(owned, range(owned.position, end), end, consume_pb2.Delivery(entries=response.entries))

    async def _stand(self, owned: ThinPartition, error: FluxError) -> None:
        """Tell the client what cannot be delivered, and go on when it has acknowledged that."""
        first, end = max(owned.position, int(error.metadata["base_offset"])), int(error.metadata["next_offset"])
        await self._credit(owned)
        await self._put(owned, [first], end, consume_pb2.Undeliverable(error=error_message(error, writes=False)))
        while not owned.is_acknowledged(first):
            self._credit_came.clear()
            await self._credit_came.wait()

    async def _put(self, owned: ThinPartition, offsets: list[int] | range, end: int, content: Content) -> None:
        content.topic, content.partition = owned.partition.topic, owned.partition.partition
        content.first_offset, content.last_offset = offsets[0], end - 1
        if isinstance(content, consume_pb2.Delivery):
            response = consume_pb2.ConsumeResponse(delivery=content)
        else:
            response = consume_pb2.ConsumeResponse(undeliverable=content)
        self._credits -= len(offsets)
        try:
            await self._responses.put(response)
        except asyncio.CancelledError:  # it is not in the queue then
            self._give_credit(len(offsets))
            raise
        owned.delivered(offsets, end)


async def _until_none(
    queue: asyncio.Queue[groups_pb2.MemberMessage | None],
) -> AsyncIterator[groups_pb2.MemberMessage]:
    while (message := await queue.get()) is not None:
        yield message
