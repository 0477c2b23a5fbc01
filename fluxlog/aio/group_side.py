"""A consumer as a member of a group: what it is told becomes what it reads, and what it handled is committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

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
_COMMIT_SHARE = 0.2
"""Of the time to give up a partition: kept for the commit."""


class GroupSide:
    """Implements `membership.MemberSide`.

    Args:
        find_starts: where to begin in partitions for which nothing is committed.
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
        find_starts: Callable[[Iterable[TopicPartition]], Awaitable[dict[TopicPartition, int]]],
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
            handled=hand.handled, interval=commit_interval_ms / 1000,
        )  # fmt: skip
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

    async def take_assigned(self, assignments: Sequence[groups_pb2.Assignment], *, all_of_them: bool) -> None:
        """See MemberSide."""
        named = {_where(each.partition): each for each in assignments}
        if all_of_them:
            self._lose([where for where in self._feed.tracks if where not in named])
        new = {where: each for where, each in named.items() if not self._is_known(where, each)}
        without = [where for where, each in new.items() if not each.HasField("committed_offset")]
        starts = await self._starts(without)
        for where, each in new.items():
            committed = each.committed_offset if each.HasField("committed_offset") else None
            offset = starts[where] if committed is None else committed
            self._feed.add(where, each.partition.topic_id, offset, committed=committed)
        if new:
            self._emit(Assigned(sorted(new)))
            # Where it begins is committed, too: otherwise "latest" would be another place for the next owner.
            self.committer.note_activity()

    def _is_known(self, where: TopicPartition, assignment: groups_pb2.Assignment) -> bool:
        track = self._feed.tracks.get(where)
        if track is None:
            return False
        if track.topic_id != assignment.partition.topic_id:  # deleted and created again
            self._lose([where])
            return False
        return True

    async def _starts(self, wheres: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        while wheres:
            try:
                return await self._find_starts(wheres)
            except FluxlogError as failure:
                if not failure.retriable:
                    self._feed.fail(failure)
                    raise
        return {}

    async def give_up(self, partitions: Sequence[groups_pb2.TopicPartition], seconds: float) -> None:
        """See MemberSide."""
        deadline = time.monotonic() + seconds * (1 - _COMMIT_SHARE)
        tracks = [track for each in partitions if (track := self._feed.remove(_where(each))) is not None]
        for track in tracks:
            await self._hand.wait_returned(track, deadline - time.monotonic())
        if tracks:
            await self._tell(Revoked(sorted(track.where for track in tracks)))
            if self._auto_commit:
                await self._commit_last(tracks)

    def take_lost(self, partitions: Sequence[groups_pb2.TopicPartition] | None) -> None:
        """See MemberSide."""
        self._lose(list(self._feed.tracks) if partitions is None else [_where(each) for each in partitions])

    def _lose(self, wheres: Iterable[TopicPartition]) -> None:
        lost = []
        for where in wheres:
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
        self._lose(list(self._feed.tracks))
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


def _where(partition: groups_pb2.TopicPartition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.partition)
