"""The log of one partition, which is its group's Raft log: append, read, sync, truncate.

Everything here runs on the loop but what it hands out to be run elsewhere: the steps of a SyncJob and of a snapshot,
and read plans. Reads of entries that are not in memory block for a page-cache read.

Durability in three steps. `append` writes. `begin_sync` fixes what a sync will cover; its steps run in a thread.
`finish_sync` makes `synced_index` what the job covered and writes the sync mark. A truncation makes a job in flight
void: what it covered is no more what the log holds; the next job covers the rest.

Where the log begins is the group's to say (`log_start_offset`, from TRIM entries); `trim_prefix` then lets go of whole
segments before it.

Deliberately absent: checks of a frame's checksum on append (the caller has verified it; the chain is checked here), and
any repair of corruption: a log that does not open stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from fluxd.core import limits
from fluxd.core.entry import Stamp, birth_frame, read_stamp
from fluxd.core.errors import CorruptDataError, InvariantViolation
from fluxd.core.retention import SegmentSummary
from fluxd.core.types import GroupId, Offset, RaftIndex, Term
from fluxd.storage.beside import BesideLog
from fluxd.storage.checkpoint import Checkpoint, Mark
from fluxd.storage.creation import create_files, prepare_directory
from fluxd.storage.errors import LogCorrupt
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.frames import breach
from fluxd.storage.head import find_snapshot, removable
from fluxd.storage.index import SegmentIndex
from fluxd.storage.reader import ReadPlan, entry_with_record, read_entries
from fluxd.storage.recovery import Recovered, recover
from fluxd.storage.scrub import LogScrub
from fluxd.storage.segment import Segment, segment_name
from fluxd.storage.segments import Segments
from fluxd.storage.snapshot import Snapshot, read_snapshot_file, snapshot_steps
from fluxd.storage.sync import LogSync, Synced, SyncJob
from fluxd.storage.tail import TailBudget, TailCache


class PartitionLog:
    """An open log. Made by `create` or `open`.

    Args:
        segment_ms: a segment is closed when the next entry is so much younger than its first one.

    Invariant: first_index <= synced_index <= last_index. After an OSError of `truncate_suffix` or of a sync's step
        the log must be closed and opened again `after` what is `synced`; after one of `append` it is as before.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        group: GroupId,
        recovered: Recovered,
        generation: int,
        *,
        segment_bytes: int,
        segment_ms: int = limits.SEGMENT_MS_DEFAULT,
    ) -> None:
        assert recovered.state.state is not None
        self._fs, self._directory, self._group = fs, directory, group
        self._segment_bytes, self._segment_ms = segment_bytes, segment_ms
        self._segments = Segments(fs, recovered.segments)
        self.scrub = LogScrub(fs, self._segments, BesideLog(fs, directory, group, recovered.state))
        self._state = recovered.state
        self._last = recovered.last
        self._tail = TailCache()
        self._sealed = False
        """The last segment takes no more entries."""
        self._size_bytes = self.written_bytes = sum(segment.size for segment in recovered.segments)
        """`written_bytes` only grows: it does not fall when segments go."""
        self._sync = LogSync(fs, directory, self._segments, recovered.state)
        self._generation = generation
        self._checkpoint = self._valid_checkpoint(recovered.state.state.checkpoint)
        self.keeps_cached = False
        """Whether what was synced should stay in the machine's page cache: where consumers read, so at the leader."""
        snapshot = recovered.snapshot
        self.log_start_offset = snapshot.log_start_offset if snapshot else Offset(0)
        """First offset that can be read. Raised by the group, when a TRIM entry is committed."""
        self.commit_index = RaftIndex(
            max(
                self._checkpoint.commit_index if self._checkpoint else self.first_index,
                snapshot.index if snapshot else self.first_index,
            )
        )
        """Known to be committed: at open from the checkpoint or the snapshot, then from `finish_sync`. May lag."""

    @classmethod
    def create(
        cls, fs: FileSystem, directory: str, group: GroupId, generation: int, *, segment_bytes: int
    ) -> PartitionLog:
        """A new log with its birth entry, durable when this returns. Blocks.

        What is left of a creation that was cut off is removed. The state file is made last: a log without it was not
        created.

        Raises:
            InvariantViolation: a log is there; nothing was written.
            OSError: retriable.
        """
        prepare_directory(fs, directory)
        frame = birth_frame(group, generation)
        return cls.create_copy(fs, directory, group, generation, frame, segment_bytes=segment_bytes)

    @classmethod
    def create_copy(
        cls, fs: FileSystem, directory: str, group: GroupId, generation: int, first_frame: bytes, *, segment_bytes: int
    ) -> PartitionLog:
        """A log in a directory that is there, that begins with an entry of another replica's, durable when this
        returns. It opens again only with a snapshot that vouches for its first entry, unless that is the birth entry.
        Blocks.

        Args:
            first_frame: committed, its checksum verified.
        """
        created = create_files(fs, directory, generation, first_frame)
        log = cls(fs, directory, group, created, generation, segment_bytes=segment_bytes)
        log._tail.append(created.last, first_frame)
        return log

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        directory: str,
        group: GroupId,
        generation: int,
        *,
        segment_bytes: int,
        after: Synced | None = None,
        unfinished: bool = False,
    ) -> PartitionLog:
        """Open a log; a torn tail is cut. All that it holds is durable when this returns. Blocks.

        Args:
            segment_bytes: a segment is closed when the next frame would make it larger.
            after: what this process knows to be durable, when a file of the log had an error; the log is closed. What
                stands behind it is removed, and what comes next goes to a new segment.
            unfinished: see `recover`.

        Raises:
            LogMissing: there is none, or its creation did not finish; nothing was written.
            LogCorrupt: the replica must stay out; nothing was written.
            OSError: retriable.
        """
        recovered = recover(fs, directory, group, after, unfinished=unfinished)
        try:
            log = cls(fs, directory, group, recovered, generation, segment_bytes=segment_bytes)
            log._sealed = after is not None
            return log
        except (CorruptDataError, OSError) as error:  # the checkpoint lies in an older segment, which is read
            recovered.segments[-1].close()
            recovered.state.close()
            if isinstance(error, OSError):
                raise
            raise LogCorrupt(str(error)) from error

    # ---- where it begins and ends

    @property
    def first_index(self) -> RaftIndex:
        """Index of the first entry."""
        return self._segments.all[0].first_index

    @property
    def last_index(self) -> RaftIndex:
        """Index of the last entry (inclusive)."""
        return self._last.raft_index

    @property
    def last(self) -> Stamp:
        """Of the last entry. Its checksum stands for the whole log."""
        return self._last

    @property
    def log_end_offset(self) -> Offset:
        """Offset of the next record (exclusive)."""
        return self._last.next_offset

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        return self._size_bytes

    @property
    def synced_index(self) -> RaftIndex:
        """Highest index known to be durable (inclusive)."""
        return self._sync.mark.index

    @property
    def synced(self) -> Synced:
        """For `open`, when this log had an error and no sync is in flight."""
        return self._sync.synced

    @property
    def dirty(self) -> bool:
        """Something was written that no finished sync covers."""
        return self._sync.mark.index < self._last.raft_index

    @property
    def checkpoint(self) -> Checkpoint | None:
        """As read at open; None where it does not fit the log or the generation."""
        return self._checkpoint

    # ---- writing

    def configure(self, *, segment_bytes: int, segment_ms: int) -> None:
        """Other bounds of a segment, from the next entry on."""
        self._segment_bytes, self._segment_ms = segment_bytes, segment_ms

    def share_tail(self, budget: TailBudget) -> None:
        """What is kept in memory counts in a node's budget until the log is closed."""
        self._tail.share(budget)

    def append(self, frame: bytes, stamp: Stamp | None = None) -> Stamp:
        """Write one entry at the end; not durable before a sync.

        Args:
            frame: whole, its checksum verified by the caller; kept in memory as it is.
            stamp: of the frame, where the caller has read it already.

        Raises:
            InvariantViolation: it does not continue the log; nothing was written.
            OSError: nothing was written (disk full).
        """
        if stamp is None:
            stamp = read_stamp(frame)
        why = breach(self._last, stamp)
        if why or stamp.frame_bytes != len(frame):
            raise InvariantViolation(
                f"{self._directory}: {why or f'a frame of {stamp.frame_bytes} in {len(frame)} bytes'}"
            )
        segment = self._segments.active
        too_old = segment.began_ms and stamp.append_time_ms - segment.began_ms >= self._segment_ms
        if too_old or self._sealed or segment.size + stamp.frame_bytes > self._segment_bytes:
            segment = self._roll(frame, stamp)
        else:
            segment.append(frame, stamp)
        self._sync.wrote(segment)
        self._last = stamp
        self._size_bytes += stamp.frame_bytes
        self.written_bytes += stamp.frame_bytes
        self._tail.append(stamp, frame)
        return stamp

    def _roll(self, frame: bytes, stamp: Stamp) -> Segment:
        path = f"{self._directory}/{segment_name(stamp.raft_index)}"
        file = self._fs.open(path, create=True, rests=True)
        segment = Segment(path, stamp, 0, index=SegmentIndex(), file=file)
        try:
            segment.append(frame, stamp)
        except OSError:
            file.close()
            self._fs.remove(path)
            raise
        self._sync.rolled(self._segments.active)
        self._segments.all.append(segment)
        self._sealed = False
        return segment

    def truncate_suffix(self, first_removed: RaftIndex) -> None:
        """Remove an entry and all behind it; durable when this returns. Blocks.

        The sync mark falls first, durably: with the old one a power cut after the truncation would look like
        corruption.

        Raises:
            InvariantViolation: the entry is the first one, or at or below a commit index given to `finish_sync`.
            OSError: the log must be closed and opened again.
        """
        if first_removed > self.last_index:
            return
        if first_removed <= max(self.first_index, self.commit_index):
            raise InvariantViolation(
                f"{self._directory}: truncation from {first_removed}, committed {self.commit_index}"
            )
        last = self.stamp_at(RaftIndex(first_removed - 1))
        segments = self._segments
        kept, end = segments.position_of(last.raft_index)
        end += last.frame_bytes
        self._sync.fall(Mark(kept.first_index, end, last.raft_index))
        self._remove_behind(kept)
        if kept.file is None:
            kept.file = self._fs.open(kept.path, rests=True)
        kept.file.truncate(end)
        kept.file.sync()
        assert kept.index is not None
        kept.index.truncate(first_removed)
        kept.size = end
        self._size_bytes = sum(segment.size for segment in segments.all)
        self._last = last
        self._tail.truncate(first_removed)
        segments.forget_window()

    def _remove_behind(self, kept: Segment) -> None:
        """Last one first, so that what a power cut leaves is a prefix."""
        segments = self._segments.all
        while segments[-1] is not kept:
            removed = segments.pop()
            removed.close()
            self._fs.remove(removed.path)
            self._sync.removed(removed)
        self._fs.sync_directory(self._directory)
        self._sync.names_synced()

    def trim_prefix(self, log_start_offset: Offset, snapshot_index: RaftIndex) -> list[Callable[[], None]]:
        """Let go of whole closed segments whose records all lie below a log start: out of this log at once, out of
        the directory by the blocking steps that are returned (`head.py` says what a power cut in between leaves).

        Args:
            log_start_offset: of the last durable snapshot, which may be lower than the log start is by now.
            snapshot_index: its index; the log keeps that entry.

        Returns:
            Empty when there is nothing to let go of. After a step's OSError the next call has all of it done again.
        """
        segments = self._segments.all
        count = removable(segments, log_start_offset, RaftIndex(min(snapshot_index, self.synced_index)))
        while any(segment.file is not None for segment in segments[:count]):  # not synced yet
            count -= 1
        self._size_bytes -= self._segments.let_go(count)
        let_go = self._segments.let_go_paths
        if not let_go:
            return []
        return [
            self._state.make_durable,
            *(partial(self._fs.remove, path) for path in let_go),
            partial(self._fs.sync_directory, self._directory),
            let_go.clear,
        ]

    def removable(self, log_start_offset: Offset, snapshot_index: RaftIndex) -> bool:
        """Whether something could go with a snapshot like that, or went and may still be in the directory."""
        return bool(self._segments.let_go_paths or removable(self._segments.all, log_start_offset, snapshot_index))

    def segment_summaries(self) -> list[SegmentSummary]:
        """All segments in order, as retention looks at them."""
        return self._segments.summaries(self._last)

    # ---- syncing

    def begin_sync(self) -> SyncJob:
        """Fix what the next sync covers: all that is written now. One job at a time."""
        return self._sync.begin(self.last_index, keep_cached=self.keeps_cached)

    def finish_sync(self, job: SyncJob, commit_index: RaftIndex) -> None:
        """All steps of the job have returned: what it covered is durable. Writes mark and checkpoint, not synced.

        Args:
            commit_index: known to be committed; the checkpoint gets at most what is synced.

        Raises:
            OSError: of writing the mark; the log must be closed and opened again.
        """
        self.commit_index = max(self.commit_index, commit_index)
        if self._sync.finish(job):
            commit = RaftIndex(min(self.commit_index, self.synced_index))
            self._sync.record(Checkpoint(commit, self.term_at(commit), self._generation))

    # ---- reading entries

    def term_at(self, index: RaftIndex) -> Term:
        """Term of an entry in first_index..last_index."""
        if not self.first_index <= index <= self.last_index:
            raise InvariantViolation(f"{self._directory}: no entry {index} in {self.first_index}..{self.last_index}")
        hit = self._tail.get(index)
        return hit[0].leader_epoch if hit else self._segments.term_at(index)

    def epoch_first_index(self, index: RaftIndex, lower_limit: RaftIndex) -> RaftIndex:
        """First index of the run of equal terms that holds an entry, or the limit where that is higher."""
        return self._segments.run_start(index, RaftIndex(max(lower_limit, self.first_index)))

    def stamp_at(self, index: RaftIndex) -> Stamp:
        """Header of an entry in first_index..last_index."""
        return self._entry(index)[0]

    def frame_at(self, index: RaftIndex) -> bytes:
        """Whole frame of an entry in first_index..last_index.

        Raises:
            CorruptDataError: the disk no longer has what was written.
        """
        return self._entry(index)[1]

    def _entry(self, index: RaftIndex) -> tuple[Stamp, bytes]:
        if not self.first_index <= index <= self.last_index:
            raise InvariantViolation(f"{self._directory}: no entry {index} in {self.first_index}..{self.last_index}")
        return self._tail.get(index) or self._segments.entry(index)

    def forget_window(self) -> None:
        """Keep in memory nothing that was read back from files: nobody reads one entry after another now."""
        self._segments.forget_window()

    def next_offset_at(self, index: RaftIndex) -> Offset:
        """Offset of the first record behind an entry: the high watermark that a commit index stands for."""
        if index == self._last.raft_index:
            return self._last.next_offset
        return self._entry(index)[0].next_offset

    # ---- reading records

    def plan_read(self, offset: Offset, *, max_bytes: int, end_index: RaftIndex) -> bytes | ReadPlan:
        """Whole frames from the one that holds a record, at most to an entry (inclusive).

        Args:
            offset: at least log_start_offset.
            max_bytes: of all frames, but one is always returned. A plan ends at its segment's end at the latest.

        Returns:
            Bytes, empty where the record is not there yet; or what is to be read from a file.
        """
        if offset < self.log_start_offset:
            raise ValueError(f"offset {offset} is below log_start_offset {self.log_start_offset}")
        end_index = min(end_index, self.last_index)
        if offset >= self.next_offset_at(end_index):
            return b""
        hit = self._tail.read(offset, max_bytes, end_index)
        if hit is not None:
            return hit
        segment, following = self._segments.by_offset(offset)
        return ReadPlan(self._fs, segment, following, offset, max_bytes, end_index, segment.size)

    def plan_entries(
        self, index: RaftIndex, *, max_bytes: int, end_index: RaftIndex
    ) -> list[bytes] | Callable[[], list[bytes]]:
        """Whole frames from an entry in first_index..end_index on, at most to another (inclusive); at least one.

        Returns:
            The frames, or a callable for another thread, which may raise CorruptDataError or OSError.
        """
        frames = self._tail.frames(index, max_bytes, end_index)
        if frames:
            return frames
        segment, following = self._segments.holder(index)
        return partial(read_entries, self._fs, segment, following, index, max_bytes, end_index, segment.size)

    def snapshot_file(self) -> Callable[[], tuple[RaftIndex, bytes]]:
        """For another thread: the newest snapshot as it stands in its file, and its index; 0: there is none."""
        return partial(read_snapshot_file, self._fs, self._directory, self._group, self.last_index)

    def index_at_offset(self, offset: Offset) -> RaftIndex:
        """Index of the entry that holds a record in log_start_offset..log_end_offset - 1. May block."""
        if not self.log_start_offset <= offset < self.log_end_offset:
            raise ValueError(f"offset {offset} is not in {self.log_start_offset}..{self.log_end_offset - 1}")
        hit = self._tail.read(offset, 0, self.last_index)
        if hit is not None:
            return read_stamp(hit).raft_index
        segment, following = self._segments.by_offset(offset)
        return entry_with_record(self._fs, segment, following, offset, segment.size)[1].raft_index

    def find_time(self, time_ms: int, end_index: RaftIndex) -> tuple[Offset, int] | None:
        """First record that can be read whose append time is at or after a time, up to an entry. Blocks.

        Returns:
            (offset of its entry, or the log start where that is higher; append time), or None: there is none.
        """
        if time_ms > self._last.append_time_ms:
            return None
        return self._segments.find_time(time_ms, end_index, self.log_start_offset)

    # ---- snapshots, end

    def write_snapshot(self, index: RaftIndex, payload: bytes) -> list[Callable[[], None]]:
        """Blocking steps that write the state after a committed entry beside the log, with the log start as it is."""
        snapshot = Snapshot(index, self.stamp_at(index).checksum, self.log_start_offset, payload)
        return snapshot_steps(self._fs, self._directory, self._group, snapshot)

    def load_snapshot(self) -> Snapshot | None:
        """The newest snapshot that fits the log. Blocks.

        Raises:
            CorruptDataError: the segment that has its entry is damaged.
        """
        return find_snapshot(self._fs, self._directory, self._group, self._segments, self.last_index)

    def walk(self, index: RaftIndex) -> Iterator[tuple[Stamp, bytes]]:
        """Stamps and frames from an entry on, from the files. Blocks; the log must not change meanwhile.

        Raises:
            CorruptDataError: the disk no longer has what was written.
        """
        return self._segments.walk(index)

    def close(self) -> None:
        """Close all files; a sync in flight may fail then. Harmless when closed."""
        self._tail.release()
        for segment in self._segments.all:
            segment.close()
        self._state.close()

    def _valid_checkpoint(self, found: Checkpoint) -> Checkpoint | None:
        if found.generation != self._generation or not self.first_index <= found.commit_index <= self.last_index:
            return None
        return found if self.term_at(found.commit_index) == found.commit_term else None
