"""A consumer as a member of a group: what it is told becomes what it reads, and what it handled is committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from fluxlog.aio.committer import Committer
from fluxlog.aio.connection import Connection
from fluxlog.aio.consumed import Assigned, ConsumedRecord, ConsumerEvent, Lost, Revoked, TopicPartition
from fluxlog.aio.feed import Feed, Track
from fluxlog.aio.hand import Hand
from fluxlog.aio.membership import Membership
from fluxlog.aio.tasks import TaskSet
from fluxlog.errors import FluxlogError
from fluxlog.v1 import groups_pb2

COMMIT_INTERVAL_MS_DEFAULT = 200
_PROGRESS_INTERVAL = 1.0
_COMMIT_PATIENCE = 5.0
"""Seconds in which a last commit is tried again."""
_START_PAUSE = 0.2
"""Seconds until it is asked again where a partition begins."""
_GONE = frozenset({"UNKNOWN_TOPIC", "UNKNOWN_PARTITION"})
"""Deleted: the coordinator will say so."""
_COMMIT_SHARE = 0.2
"""Of the time to give up a partition: kept for the commit."""


class GroupSide:
    """Implements `membership.MemberSide`.

    Args:
        find_starts: where to begin in partitions for which nothing is committed; asked again of those that fail.
        emit: queues an event for whoever iterates.
        tell: tells everything queued and then this event, and returns when that is handled.
    """

    def __init__(
        self,
        connection: Connection,
        group: str,
        topics: Sequence[str],
        feed: Feed,
        hand: Hand,
        *,
        find_starts: Callable[[Iterable[TopicPartition]], Awaitable[Mapping[TopicPartition, int | FluxlogError]]],
        emit: Callable[[ConsumerEvent], None],
        tell: Callable[[ConsumerEvent], Awaitable[None]],
        auto_commit: bool,
        commit_interval_ms: int,
        client_name: str,
        session_timeout_ms: int,
        rebalance_timeout_ms: int,
    ) -> None:
        self._feed, self._hand, self._find_starts, self._emit, self._tell = feed, hand, find_starts, emit, tell
        self._auto_commit = auto_commit
        self._tasks = TaskSet()
        self.membership = Membership(
            connection, group, topics, self, client_name=client_name, session_timeout_ms=session_timeout_ms,
            rebalance_timeout_ms=rebalance_timeout_ms,
        )  # fmt: skip
        self.committer = Committer(
            connection, group, identity=lambda: self.membership.identity, tracks=feed.tracks.values,
            handled=hand.handled, busy=lambda: hand.busy, interval=commit_interval_ms / 1000,
        )  # fmt: skip
        self._unbegun: dict[TopicPartition, groups_pb2.Assignment] = {}
        """Ours, but it is not known yet where to begin."""
        self._in_hand: tuple[ConsumedRecord | None, float] = (None, 0.0)

    def open(self) -> None:
        """Join."""
        self.membership.open()
        self._tasks.start(self._tell_progress(), "tell progress")
        if self._auto_commit:
            self._tasks.start(self.committer.run(), "commit offsets")

    async def close(self) -> None:
        """Commit what has been handled, and leave."""
        await self._tasks.close()
        if self._auto_commit:
            await self._commit_last(list(self._feed.tracks.values()))
        await self.membership.leave()

    async def _commit_last(self, tracks: Sequence[Track]) -> None:
        try:
            await self.committer.commit(tracks, patience=_COMMIT_PATIENCE)
        except FluxlogError:
            return  # it will be delivered again: at least once

    # ---- MemberSide

    def take_assigned(self, assignments: Sequence[groups_pb2.Assignment], *, all_of_them: bool) -> None:
        """See MemberSide."""
        named = {_where(each.partition): each for each in assignments}
        if all_of_them:
            self._lose([where for where in self._owned() if where not in named])
        new = {where: each for where, each in named.items() if not self._is_known(where, each)}
        starts = {where: each.committed_offset for where, each in new.items() if each.HasField("committed_offset")}
        unbegun = {where: each for where, each in new.items() if where not in starts}
        self._unbegun |= new
        self._begin(starts)
        if unbegun:
            self._tasks.start(self._begin_later(unbegun), "find where to begin")

    def _owned(self) -> list[TopicPartition]:
        return [*self._feed.tracks, *self._unbegun]

    def _is_known(self, where: TopicPartition, assignment: groups_pb2.Assignment) -> bool:
        track, unbegun = self._feed.tracks.get(where), self._unbegun.get(where)
        known_id = track.topic_id if track is not None else unbegun.partition.topic_id if unbegun is not None else b""
        if known_id != assignment.partition.topic_id:  # new, or deleted and created again
            self._lose([where])
            return False
        return True

    def _begin(self, starts: Mapping[TopicPartition, int]) -> None:
        for where, offset in starts.items():
            each = self._unbegun.pop(where)
            committed = each.committed_offset if each.HasField("committed_offset") else None
            self._feed.add(where, each.partition.topic_id, offset, committed=committed)
        if starts:
            self._emit(Assigned(sorted(starts)))
            # Where it begins is committed, too: otherwise "latest" would be another place for the next owner.
            self.committer.note_activity()

    async def _begin_later(self, waiting: Mapping[TopicPartition, groups_pb2.Assignment]) -> None:
        """As each start is found, while the others are read and the coordinator is listened to. A topic that is deleted
        meanwhile has none: it is asked again until the partition is lost."""
        while waiting := {where: each for where, each in waiting.items() if self._unbegun.get(where) is each}:
            answers: Mapping[TopicPartition, int | FluxlogError]
            try:
                answers = await self._find_starts(waiting)
            except FluxlogError as failure:
                answers = dict.fromkeys(waiting, failure)
            final = next((answer for answer in answers.values() if _is_final(answer)), None)
            if isinstance(final, FluxlogError):  # nobody will read them here: others are to have them
                self.take_failure(final)
                await self.membership.leave()
                return
            starts = {where: answer for where, answer in answers.items() if isinstance(answer, int)}
            self._begin({where: start for where, start in starts.items() if self._unbegun.get(where) is waiting[where]})
            await asyncio.sleep(_START_PAUSE)

    async def give_up(self, partitions: Sequence[groups_pb2.TopicPartition], seconds: float) -> None:
        """See MemberSide."""
        deadline = time.monotonic() + seconds * (1 - _COMMIT_SHARE)
        for each in partitions:
            self._unbegun.pop(_where(each), None)
        tracks = [track for each in partitions if (track := self._feed.remove(_where(each))) is not None]
        for track in tracks:
            await self._hand.wait_returned(track, deadline - time.monotonic())
        if tracks:
            await self._tell(Revoked(sorted(track.where for track in tracks)))
            if self._auto_commit:
                await self._commit_last(tracks)

    def take_lost(self, partitions: Sequence[groups_pb2.TopicPartition] | None) -> None:
        """See MemberSide."""
        self._lose(self._owned() if partitions is None else [_where(each) for each in partitions])

    def _lose(self, wheres: Iterable[TopicPartition]) -> None:
        lost = []
        for where in wheres:
            self._unbegun.pop(where, None)
            track = self._feed.remove(where)
            if track is not None:
                self._hand.discard(track)
                lost.append(where)
        if lost:
            self._emit(Lost(sorted(lost)))

    def take_lapse(self, *, lapsed: bool) -> None:
        """See MemberSide."""
        if lapsed and not self._feed.suspended:
            self._hand.interrupt()
        self._feed.suspend(suspended=lapsed)

    def take_failure(self, failure: FluxlogError) -> None:
        """See MemberSide."""
        self._lose(self._owned())
        self._feed.fail(failure)

    # ---- progress

    async def _tell_progress(self) -> None:
        said: dict[TopicPartition, int] = {}
        was_stuck = False
        while True:
            await asyncio.sleep(_PROGRESS_INTERVAL)
            positions = {where: self._hand.handled(track) for where, track in self._feed.tracks.items()}
            stuck_ms = self._stuck_ms()
            if positions == said and not stuck_ms and not was_stuck:
                continue
            said, was_stuck = positions, stuck_ms > 0
            progress = groups_pb2.Progress(stuck_ms=stuck_ms)
            for where, track in self._feed.tracks.items():
                progress.positions.add(
                    topic=where.topic, topic_id=track.topic_id, partition=where.partition, offset=positions[where]
                )
            await self.membership.send(groups_pb2.MemberMessage(progress=progress))

    def _stuck_ms(self) -> int:
        """How long the same record has been in hand: seen from second to second, since to note it with each record
        would cost more than it tells."""
        chunk = self._hand.chunk
        record = chunk.current if chunk is not None else None
        if record is None or record is not self._in_hand[0]:
            self._in_hand = (record, time.monotonic())
            return 0
        return int((time.monotonic() - self._in_hand[1]) * 1000)


def _is_final(answer: int | FluxlogError) -> bool:
    return isinstance(answer, FluxlogError) and not answer.retriable and answer.reason not in _GONE


def _where(partition: groups_pb2.TopicPartition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.partition)
