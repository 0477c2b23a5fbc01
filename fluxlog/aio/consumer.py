"""The consumer: committed records in order, through failovers; alone or as a member of a group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

from fluxlog.aio.connection import Connection, connection_of
from fluxlog.aio.consumed import ConsumedBatch, ConsumedRecord, ConsumerEvent, TopicPartition
from fluxlog.aio.feed import Feed, Track
from fluxlog.aio.group_side import COMMIT_INTERVAL_MS_DEFAULT, GroupSide
from fluxlog.aio.hand import Chunk, Hand
from fluxlog.aio.iteration import Iteration
from fluxlog.aio.metadata import Metadata
from fluxlog.aio.offsets import ask_offsets, find_offsets
from fluxlog.aio.telling import EventHandler, Telling
from fluxlog.entry import UndecodableBatchError
from fluxlog.errors import FluxlogError, LocalError
from fluxlog.v1 import log_pb2

FETCH_BYTES_DEFAULT = 1024 * 1024
BUFFER_BYTES_DEFAULT = 16 * 1024 * 1024
_COMMIT_PATIENCE = 10.0

Start = Literal["earliest", "latest"] | int | datetime
"""The log's start, its end, an offset, or a time."""


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
        group: share the topics' partitions with the other members of this group, and commit what was handled. Without
            one, every consumer reads everything, from `start` on.
        partitions: only these of each topic; None: all that there are when it is opened. Not with a group.
        start: where to begin: "earliest", "latest", an offset, or a time; or one for each partition. With a
            group: there where nothing is committed.
        on_out_of_range: an offset that is not there (any more): "error" raises OffsetOutOfRangeError, "earliest" and
            "latest" go on there.
        stop_at_end: iterating ends at what was the end when it was opened. Not with a group.
        on_event: called with each ConsumerEvent, one at a time, in order; may be a coroutine function, and is awaited
            then.
        auto_commit: commit in the background what was handled, when partitions are given up, and at the end; otherwise
            call `commit`.
        commit_interval_ms: between two commits in the background.
        client_name: for people: shown by `fluxctl groups describe`.
        session_timeout_ms: how long the member may be away before its partitions are given to others; 0: the server's
            default.
        rebalance_timeout_ms: how long a handler may take while partitions are to be given up; 0: the server's default.
        buffer_bytes: of what has arrived and was not handed out, over all partitions.
    """

    def __init__(
        self,
        cluster: str | Sequence[str] | Connection,
        topics: str | Sequence[str],
        *,
        group: str = "",
        partitions: Sequence[int] | None = None,
        start: Start | Mapping[TopicPartition, Start] = "latest",
        on_out_of_range: Literal["error", "earliest", "latest"] = "error",
        stop_at_end: bool = False,
        on_event: EventHandler | None = None,
        auto_commit: bool = True,
        commit_interval_ms: int = COMMIT_INTERVAL_MS_DEFAULT,
        client_name: str = "",
        session_timeout_ms: int = 0,
        rebalance_timeout_ms: int = 0,
        buffer_bytes: int = BUFFER_BYTES_DEFAULT,
        fetch_bytes: int = FETCH_BYTES_DEFAULT,
    ) -> None:
        if group and (partitions is not None or stop_at_end):
            raise LocalError("INVALID_ARGUMENT", "with a group, partitions and ends are the group's affair")
        self._connection, self._owns_connection = connection_of(cluster)
        self._topics = [topics] if isinstance(topics, str) else list(topics)
        self._partitions, self._start, self._stop_at_end = partitions, start, stop_at_end
        self._telling = Telling(on_event) if on_event is not None else None
        self._metadata = Metadata(self._connection)
        self._feed = Feed(
            self._connection, self._metadata, buffer_bytes=buffer_bytes, max_bytes=fetch_bytes, reset=on_out_of_range,
            from_start=lambda where: self._start_of(where) == "earliest", emit=self._note_event,
        )  # fmt: skip
        self._hand = Hand(self._feed)
        self._group: GroupSide | None = None
        if group:
            self._group = GroupSide(
                self._connection, group, self._topics, self._feed, self._hand, find_starts=self._find_group_starts,
                emit=self._note_event, tell=self._tell_now, auto_commit=auto_commit,
                commit_interval_ms=commit_interval_ms, client_name=client_name, session_timeout_ms=session_timeout_ms,
                rebalance_timeout_ms=rebalance_timeout_ms,
            )  # fmt: skip
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
        if self._group is not None:
            self._group.open()
            return
        wheres = await self._explicit_partitions()
        for where, (offset, end) in (await self._find_starts(list(wheres))).items():
            self._feed.add(where, wheres[where], offset, end=end if self._stop_at_end else None)

    async def close(self) -> None:
        """Stop reading. With a group: commit what was handled, and leave it."""
        if self._closed:
            return
        self._closed = True
        if self._telling is not None:
            self._telling.end()
        self._feed.suspend(suspended=True)
        if self._group is not None:
            await self._group.close()
        await self._feed.close()
        await self._metadata.close()
        if self._owns_connection:
            await self._connection.close()

    # ---- reading

    def __aiter__(self) -> AsyncIterator[ConsumedRecord]:
        return self.iterate().records()

    def batches(self) -> AsyncIterator[ConsumedBatch]:
        """Whole batches, for high rates: a batch counts as handled when the next one is asked for."""
        return self.iterate().batches()

    def iterate(self) -> Iteration:
        """A new loop, for those who step through it themselves (fluxlog.sync)."""
        return Iteration(self._hand, self._wait_chunk)

    async def _wait_chunk(self) -> Chunk | None:
        """The next batch, taken into the hand. Meanwhile events are told."""
        while True:
            if self._telling is not None:
                await self._telling.tell_queued()
            if self._feed.exhausted:
                return None
            taken = await self._feed.take()
            if taken is None:
                continue
            track, buffered = taken
            try:
                chunk = self._hand.take(track, buffered)
            except UndecodableBatchError:
                self._feed.seek(track, track.position)  # it stays the next one; a seek steps over it
                raise
            if self._group is not None:
                self._group.committer.note_activity()
            return chunk

    async def commit(self) -> None:
        """Commit everything that was handed out, the record in hand among it. Only with a group.

        Raises:
            FluxlogError: FENCED_MEMBER: a partition is not this member's any more; or there is no coordinator.
        """
        if self._group is None:
            raise LocalError("NOT_A_MEMBER", "this consumer has no group to commit for")
        tracks = list(self._feed.tracks.values())
        await self._group.committer.commit(tracks, offset_of=self._hand.position, patience=_COMMIT_PATIENCE)

    # ---- where

    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read."""
        return sorted(self._feed.tracks)

    def position(self, topic: str, partition: int) -> int:
        """Offset of the next record to come."""
        return self._hand.position(self._track(topic, partition))

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on at an offset; the record in hand was the last one before."""
        if not 0 <= offset < 1 << 63:
            raise LocalError("INVALID_ARGUMENT", f"offset {offset} is not in 0..2^63-1")
        track = self._track(topic, partition)
        self._hand.discard(track)
        self._feed.seek(track, offset)
        if self._group is not None:
            self._group.committer.note_activity()

    def pause(self, topic: str, partition: int) -> None:
        """Hand out nothing more of a partition, until `resume`."""
        track = self._track(topic, partition)
        track.position = self._hand.position(track)
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

    async def _explicit_partitions(self) -> dict[TopicPartition, bytes]:
        """With the ids of their topics."""
        wheres: dict[TopicPartition, bytes] = {}
        for topic in self._topics:
            info = await self._metadata.topic(topic)
            for number in range(info.partitions) if self._partitions is None else self._partitions:
                if not 0 <= number < info.partitions:
                    bounds = f"{topic} has partitions 0..{info.partitions - 1}, not {number}"
                    raise LocalError("UNKNOWN_PARTITION", bounds)
                wheres[TopicPartition(topic, number)] = info.topic_id
        return wheres

    async def _find_starts(self, wheres: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """Where each begins, and (with stop_at_end) where it ends."""
        wheres = list(wheres)
        starts = [0 if (start := self._start_of(where)) == "earliest" else start for where in wheres]
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

    async def _find_group_starts(self, wheres: Iterable[TopicPartition]) -> dict[TopicPartition, int | FluxlogError]:
        """Where each begins; asked once, so that none waits for another."""
        found, queries = dict[TopicPartition, int | FluxlogError](), dict[TopicPartition, log_pb2.OffsetQuery]()
        for where in wheres:
            start = self._start_of(where)
            if start == "earliest":
                found[where] = 0
            elif isinstance(start, int):
                found[where] = start
            else:
                queries[where] = _query(where, start)
        answers = await ask_offsets(self._connection, list(queries.values()))
        for where, answer in zip(queries, answers, strict=True):
            found[where] = answer if isinstance(answer, FluxlogError) else answer.offset
        return found

    def _start_of(self, where: TopicPartition) -> Start:
        if isinstance(self._start, Mapping):
            return self._start.get(where, "latest")
        return self._start

    # ---- events

    def _note_event(self, event: ConsumerEvent) -> None:
        """Told by whoever iterates, between two records."""
        if self._telling is not None:
            self._telling.add(event)
            self._feed.nudge()

    async def _tell_now(self, event: ConsumerEvent) -> None:
        """What is queued, and this, although nobody may iterate just now."""
        if self._telling is not None:
            await self._telling.tell(event)


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
