"""Commits the offsets of what has been handled, in the background and when asked to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fluxlog.aio.connection import Connection
from fluxlog.aio.feed import Track
from fluxlog.errors import FluxlogError, from_error_message
from fluxlog.v1 import groups_pb2

_ITEMS_MAX = 10_000


class _Due(NamedTuple):
    """What is to be committed of a track, and what that answers to: it may be sought while the commit is on its way."""

    track: Track
    offset: int
    seeks: int

    @classmethod
    def of(cls, track: Track, offset: int) -> _Due:
        return cls(track, offset, track.seeks)

    @property
    def rewinds(self) -> bool:
        """It may go back."""
        return self.seeks != self.track.seeks_committed

    @property
    def changes(self) -> bool:
        """A lower offset would change nothing otherwise, and stands for no news: the record in hand was committed."""
        return self.rewinds or self.track.committed is None or self.offset > self.track.committed


class Committer:
    """Commits for one group.

    Args:
        identity: member id and epoch; None: there is no membership at the moment, nothing can be committed.
        tracks: that may be committed.
        handled: below which offset everything of a track has been handled.
        busy: whether something is being handled: it will be there to commit, whenever that is.
        interval: seconds between two commits in the background.
    """

    def __init__(
        self,
        connection: Connection,
        group: str,
        *,
        identity: Callable[[], tuple[bytes, int] | None],
        tracks: Callable[[], Iterable[Track]],
        handled: Callable[[Track], int],
        busy: Callable[[], bool],
        interval: float,
    ) -> None:
        self._connection, self._group, self._busy, self._interval = connection, group, busy, interval
        self._identity, self._tracks, self._handled = identity, tracks, handled
        self._active = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def note_activity(self) -> None:
        """Something was handed out: sooner or later there will be something to commit."""
        self._active.set()

    async def run(self) -> None:
        """Commit in the background while there is something to commit. Failures are tried again."""
        while True:
            await self._active.wait()
            self._active.clear()
            await asyncio.sleep(self._interval)
            try:
                await self.commit(self._tracks())
            except FluxlogError:
                self._active.set()
            if self._busy() or self._due(self._tracks(), self._handled):
                self._active.set()

    async def commit(
        self, tracks: Iterable[Track], *, offset_of: Callable[[Track], int] | None = None, patience: float = 0.0
    ) -> None:
        """Commit now.

        Args:
            offset_of: what to commit; else what has been handled.
            patience: seconds in which it is tried again while there is no coordinator.

        Raises:
            FluxlogError: FENCED_MEMBER: a partition is not this member's any more; or there is no coordinator.
        """
        async with self._one_at_a_time:
            due = self._due(tracks, offset_of or self._handled)
            failure: FluxlogError | None = None
            for first in range(0, len(due), _ITEMS_MAX):
                failure = await self._commit(due[first : first + _ITEMS_MAX], patience) or failure
            if failure is not None:
                raise failure

    @staticmethod
    def _due(tracks: Iterable[Track], offset_of: Callable[[Track], int]) -> list[_Due]:
        return [due for track in tracks if (due := _Due.of(track, offset_of(track))).changes]

    async def _commit(self, due: Sequence[_Due], patience: float) -> FluxlogError | None:
        identity = self._identity()
        if identity is None:
            return FluxlogError("NOT_A_MEMBER", f"not a member of group {self._group} at the moment", retriable=True)
        member_id, member_epoch = identity
        request = groups_pb2.CommitOffsetsRequest(group=self._group, member_id=member_id, member_epoch=member_epoch)
        for item in due:
            track = item.track
            request.offsets.add(
                topic=track.where.topic, topic_id=track.topic_id, partition=track.where.partition, offset=item.offset,
                rewind=item.rewinds,
            )  # fmt: skip
        answer = await self._connection.call(lambda node: node.groups.CommitOffsets, request, patience=patience)
        failure: FluxlogError | None = None
        for item, result in zip(due, answer.results, strict=True):
            if result.WhichOneof("result") == "error":
                failure = from_error_message(result.error)
                continue
            item.track.committed, item.track.seeks_committed = result.committed_offset, item.seeks
        return failure
