"""The partitions that a consumer reads, and what has arrived of them: batches, taken in turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fluxlog.aio.connection import Connection
from fluxlog.aio.consumed import CaughtUp, ConsumerEvent, Leaderless, TopicPartition
from fluxlog.aio.following import Arrived, Following
from fluxlog.aio.leader_watch import LeaderNews
from fluxlog.aio.metadata import Metadata
from fluxlog.aio.offsets import ask_offsets
from fluxlog.aio.room import Room
from fluxlog.aio.tasks import TaskSet
from fluxlog.entry import FetchedBatch
from fluxlog.errors import FluxlogError, OffsetOutOfRangeError
from fluxlog.v1 import log_pb2

IDLE_SECONDS = 3.0
"""A partition from which nothing has come for so long is looked after: is there really nothing?"""


@dataclass(slots=True)
class Buffered:
    """A batch that has arrived."""

    batch: FetchedBatch
    size: int = 0
    """Bytes of the room that are given back with it."""
    caught_up: bool = False
    """Behind it there was nothing when it left its node."""


@dataclass(slots=True, eq=False)
class Track:
    """One partition that is read."""

    where: TopicPartition
    topic_id: bytes
    position: int
    """Next offset to be handed out."""
    handled: int
    """Everything below it has been handled."""
    end: int | None = None
    """Stop there."""
    committed: int | None = None
    """What the group has, as it was answered last."""
    seeks: int = 0
    """So many."""
    seeks_committed: int = 0
    """So many when what is committed was sent. Since a further seek the next commit is meant to go back."""
    buffer: deque[Buffered] = field(default_factory=deque)
    following: Following | None = None
    failure: FluxlogError | None = None
    """Why it is not followed any more: told when what has arrived before was taken."""
    version: int = 0
    """Changes when what was handed out is no longer where it goes on."""
    paused: bool = False
    caught_up: bool = False
    leaderless: bool = False

    @property
    def finished(self) -> bool:
        """It has reached its end."""
        return self.end is not None and self.position >= self.end


class Feed:
    """Follows partitions and hands out what arrives, one batch of each in turn.

    Args:
        emit: takes events; must not wait.
        reset: where to go on when an offset is not there: "earliest", "latest", or "error".
        from_start: whether a partition is to be read from the log start: offset 0 stands for that then, since the log
            start itself moves, and cannot be asked for without a leader.
    """

    def __init__(
        self,
        connection: Connection,
        metadata: Metadata,
        *,
        buffer_bytes: int,
        max_bytes: int,
        reset: str,
        from_start: Callable[[TopicPartition], bool],
        emit: Callable[[ConsumerEvent], None],
    ) -> None:
        self._connection, self._metadata = connection, metadata
        self._room, self._max_bytes, self._reset, self._emit = Room(buffer_bytes), max_bytes, reset, emit
        self._from_start = from_start
        self._tasks = TaskSet()
        self._leaders = LeaderNews(connection, self._tasks)
        self._caretaker: asyncio.Task[None] | None = None
        self.tracks: dict[TopicPartition, Track] = {}
        self._ready: deque[Track] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: FluxlogError | None = None
        self._suspended = False
        self._nudged = self._closed = False

    def open(self) -> None:
        """Needs a running loop."""
        self._caretaker = self._tasks.start(self._look_after_idle(), "look after idle partitions")

    async def close(self) -> None:
        """Stop all."""
        self._closed = True
        self._wake()
        if self._caretaker is not None:
            self._caretaker.cancel()
        for track in self.tracks.values():
            self._stop(track)
        self._leaders.close()
        await self._tasks.close(grace=1.0)

    # ---- which partitions

    def add(
        self,
        where: TopicPartition,
        topic_id: bytes,
        offset: int,
        *,
        end: int | None = None,
        committed: int | None = None,
    ) -> None:
        """Begin to read a partition."""
        self.tracks[where] = track = Track(where, topic_id, offset, offset, end=end, committed=committed)
        self._start(track)

    def remove(self, where: TopicPartition) -> Track | None:
        """Read it no more; what has arrived is dropped."""
        track = self.tracks.pop(where, None)
        if track is not None:
            track.version += 1
            self._stop(track)
        return track

    def seek(self, track: Track, offset: int) -> None:
        """Go on elsewhere."""
        self._stop(track)
        track.version += 1
        track.seeks += 1
        track.position = track.handled = offset
        track.caught_up = False
        self._start(track)
        if track.finished:  # it was the last one, perhaps: whoever waits in `take` is to look
            self.nudge()

    def pause(self, track: Track) -> None:
        """Hand nothing more out of it; what has arrived will be fetched again."""
        track.paused = True
        self._stop(track)

    def resume(self, track: Track) -> None:
        """Go on where it was paused."""
        if track.paused:
            track.paused = False
            self._start(track)

    def fetch_again(self, track: Track) -> None:
        """From its position."""
        self._stop(track)
        self._start(track)

    def suspend(self, *, suspended: bool) -> None:
        """Hand nothing out, of no partition, while it is not sure whose they are."""
        self._suspended = suspended
        if not suspended:
            self._wake()

    @property
    def suspended(self) -> bool:
        """Nothing is handed out."""
        return self._suspended

    def _start(self, track: Track) -> None:
        if track.paused or track.finished or self._closed:
            return
        where = track.where
        info = self._metadata.known(where.topic)
        leader = info.leaders.get(where.partition) if info is not None else None
        track.following = following = Following(
            self._connection, where, track.topic_id, track.position, target=leader or self._connection.addresses()[0],
            leaders=self._leaders, room=self._room, max_bytes=self._max_bytes, on_arrived=self._take_arrived,
            on_trouble=self._take_trouble,
            on_failed=self._take_failed,
        )  # fmt: skip
        following.started(self._tasks.start(following.run(), f"follow {where.topic}-{where.partition}"))

    def _stop(self, track: Track) -> None:
        following, track.following = track.following, None
        if following is not None:
            following.stop()
        for buffered in track.buffer:
            self._room.give(buffered.size)
        track.buffer.clear()
        track.failure = None  # of what is not wanted any more; it comes again if it is still so

    def fail(self, failure: FluxlogError) -> None:
        """Have `take` raise it, from now on: nothing will be read any more."""
        self._failure = failure
        self._wake()

    # ---- what is handed out

    @property
    def exhausted(self) -> bool:
        """There will be nothing more: every partition has reached its end, or this was closed."""
        return self._closed or (bool(self.tracks) and all(track.finished for track in self.tracks.values()))

    async def take(self) -> tuple[Track, Buffered] | None:
        """The next batch; None: something else has happened (`nudge`, `exhausted`).

        Raises:
            FluxlogError: a partition cannot be read; it is not followed any more until `seek`. Or none can (`fail`).
        """
        while not self._nudged and not self._closed:
            if self._failure is not None:
                await asyncio.sleep(0)  # whoever asks again and again leaves others their turn
                raise self._failure
            while self._ready and not self._suspended:
                track = self._ready.popleft()
                if track.buffer:
                    buffered = track.buffer.popleft()
                    self._room.give(buffered.size)
                    if track.buffer or track.failure is not None:
                        self._ready.append(track)
                    return track, buffered
                if track.failure is not None:
                    failure, track.failure = track.failure, None
                    raise failure
                # it was stopped meanwhile
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._nudged = False
        return None

    def nudge(self) -> None:
        """Have `take` return."""
        self._nudged = True
        self._wake()

    def finish(self, track: Track, buffered: Buffered) -> None:
        """A batch that was taken has been handled."""
        if track.finished:
            self._stop(track)
        if buffered.caught_up and not track.buffer:
            self._note_caught_up(track)

    def _note_caught_up(self, track: Track) -> None:
        if not track.caught_up:
            track.caught_up = True
            self._emit(CaughtUp(track.where, track.position))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- what is heard

    def _track_of(self, following: Following) -> Track | None:
        track = self.tracks.get(following.where)
        return track if track is not None and track.following is following else None

    def _take_arrived(self, following: Following, arrived: Arrived) -> None:
        track = self._track_of(following)
        if track is None:
            self._room.give(arrived.size)
            return
        at_end = arrived.next_offset >= arrived.high_watermark
        if not at_end:
            track.caught_up = False
        if not arrived.batches:
            self._room.give(arrived.size)
            if at_end and not track.buffer and track.position >= track.handled:
                self._note_caught_up(track)
            return
        was_empty = not track.buffer
        track.buffer.extend(map(Buffered, arrived.batches))
        last = track.buffer[-1]
        last.size, last.caught_up = arrived.size, at_end
        if was_empty:
            self._note_ready(track)

    def _note_ready(self, track: Track) -> None:
        self._ready.append(track)
        self._wake()

    def _take_trouble(self, following: Following, error: FluxlogError | None) -> None:
        track = self._track_of(following)
        if track is not None:
            self._note_leader(track, error)

    def _note_leader(self, track: Track, error: FluxlogError | None) -> None:
        if error is not None and not track.leaderless:
            self._emit(Leaderless(track.where, error))
        track.leaderless = error is not None

    def _take_failed(self, following: Following, error: FluxlogError) -> None:
        track = self._track_of(following)
        if track is None:
            return
        track.following = None
        if isinstance(error, OffsetOutOfRangeError):
            if self._reset == "earliest" or (following.offset == 0 and self._from_start(track.where)):
                self.seek(track, error.log_start_offset)
                return
            if self._reset == "latest":
                self.seek(track, error.high_watermark)
                return
        if error.reason in ("UNKNOWN_TOPIC", "TOPIC_ID_MISMATCH"):
            self._metadata.forget(track.where.topic)
        track.failure = error
        if not track.buffer:
            self._note_ready(track)

    # ---- what is not heard

    async def _look_after_idle(self) -> None:
        """A replica that is cut off serves what it has, and says nothing of what it has not: the leader is asked."""
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            now = time.monotonic()
            idle = [
                track
                for track in self.tracks.values()
                if track.following is not None and not track.buffer and now - track.following.heard_at >= IDLE_SECONDS
            ]
            if idle:
                await self._check(idle)

    async def _check(self, idle: Iterable[Track]) -> None:
        tracks = list(idle)
        queries = [
            log_pb2.OffsetQuery(topic=track.where.topic, partition=track.where.partition, latest=True)
            for track in tracks
        ]
        try:
            answers = await ask_offsets(self._connection, queries)
        except FluxlogError:
            return  # nobody answers: the streams notice that themselves
        for track, answer in zip(tracks, answers, strict=True):
            following = track.following
            if following is None or self._track_of(following) is None:
                continue
            if isinstance(answer, FluxlogError):
                self._note_leader(track, answer)
                continue
            self._note_leader(track, None)
            if answer.offset > following.offset:
                if following.suspect_offset == following.offset:
                    following.leave_node()
                following.suspect_offset = following.offset
            elif answer.offset == following.offset and not track.buffer and track.handled == following.offset:
                self._note_caught_up(track)
