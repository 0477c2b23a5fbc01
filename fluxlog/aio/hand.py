"""The batch that an iteration has in hand: what of it was handed out, and what of that has been handled.

A record counts as handled when the next one is asked for; nothing else does it, no timer above all. What has not been
handed out when a loop is left stays in hand: the next loop goes on with it.

A Chunk is stepped through where its records are handled, which for fluxlog.sync is another thread than the loop's. All
else belongs to the loop. What that thread hands out in the very moment in which the rest is taken away counts as handed
out before: the loop waits for its return (`wait_returned`), and goes on behind it (`come_back`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from fluxlog.aio.consumed import ConsumedBatch, ConsumedRecord
from fluxlog.aio.feed import Buffered, Feed, Track


@dataclass(slots=True, eq=False)
class Chunk:
    """A batch in hand."""

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

    def records(self) -> Iterator[ConsumedRecord]:
        """Hand out what is left, one by one, as long as it is not stale."""
        track, version = self.track, self.version
        if track.version != version:
            return
        for record in self.rest:
            self.current = record
            yield record
            if track.version != version:
                return
        self.exhausted = True

    def remainder(self) -> ConsumedBatch | None:
        """Hand out what is left, as a batch; None: nothing is, or it is stale."""
        if self.stale:
            return None
        if self.current is not None:  # some of its records were taken one by one
            track = self.track
            self.batch = ConsumedBatch(track.where, self.buffered.batch, track.position, track.end)
        self.exhausted = self.whole = True
        return self.batch if len(self.batch) else None


class Hand:
    """Holds one batch at a time."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.chunk: Chunk | None = None
        self._iteration: object = None
        """Has asked last."""
        self._returned = asyncio.Event()
        self._returned.set()

    def take(self, track: Track, buffered: Buffered) -> Chunk:
        """Take a batch into the hand.

        Raises:
            UndecodableBatchError: it is corrupt.
        """
        batch = ConsumedBatch(track.where, buffered.batch, track.position, track.end)
        self.chunk = chunk = Chunk(track, buffered, batch, track.version, batch.records())
        self._returned.clear()
        return chunk

    def come_back(self, iteration: object) -> Chunk | None:
        """An iteration asks for the next record or batch: what was handed out is handled. Returns the batch in hand if
        something of it is left to be handed out."""
        self._iteration = iteration
        chunk = self.chunk
        if chunk is None:
            return None
        self._settle(chunk)
        if not chunk.stale and not chunk.exhausted:
            self._returned.clear()
            return chunk
        self.chunk = None
        if not chunk.stale:
            track = chunk.track
            track.position = track.handled = max(track.position, chunk.batch.next_offset)
            self._feed.finish(track, chunk.buffered)
        self._returned.set()
        return None

    def let_go(self, iteration: object) -> None:
        """An iteration has ended; whether its last record was handled is not known, so it was not. When another one has
        asked since, what is in hand is that one's."""
        if iteration is self._iteration:
            self._returned.set()

    def discard(self, track: Track) -> None:
        """What is in hand of a track counts no more."""
        if self.chunk is not None and self.chunk.track is track:
            self.chunk.discarded = True

    @property
    def busy(self) -> bool:
        """A handler has something in hand, and has not returned."""
        return not self._returned.is_set()

    def interrupt(self) -> None:
        """Hand out nothing more of what is in hand; it will be fetched again. What was handed out counts as ever."""
        chunk = self.chunk
        if chunk is not None and not chunk.stale:
            track = chunk.track
            track.position = self.position(track)
            track.version += 1
            self._feed.fetch_again(track)

    def position(self, track: Track) -> int:
        """Offset of the next record to come."""
        chunk = self.chunk
        if chunk is not None and chunk.track is track and not chunk.stale:
            return chunk.handled_on_return or track.position
        return track.position

    def handled(self, track: Track) -> int:
        """Everything below it has been handled."""
        chunk = self.chunk
        if chunk is not None and chunk.track is track and chunk.current is not None and not chunk.discarded:
            return max(track.handled, chunk.current.offset)
        return track.handled

    async def wait_returned(self, track: Track, seconds: float) -> bool:
        """Wait until the handler has returned from what is in hand of a track; False: not in time."""
        if self.chunk is None or self.chunk.track is not track:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._returned.wait()
        except TimeoutError:
            return False
        return True

    def _settle(self, chunk: Chunk) -> None:
        offset = chunk.handled_on_return
        if offset is None or chunk.discarded:
            return
        track = chunk.track
        if not chunk.stale:
            track.position = track.handled = offset
            return
        track.handled = max(track.handled, offset)
        if track.position < offset and self._feed.tracks.get(track.where) is track:
            track.position = offset  # it was handed out in the moment of `interrupt`
            self._feed.fetch_again(track)
