"""The consumer: committed records in order, through failovers; alone or as a member of a group."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

from fluxlog.aio.connection import Connection, connection_of
from fluxlog.aio.consumed import ConsumedBatch, ConsumedRecord, ConsumerEvent, TopicPartition
from fluxlog.aio.feed import Buffered, Feed, Track
from fluxlog.aio.metadata import Metadata
from fluxlog.aio.offsets import find_offsets
from fluxlog.aio.tasks import TaskSet
from fluxlog.entry import UndecodableBatchError
from fluxlog.errors import LocalError
from fluxlog.v1 import log_pb2

FETCH_BYTES_DEFAULT = 1024 * 1024
BUFFER_BYTES_DEFAULT = 16 * 1024 * 1024
_EVENTS_MAX = 1_000
"""Of those that nobody has iterated for."""

Start = Literal["earliest", "latest"] | int | datetime
"""The log's start, its end, an offset, or a time."""
EventHandler = Callable[[ConsumerEvent], Awaitable[None] | None]


@dataclass(slots=True, eq=False)
class _Chunk:
    """The batch in hand."""

    track: Track
    buffered: Buffered
    batch: ConsumedBatch
    version: int
    rest: Iterator[ConsumedRecord]
    """Not handed out yet."""
    current: ConsumedRecord | None = None
    """Handed out last; not handled until the next one is asked for."""
    whole: bool = False
    """It was handed out as a batch."""
    exhausted: bool = False
    discarded: bool = False
    """Sought or lost: that the handler returns means nothing any more."""

    @property
    def stale(self) -> bool:
        """It was sought, paused or taken away: the rest is not to be handed out."""
        return self.track.version != self.version

    @property
    def handled_on_return(self) -> int | None:
        """Everything below it is handled when the handler returns; None: nothing was handed out."""
        if self.whole:
            return self.batch.next_offset
        return None if self.current is None else self.current.offset + 1


class Consumer:
    """Reads records of topics.

        async with Consumer("127.0.0.1:9101", "orders", start="earliest") as consumer:
            async for record in consumer:
                print(record.partition, record.offset, record.key, record.value)

    A record counts as handled when the next one is asked for. One task at a time may iterate. Belongs to the loop on
    which it was opened.

    Args:
        cluster: "host:port,host:port", a list of such, or a Connection that is shared.
        topics: one name or several.
        partitions: only these of each topic; None: all that there are when it is opened.
        start: where to begin: "earliest", "latest", an offset, or a time; or one for each partition.
        on_out_of_range: an offset that is not there (any more): "error" raises OffsetOutOfRangeError, "earliest" and
            "latest" go on there.
        stop_at_end: iterating ends at what was the end when it was opened.
        on_event: called with each ConsumerEvent; may be a coroutine function, and is awaited then.
        buffer_bytes: of what has arrived and was not handed out, over all partitions.
    """

    def __init__(
        self,
        cluster: str | Sequence[str] | Connection,
        topics: str | Sequence[str],
        *,
        partitions: Sequence[int] | None = None,
        start: Start | Mapping[TopicPartition, Start] = "latest",
        on_out_of_range: Literal["error", "earliest", "latest"] = "error",
        stop_at_end: bool = False,
        on_event: EventHandler | None = None,
        buffer_bytes: int = BUFFER_BYTES_DEFAULT,
        fetch_bytes: int = FETCH_BYTES_DEFAULT,
    ) -> None:
        self._connection, self._owns_connection = connection_of(cluster)
        self._topics = [topics] if isinstance(topics, str) else list(topics)
        self._partitions, self._start, self._stop_at_end = partitions, start, stop_at_end
        self._on_event = on_event
        self._events: deque[ConsumerEvent] = deque(maxlen=_EVENTS_MAX)
        self._metadata = Metadata(self._connection)
        self._tasks = TaskSet()
        self._feed = Feed(
            self._connection, self._metadata, buffer_bytes=buffer_bytes, max_bytes=fetch_bytes, reset=on_out_of_range,
            emit=self._note_event,
        )  # fmt: skip
        self._chunk: _Chunk | None = None
        self._closed = False

    # ---- life

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """What `async with` does first.

        Raises:
            FluxlogError: a topic or partition does not exist, its offsets cannot be found out, or nobody answers.
        """
        self._feed.open()
        wheres = await self._explicit_partitions()
        for where, (offset, end) in (await self._find_starts(wheres)).items():
            await self._feed.add(where, offset, end=end if self._stop_at_end else None)

    async def close(self) -> None:
        """Stop reading."""
        if self._closed:
            return
        self._closed = True
        await self._feed.close()
        await self._tasks.close()
        await self._metadata.close()
        if self._owns_connection:
            await self._connection.close()

    # ---- reading

    def __aiter__(self) -> AsyncIterator[ConsumedRecord]:
        return self._records()

    async def _records(self) -> AsyncIterator[ConsumedRecord]:
        while (chunk := await self._next_chunk()) is not None:
            track, version = chunk.track, chunk.version
            for record in chunk.rest:
                chunk.current = record
                yield record
                if track.version != version:
                    break
            else:
                chunk.exhausted = True

    async def batches(self) -> AsyncIterator[ConsumedBatch]:
        """Whole batches, for high rates: a batch counts as handled when the next one is asked for."""
        while (chunk := await self._next_chunk()) is not None:
            if chunk.current is not None:  # some of its records were taken one by one
                chunk.batch = ConsumedBatch(
                    chunk.track.where, chunk.buffered.batch, chunk.track.position, chunk.track.end
                )
            chunk.exhausted = chunk.whole = True
            if len(chunk.batch):
                yield chunk.batch

    async def _next_chunk(self) -> _Chunk | None:
        """The batch in hand while something of it is left, or the next one."""
        chunk = self._chunk
        if chunk is not None:
            self._settle(chunk)
            if not chunk.stale and not chunk.exhausted:
                return chunk
            self._release(chunk)
        while True:
            while self._events:
                await self._call_handler(self._events.popleft())
            if self._feed.exhausted:
                return None
            taken = await self._feed.take()
            if taken is None:
                continue
            track, buffered = taken
            try:
                batch = ConsumedBatch(track.where, buffered.batch, track.position, track.end)
            except UndecodableBatchError:
                self._feed.seek(track, track.position)  # it stays the next one; a seek steps over it
                raise
            self._chunk = _Chunk(track, buffered, batch, track.version, batch.records())
            return self._chunk

    def _settle(self, chunk: _Chunk) -> None:
        """What was handed out has been handled, since the next one is asked for."""
        offset = chunk.handled_on_return
        if offset is None or chunk.discarded:
            return
        track = chunk.track
        if chunk.stale:
            track.handled = max(track.handled, offset)
        else:
            track.position = track.handled = offset

    def _release(self, chunk: _Chunk) -> None:
        """Nothing of it is left."""
        self._chunk = None
        if not chunk.stale:
            track = chunk.track
            track.position = track.handled = max(track.position, chunk.batch.next_offset)
            self._feed.finish(track, chunk.buffered)

    # ---- where

    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read."""
        return sorted(self._feed.tracks)

    def position(self, topic: str, partition: int) -> int:
        """Offset of the next record to come."""
        return self._position(self._track(topic, partition))

    def _position(self, track: Track) -> int:
        chunk = self._chunk
        if chunk is not None and chunk.track is track and not chunk.stale:
            return chunk.handled_on_return or track.position
        return track.position

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on at an offset; the record in hand was the last one before."""
        if not 0 <= offset < 1 << 63:
            raise LocalError("INVALID_ARGUMENT", f"offset {offset} is not in 0..2^63-1")
        track = self._track(topic, partition)
        if self._chunk is not None and self._chunk.track is track:
            self._chunk.discarded = True
        self._feed.seek(track, offset)

    def pause(self, topic: str, partition: int) -> None:
        """Hand out nothing more of a partition, until `resume`."""
        track = self._track(topic, partition)
        track.position = self._position(track)
        track.version += 1
        self._feed.pause(track)

    def resume(self, topic: str, partition: int) -> None:
        """Go on with a partition that was paused."""
        self._feed.resume(self._track(topic, partition))

    async def find_offsets(self, when: Literal["earliest", "latest"] | datetime) -> dict[TopicPartition, int]:
        """An offset of each partition that is read: the log start, the end (exclusive), or the first one appended at
        or after a time (the end, where none was)."""
        wheres = self.assignment()
        queries = [_query(where, when) for where in wheres]
        return dict(zip(wheres, await find_offsets(self._connection, queries), strict=True))

    def _track(self, topic: str, partition: int) -> Track:
        track = self._feed.tracks.get(TopicPartition(topic, partition))
        if track is None:
            raise LocalError("NOT_ASSIGNED", f"{topic}-{partition} is not read by this consumer")
        return track

    async def _explicit_partitions(self) -> list[TopicPartition]:
        wheres = []
        for topic in self._topics:
            info = await self._metadata.topic(topic)
            for number in range(info.partitions) if self._partitions is None else self._partitions:
                if not 0 <= number < info.partitions:
                    bounds = f"{topic} has partitions 0..{info.partitions - 1}, not {number}"
                    raise LocalError("UNKNOWN_PARTITION", bounds)
                wheres.append(TopicPartition(topic, number))
        return wheres

    async def _find_starts(self, wheres: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """Where each begins, and (with stop_at_end) where it ends."""
        wheres = list(wheres)
        starts = [self._start_of(where) for where in wheres]
        asked = [(where, start) for where, start in zip(wheres, starts, strict=True) if not isinstance(start, int)]
        queries = [_query(where, start) for where, start in asked]
        if self._stop_at_end:
            queries += [_query(where, "latest") for where in wheres]
        answers = await find_offsets(self._connection, queries) if queries else []
        found = {where: offset for (where, _), offset in zip(asked, answers, strict=False)}
        ends = dict(zip(wheres, answers[len(asked) :], strict=False))
        return {
            where: (start if isinstance(start, int) else found[where], ends.get(where, 0))
            for where, start in zip(wheres, starts, strict=True)
        }

    def _start_of(self, where: TopicPartition) -> Start:
        if isinstance(self._start, Mapping):
            return self._start.get(where, "latest")
        return self._start

    # ---- events

    def _note_event(self, event: ConsumerEvent) -> None:
        """Told by whoever iterates, between two records."""
        if self._on_event is not None:
            self._events.append(event)
            self._feed.nudge()

    async def _call_handler(self, event: ConsumerEvent) -> None:
        if self._on_event is not None:
            result = self._on_event(event)
            if inspect.isawaitable(result):
                await result


def _query(where: TopicPartition, start: Start) -> log_pb2.OffsetQuery:
    query = log_pb2.OffsetQuery(topic=where.topic, partition=where.partition)
    if isinstance(start, datetime):
        query.time_ms = int(start.timestamp() * 1000)
    elif start == "earliest":
        query.earliest = True
    elif start == "latest":
        query.latest = True
    else:
        raise LocalError("INVALID_ARGUMENT", f"a start is earliest, latest, an offset or a time, not {start!r}")
    return query
