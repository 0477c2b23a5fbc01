"""Building entries and driving syncs, for the tests of storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fluxd.core import limits
from fluxd.core.entry import EntryKind, Stamp, birth_frame, build_frame, read_stamp
from fluxd.core.types import GroupId, Offset, RaftIndex, Term
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.log import PartitionLog

GROUP = GroupId(bytes(range(16)), 3)
DIRECTORY = f"partitions/{GROUP.directory_name}"
BIRTH = birth_frame(GROUP, 0)


class Job(Protocol):
    """A sync job of a log or of the vote file."""

    steps: list[Callable[[], None]]


def create_log(fs: FileSystem, segment_bytes: int = limits.SEGMENT_BYTES_DEFAULT) -> PartitionLog:
    """A new log of the test's group."""
    return PartitionLog.create(fs, DIRECTORY, GROUP, 0, segment_bytes=segment_bytes)


def open_log(fs: FileSystem, segment_bytes: int = limits.SEGMENT_BYTES_DEFAULT) -> PartitionLog:
    """The test's log, opened again."""
    return PartitionLog.open(fs, DIRECTORY, GROUP, 0, segment_bytes=segment_bytes)


def next_frame(previous: Stamp, body: bytes = b"value", *, records: int = 1, term: int = 0, after_ms: int = 1) -> bytes:
    """An entry that can follow another; without records a no-op."""
    return build_frame(
        kind=EntryKind.RECORDS if records else EntryKind.NO_OP,
        base_offset=previous.next_offset,
        raft_index=previous.raft_index + 1,
        leader_epoch=term,
        append_time_ms=previous.append_time_ms + after_ms,
        record_count=records,
        previous_checksum=previous.checksum,
        batches=[body] if records else [],
    )


def last_stamp(log: PartitionLog) -> Stamp:
    """Stamp of the last entry."""
    return log.stamp_at(log.last_index)


def append(log: PartitionLog, body: bytes = b"value", *, records: int = 1, term: int = 0, after_ms: int = 1) -> bytes:
    """Append an entry; returns its frame."""
    frame = next_frame(last_stamp(log), body, records=records, term=term, after_ms=after_ms)
    log.append(frame)
    return frame


def run(steps: Iterable[Callable[[], None]]) -> None:
    """What the pool of threads does."""
    for step in steps:
        step()


def sync(log: PartitionLog, commit_index: int = 1) -> None:
    """A whole group commit."""
    job = log.begin_sync()
    run(job.steps)
    log.finish_sync(job, RaftIndex(commit_index))


def frames_of(log: PartitionLog) -> list[bytes]:
    """All frames of a log."""
    return [log.frame_at(RaftIndex(index)) for index in range(log.first_index, log.last_index + 1)]


def read_all(log: PartitionLog, max_bytes: int = 1 << 20, end_index: int | None = None) -> bytes:
    """All frames with records, and what stands between them, as consumers read them: from the first record on."""
    end, offset = RaftIndex(end_index or log.last_index), log.log_start_offset
    out: list[bytes] = []
    while True:
        plan = log.plan_read(offset, max_bytes=max_bytes, end_index=end)
        data = plan if isinstance(plan, bytes) else plan()
        if not data:
            return b"".join(out)
        out.append(data)
        position = 0
        while position < len(data):
            stamp = read_stamp(data, position)
            position += stamp.frame_bytes
            offset = Offset(stamp.next_offset)


def term(number: int) -> Term:
    """A term."""
    return Term(number)
