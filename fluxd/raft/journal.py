"""pysyncobj's journal over the partition's log and the node's votes: Raft's log *is* the partition's log.

The library never sees an entry's bytes: it gets a `FrameRef`, which knows its length and its first byte (0x12: keeps
the library off every path that unpickles: C9 in docs/raft.md). Slices are lazy (C12). Terms and votes are recorded at
once and are durable later; the guard holds every message until they are (C5).

Fail-stop: a gap, a falling term, or a truncation at or below the commit index raises InvariantViolation, and the
replica stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import overload

from pysyncobj.journal import Journal

from fluxd.core import limits
from fluxd.core.entry import FRAME_TAG, EntryKind, Stamp, build_frame, read_stamp
from fluxd.core.errors import InvariantViolation
from fluxd.core.types import GroupId, NodeId, RaftIndex, Term
from fluxd.storage.log import PartitionLog
from fluxd.storage.votes import VoteFile

_LIBRARY_NO_OP = b"\x01"
_TYPE_BYTE = bytes((FRAME_TAG,))
ENTRY_WEIGHT = 8 * limits.KIB
"""Counted for each entry on top of its bytes, where it is decided how many are sent at once: reading and checking one
costs some 20 us however small it is, and thousands of them in one step would keep the loop from all other groups."""


class FrameRef:
    """Stands for a frame's bytes in the library's hands."""

    __slots__ = ("_index", "_log")

    def __init__(self, log: PartitionLog, index: RaftIndex) -> None:
        self._log, self._index = log, index

    def __len__(self) -> int:
        return self._log.stamp_at(self._index).frame_bytes + ENTRY_WEIGHT

    def __getitem__(self, key: slice) -> bytes:
        if key != slice(None, 1):
            raise InvariantViolation(
                f"the library reads {key} of an entry"
            )  # command[:1] is all that the audited version reads
        return _TYPE_BYTE


Entry = tuple[FrameRef, int, int]
"""(command, index, term), as the library expects it."""


class EntryRange:
    """A slice of the journal, without reading it."""

    __slots__ = ("_journal", "_range")

    def __init__(self, journal: RaftJournal, indexes: range) -> None:
        self._journal, self._range = journal, indexes

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[Entry]:
        return (self._journal.entry(index) for index in self._range)

    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> EntryRange: ...
    def __getitem__(self, key: int | slice) -> Entry | EntryRange:
        if isinstance(key, slice):
            return EntryRange(self._journal, self._range[key])
        return self._journal.entry(self._range[key])

    @property
    def indexes(self) -> range:
        """Raft indexes, ascending."""
        return self._range


class RaftJournal(Journal):
    """One group's journal.

    Args:
        wall_ms: leader's clock for the entry that a new leader adds.
        on_append: called with each frame that has been appended.
        on_truncate: called with the first index that was removed.
    """

    def __init__(
        self,
        log: PartitionLog,
        votes: VoteFile,
        group: GroupId,
        generation: int,
        *,
        wall_ms: Callable[[], int],
        on_append: Callable[[bytes, Stamp], None],
        on_truncate: Callable[[RaftIndex], None],
    ) -> None:
        self.log, self._votes, self._group, self._generation = log, votes, group, generation
        self._wall_ms, self._on_append, self._on_truncate = wall_ms, on_append, on_truncate
        self.commit_index = log.commit_index
        self._first = self.entry(log.first_index)
        self._last_stamp, self._last = log.last, self.entry(log.last_index)
        """The library asks for its first and its last entry dozens of times in each step."""
        vote = votes.get(group, generation)
        self.vote_op = 0 if vote is None else votes.put(group, generation, vote.term, vote.voted_for)
        """Number of the last vote record of this group; what reflects it may leave once that is synced."""
        recorded = generation << limits.GENERATION_TERM_BITS if vote is None else vote.term
        if log.last.leader_epoch > recorded:
            # Synced beside each other, the entry got to the disk and the record of its term did not: nothing was said
            # in that term yet, and no vote in it has left. The library goes on in it without a word, so it is recorded
            # here: a replica that has said something is known by its record (`open_replica`).
            self.setCurrentTerm(log.last.leader_epoch, None)

    # ------------------------------------------------------------------ what the library reads
    def entry(self, index: int) -> Entry:
        """One entry that is in the log."""
        return FrameRef(self.log, RaftIndex(index)), index, self.log.term_at(RaftIndex(index))

    def __len__(self) -> int:
        return self.log.last_index - self.log.first_index + 1

    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> EntryRange: ...
    def __getitem__(self, key: int | slice) -> Entry | EntryRange:
        log = self.log
        if key == -1:
            stamp = log.last
            if stamp is not self._last_stamp:
                self._last_stamp = stamp
                self._last = FrameRef(log, stamp.raft_index), stamp.raft_index, stamp.leader_epoch
            return self._last
        if key == 0:
            if self._first[1] != log.first_index:
                self._first = self.entry(log.first_index)
            return self._first
        indexes = range(log.first_index, log.last_index + 1)
        if isinstance(key, slice):
            return EntryRange(self, indexes[key])
        return self.entry(indexes[key])

    # ------------------------------------------------------------------ what the library writes
    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append one entry: a frame, or the library's own entry of a new leader."""
        frame = self._no_op(idx, term) if command == _LIBRARY_NO_OP else command
        stamp = read_stamp(frame)
        if (stamp.raft_index, stamp.leader_epoch) != (idx, term):
            raise InvariantViolation(
                f"{self._group}: entry {stamp.raft_index}@{stamp.leader_epoch} added as {idx}@{term}"
            )
        self.log.append(frame, stamp)
        self._on_append(frame, stamp)

    def _no_op(self, idx: int, term: int) -> bytes:
        log = self.log
        return build_frame(
            kind=EntryKind.NO_OP, base_offset=log.log_end_offset, raft_index=idx, leader_epoch=term,
            append_time_ms=max(log.last.append_time_ms, self._wall_ms()), record_count=0,
            previous_checksum=log.last.checksum,
        )  # fmt: skip

    def deleteEntriesFrom(self, position: int) -> None:  # noqa: N802 - the library's name
        """Cut a suffix; durable before anything can replace it."""
        first_removed = RaftIndex(self.log.first_index + position)
        if first_removed > self.log.last_index:
            return
        if first_removed <= self.commit_index:
            raise InvariantViolation(
                f"{self._group}: truncation from {first_removed} at or below commit index {self.commit_index}"
            )
        self.log.truncate_suffix(first_removed)
        self._on_truncate(first_removed)

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802
        """Remembered; the checkpoint is written with the next sync."""
        if index < self.commit_index:
            raise InvariantViolation(f"{self._group}: commit index falls from {self.commit_index} to {index}")
        if index > self.log.last_index:
            raise InvariantViolation(f"{self._group}: commit index {index} above last index {self.log.last_index}")
        self.commit_index = RaftIndex(index)

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """At start: from the checkpoint or the snapshot, never above what is in the log."""
        return self.commit_index

    def setCurrentTerm(self, term: int, voted_for: int | None) -> None:  # noqa: N802
        """Recorded at once; synced later, before any message that reflects it leaves."""
        self.vote_op = self._votes.put(
            self._group, self._generation, Term(term), None if voted_for is None else NodeId(voted_for)
        )

    def getCurrentTerm(self) -> int:  # noqa: N802
        """0 when this replica never took part."""
        vote = self._votes.get(self._group, self._generation)
        return vote.term if vote else 0

    def getVotedForNodeId(self) -> int | None:  # noqa: N802
        """Whom this replica voted for in that term."""
        vote = self._votes.get(self._group, self._generation)
        return vote.voted_for if vote else None

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """The library's hook for flushing; syncs are the host's."""

    def clear(self) -> None:
        """Only the library's snapshot path calls this, which the guard keeps shut."""
        raise InvariantViolation(f"{self._group}: the library wants to clear the log")

    def deleteEntriesTo(self, position: int) -> None:  # noqa: N802
        """Only the library's compaction calls this, which is switched off."""
        raise InvariantViolation(f"{self._group}: the library wants to drop the log's head")

    def _destroy(self) -> None:
        """The host closes the log."""
