"""The partition log: what is appended is read back, by index, offset and time, from memory and from files."""

from __future__ import annotations

import errno
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fluxd.core import limits
from fluxd.core.entry import Stamp, read_stamp
from fluxd.core.errors import CorruptDataError, InvariantViolation
from fluxd.core.types import GroupId, Offset, RaftIndex
from fluxd.storage.checkpoint import Checkpoint
from fluxd.storage.errors import LogMissing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.log import PartitionLog
from fluxd.storage.real import RealFileSystem
from tests.simulation.disk import Keep, PowerCut, SimDisk
from tests.storage_kit import (
    BIRTH,
    DIRECTORY,
    GROUP,
    append,
    create_log,
    frames_of,
    last_stamp,
    next_frame,
    open_log,
    read_all,
    run,
    sync,
    term,
)  # fmt: skip

SMALL = 1_000
"""Segment size of these tests: a handful of entries."""


@pytest.fixture(params=["real", "simulated"])
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    if request.param == "real":
        return RealFileSystem(tmp_path / "data")
    return SimDisk(random.Random(1))


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def filled(fs: FileSystem, count: int = 60) -> tuple[PartitionLog, list[bytes]]:
    """A log of several segments: terms change, some entries have no records, some have many."""
    log = create_log(fs, SMALL)
    frames = [BIRTH]
    for number in range(count):
        records = number % 4
        frames.append(append(log, b"v" * (number * 7 % 200), records=records, term=number // 10, after_ms=number % 3))
    return log, frames


# ---- appending and reading


def test_only_a_leaders_log_keeps_the_page_cache(disk: SimDisk) -> None:
    """What a follower has synced need not stay in memory; what a leader has, stays."""
    log = create_log(disk)
    for leads in (True, False, True):
        log.keeps_cached = leads
        before = disk.forgotten.copy()
        append(log)
        sync(log)
        assert (disk.forgotten == before) == leads
    assert list(disk.forgotten.values()) == [log.size_bytes - len(frames_of(log)[-1])]
    log.close()


def test_a_new_log_holds_its_birth_entry(fs: FileSystem) -> None:
    """The first entry has index 1, no records, and is durable when create returns."""
    log = create_log(fs)
    assert (log.first_index, log.last_index, log.synced_index, log.dirty) == (1, 1, 1, False)
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes) == (0, 0, len(BIRTH))
    assert (log.last.leader_epoch, log.last.checksum) == (0, read_stamp(BIRTH).checksum)
    log.close()
    assert frames_of(open_log(fs)) == [BIRTH]


def test_round_trip_over_rolls(fs: FileSystem) -> None:
    """What was appended is read back by index and by offset, before and after the log is opened again."""
    log, frames = filled(fs)
    assert len([name for name in fs.list(DIRECTORY) if name.endswith(".seg")]) > 5
    stamps = [read_stamp(frame) for frame in frames]
    sync(log)
    for opened in (log, None):
        if opened is None:
            opened = open_log(fs, SMALL)
        assert frames_of(opened) == frames
        assert opened.size_bytes == sum(map(len, frames))
        for max_bytes in (1, 300, 5_000):
            found = _stamps(read_all(opened, max_bytes))
            assert [s for s in found if s.record_count] == [s for s in stamps if s.record_count]
            assert found == [s for s in stamps if s in found], "in order, each once"
        opened.close()


def test_every_offset_and_index_is_found(fs: FileSystem) -> None:
    """A plan's first frame holds the record asked for; index_at_offset names it; terms and runs are as appended."""
    log, frames = filled(fs)
    sync(log)
    log.close()
    log = open_log(fs, SMALL)
    stamps = [read_stamp(frame) for frame in frames]
    for stamp in stamps:
        assert log.term_at(stamp.raft_index) == stamp.leader_epoch
        assert log.next_offset_at(stamp.raft_index) == stamp.next_offset
        first = min(s.raft_index for s in stamps if s.leader_epoch == stamp.leader_epoch)
        assert log.epoch_first_index(stamp.raft_index, RaftIndex(1)) == first
        assert log.epoch_first_index(stamp.raft_index, RaftIndex(stamp.raft_index)) == stamp.raft_index
        for offset in range(stamp.base_offset, stamp.next_offset):
            plan = log.plan_read(Offset(offset), max_bytes=1, end_index=log.last_index)
            assert (plan if isinstance(plan, bytes) else plan()) == frames[stamp.raft_index - 1]
            assert log.index_at_offset(Offset(offset)) == stamp.raft_index


def test_reads_stop_at_the_end_index(fs: FileSystem) -> None:
    """Nothing above the end index is returned, from memory or from files, and a record above it is not there yet."""
    log, frames = filled(fs)
    sync(log)
    reopened = open_log(fs, SMALL)
    for opened in (log, reopened):
        for end in (3, 17, 40):
            found = read_all(opened, 100_000, end)
            indexes = [s.raft_index for s in _stamps(found)]
            assert indexes
            assert max(indexes) <= end
            assert (
                opened.plan_read(read_stamp(frames[end - 1]).next_offset, max_bytes=9, end_index=RaftIndex(end)) == b""
            )
    with pytest.raises(ValueError, match="below log_start_offset 0"):
        log.plan_read(Offset(-1), max_bytes=1, end_index=RaftIndex(1))


def test_find_time(fs: FileSystem) -> None:
    """The first entry with records at or after a time, never one above the end index."""
    log, frames = filled(fs)
    sync(log)
    reopened = open_log(fs, SMALL)
    stamps = [read_stamp(frame) for frame in frames]
    for time_ms in range(-1, log.last.append_time_ms + 3):
        for end in (1, 20, len(frames)):
            expected = next(
                (
                    (s.base_offset, s.append_time_ms)
                    for s in stamps[:end]
                    if s.record_count and s.append_time_ms >= time_ms
                ),
                None,
            )
            assert log.find_time(time_ms, RaftIndex(end)) == expected
            assert reopened.find_time(time_ms, RaftIndex(end)) == expected


def test_the_tail_is_read_from_memory(disk: SimDisk) -> None:
    """Entries of the last 4 MiB cost no read; a bound on bytes holds however small the entries are."""
    log = create_log(disk)
    for _ in range(200):
        append(log, b"x" * 60_000)
    disk.bytes_read = 0
    first_in_memory = RaftIndex(log.last_index - limits.TAIL_CACHE_BYTES // 61_000)
    for index in range(first_in_memory, log.last_index + 1):
        assert log.stamp_at(RaftIndex(index)).raft_index == index
        assert isinstance(
            log.plan_read(log.stamp_at(RaftIndex(index)).base_offset, max_bytes=1, end_index=log.last_index), bytes
        )
    assert disk.bytes_read == 0
    assert log.frame_at(RaftIndex(2)) == next_frame(read_stamp(BIRTH), b"x" * 60_000)
    assert disk.bytes_read > 0


def test_reading_one_after_another_costs_few_reads(disk: SimDisk) -> None:
    """A lagging follower's entries are read ahead: far fewer reads than entries, each byte about once."""
    log = create_log(disk)
    for _ in range(3_000):
        append(log, b"x" * 400)
    sync(log)
    log.close()
    log = open_log(disk)
    before, disk.bytes_read = disk.operations["read"], 0
    for index in range(1, log.last_index + 1):
        log.frame_at(RaftIndex(index))
    assert disk.operations["read"] - before < 300
    assert disk.bytes_read < 2 * log.size_bytes


@pytest.mark.parametrize(
    "change",
    [
        {"raft_index": RaftIndex(9)}, {"previous_checksum": 1}, {"base_offset": Offset(7)}, {"leader_epoch": term(0)},
        {"append_time_ms": -1}, {"frame_bytes": 1},
    ],
)  # fmt: skip
def test_an_entry_that_does_not_follow_is_refused(disk: SimDisk, change: dict[str, int]) -> None:
    """Index, chain, offset, term, time and length must fit; nothing is written otherwise."""
    log = create_log(disk)
    append(log, term=1)
    frame = next_frame(last_stamp(log), term=1)
    with pytest.raises(InvariantViolation):
        log.append(frame, replace(read_stamp(frame), **change))  # type: ignore[arg-type]
    assert log.append(frame).raft_index == 3


def test_a_full_disk_leaves_the_log_as_it_was(disk: SimDisk) -> None:
    """A failed append, also of a segment's first entry, can be tried again."""
    log = create_log(disk, SMALL)
    failures = 0
    for _ in range(20):
        for operation in ("append", "create"):
            disk.fail_next(operation, OSError(errno.ENOSPC, "no space"))
            try:
                append(log, bytes(300))
            except OSError:
                failures += 1
            disk.heal()
        append(log, bytes(300))
    assert 20 < failures < 40, "an append makes a file only where a segment begins"
    sync(log)
    names = [name for name in disk.list(DIRECTORY) if name.endswith(".seg")]
    assert len(names) == len({*names})
    expected = frames_of(log)
    log.close()
    assert frames_of(open_log(disk, SMALL)) == expected


def test_outside_of_the_log_is_a_breach(disk: SimDisk) -> None:
    """Terms and frames exist for first_index..last_index only."""
    log = create_log(disk)
    for index in (0, 2):
        with pytest.raises(InvariantViolation, match="no entry"):
            log.term_at(RaftIndex(index))
        with pytest.raises(InvariantViolation, match="no entry"):
            log.frame_at(RaftIndex(index))
    with pytest.raises(ValueError, match="offset 0"):
        log.index_at_offset(Offset(0))


# ---- syncing


def test_a_sync_covers_what_was_written_when_it_began(disk: SimDisk) -> None:
    """Later entries are covered by the next job; the checkpoint holds at most what is synced."""
    log = create_log(disk)
    append(log)
    job = log.begin_sync()
    append(log)
    with pytest.raises(InvariantViolation, match="in flight"):
        log.begin_sync()
    run(job.steps)
    log.finish_sync(job, RaftIndex(3))
    assert (log.synced_index, log.dirty) == (2, True)
    with pytest.raises(InvariantViolation, match="another sync"):
        log.finish_sync(job, RaftIndex(3))
    disk.kill()
    assert open_log(disk).checkpoint == Checkpoint(RaftIndex(2), term(0), 0)


def test_a_segment_rolled_while_a_sync_runs_is_covered_by_the_next(disk: SimDisk) -> None:
    """The finished segment's end is the durable mark before the next segment is synced."""
    log = create_log(disk, SMALL)
    append(log, bytes(300))
    job = log.begin_sync()
    for _ in range(10):
        append(log, bytes(300))
    run(job.steps)
    log.finish_sync(job, RaftIndex(1))
    assert log.synced_index == 2
    sync(log)
    assert (log.synced_index, log.dirty) == (12, False)
    expected = frames_of(log)
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk, SMALL)) == expected


def test_a_failed_sync_raises_in_its_step(disk: SimDisk) -> None:
    """The error of fdatasync reaches whoever runs the steps; nothing is covered."""
    log = create_log(disk)
    append(log)
    job = log.begin_sync()
    disk.fail_next("sync", OSError(errno.EIO, "disk error"))
    with pytest.raises(OSError, match="disk error"):
        run(job.steps)
    assert log.synced_index == 1


# ---- truncation


@pytest.mark.parametrize("first_removed", range(2, 62))
def test_truncation_leaves_the_prefix(disk: SimDisk, first_removed: int) -> None:
    """At every index: the prefix stays, is durable at once, and can be continued with other entries."""
    log, frames = filled(disk)
    if first_removed % 2:
        sync(log)
    log.truncate_suffix(RaftIndex(first_removed))
    kept = frames[: first_removed - 1]
    assert frames_of(log) == kept
    assert (log.last_index, log.last.checksum) == (len(kept), read_stamp(kept[-1]).checksum)
    assert log.size_bytes == sum(map(len, kept))
    other = [append(log, b"other" * 50, term=9, records=2) for _ in range(10)]
    assert log.epoch_first_index(log.last_index, RaftIndex(1)) <= len(kept) + 1
    sync(log)
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk, SMALL)) == kept + other


def test_truncation_while_a_sync_runs_makes_its_job_void(disk: SimDisk) -> None:
    """Its success says nothing of what was appended in the place of what was removed."""
    log, frames = filled(disk)
    job = log.begin_sync()
    job.steps[0]()
    log.truncate_suffix(RaftIndex(30))
    other = [append(log, bytes(100), term=9) for _ in range(30)]
    run(job.steps[1:])
    log.finish_sync(job, RaftIndex(1))
    assert (log.synced_index, log.dirty) == (1, True)
    sync(log)
    assert log.synced_index == log.last_index == 59
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk, SMALL)) == frames[:29] + other


def test_truncation_lowers_a_mark_that_a_running_sync_has_raised(disk: SimDisk) -> None:
    """Otherwise a power cut after the truncation would look like corruption."""
    log, frames = filled(disk)
    job = log.begin_sync()
    run(job.steps)  # the marks of finished segments are on disk; finish_sync was not called
    log.truncate_suffix(RaftIndex(5))
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk, SMALL)) == frames[:4]


def test_nothing_committed_is_truncated(disk: SimDisk) -> None:
    """At or below the commit index, or the first entry: a broken invariant. Above the end: nothing to do."""
    log, frames = filled(disk)
    sync(log, 20)
    for index in (0, 1, 20):
        with pytest.raises(InvariantViolation, match="truncation"):
            log.truncate_suffix(RaftIndex(index))
    log.truncate_suffix(RaftIndex(62))
    assert frames_of(log) == frames
    log.truncate_suffix(RaftIndex(21))
    assert log.last_index == 20


def test_what_was_read_ahead_is_forgotten_on_truncation(disk: SimDisk) -> None:
    """An entry in the place of a removed one is returned, also when it is no more in memory."""
    log = create_log(disk)
    for number in range(20):
        append(log, b"old %d" % number)
    sync(log)
    log.close()
    log = open_log(disk)
    assert b"old" in log.frame_at(RaftIndex(5)), "reads ahead to the end"
    log.truncate_suffix(RaftIndex(10))
    new = append(log, b"new", term=1)
    for _ in range(6):
        append(log, bytes(limits.MIB - 100), term=1)
    disk.bytes_read = 0
    assert log.frame_at(RaftIndex(10)) == new
    assert disk.bytes_read > 0


# ---- opening


def test_a_missing_log_is_not_a_corrupt_one(disk: SimDisk) -> None:
    """No directory, or an empty one: LogMissing."""
    with pytest.raises(LogMissing):
        open_log(disk)
    disk.make_directory(DIRECTORY)
    with pytest.raises(LogMissing):
        open_log(disk)


def test_opening_reads_the_tail_only(disk: SimDisk) -> None:
    """Of 200 segments: one header each, and the last one up to the mark by headers. A few bytes per thousand."""
    segment_bytes = limits.SEGMENT_BYTES_MIN
    log = create_log(disk, segment_bytes)
    while len(disk.list(DIRECTORY)) < 200:
        append(log, bytes(9_000))
    sync(log)
    log.close()
    disk.bytes_read = 0
    reads, syncs = disk.operations["read"], disk.operations["sync"]
    opened = open_log(disk, segment_bytes)
    assert opened.last_index == log.last_index
    assert disk.bytes_read < 2 * segment_bytes
    assert disk.operations["read"] - reads < 230
    assert disk.operations["sync"] - syncs == 1, "the state file; the log itself was synced"


def test_the_checkpoint_is_ignored_where_it_does_not_fit(disk: SimDisk) -> None:
    """Of another generation: it names entries of another history."""
    log = create_log(disk)
    append(log)
    sync(log, 2)
    log.close()
    assert open_log(disk).checkpoint == Checkpoint(RaftIndex(2), term(0), 0)
    other = PartitionLog.open(disk, DIRECTORY, GROUP, 1, segment_bytes=SMALL)
    assert other.checkpoint is None


def test_two_groups_do_not_share_a_log(disk: SimDisk) -> None:
    """The birth entry binds a log to its group."""
    create_log(disk).close()
    with pytest.raises(Exception, match="not the birth entry"):
        PartitionLog.open(disk, DIRECTORY, GroupId(bytes(16), 0), 0, segment_bytes=SMALL)


# ---- damage found later


def test_damage_in_a_closed_segment_is_found_when_it_is_read(disk: SimDisk) -> None:
    """Opening does not read it; reading raises the one documented error and names the file."""
    log, frames = filled(disk)
    sync(log)
    log.close()
    name = sorted(disk.list(DIRECTORY))[1]
    disk.flip_bit(f"{DIRECTORY}/{name}", 100)
    log = open_log(disk, SMALL)
    index = RaftIndex(int(name[:20]))
    with pytest.raises(CorruptDataError, match=r"position \d+"):
        frames_of(log)
    plan = log.plan_read(read_stamp(frames[index - 1]).base_offset, max_bytes=1, end_index=log.last_index)
    assert callable(plan)
    with pytest.raises(CorruptDataError):
        for _ in range(100):
            plan()


# ---- snapshots


def test_snapshots_keep_the_last_two_and_fit_the_log(disk: SimDisk) -> None:
    """The newest at or below an index is loaded, when its checksum is the log's."""
    log, _ = filled(disk)
    assert log.load_snapshot() is None
    for index in (10, 20, 30):
        run(log.write_snapshot(RaftIndex(index), b"state %d" % index))
    assert [name for name in disk.list(DIRECTORY) if "snap" in name] == [f"{20:020d}.snap", f"{30:020d}.snap"]
    assert loaded(log) == (30, b"state 30")
    disk.flip_bit(f"{DIRECTORY}/{30:020d}.snap", 60)
    assert loaded(log) == (20, b"state 20")
    log.truncate_suffix(RaftIndex(15))
    for _ in range(10):
        append(log, term=9)
    assert log.load_snapshot() is None, "index 20 is another entry now"


def test_power_cut_at_every_step_of_a_snapshot() -> None:
    """Until all steps have returned the former snapshot is there, then the new one; leftovers are removed."""
    for after in range(12):
        for seed in range(8):
            disk = SimDisk(random.Random(seed))
            log, _ = filled(disk, 20)
            sync(log)
            run(log.write_snapshot(RaftIndex(5), b"former"))
            run(log.write_snapshot(RaftIndex(10), b"first"))
            disk.cut_after(after)
            expected = {(10, b"first"), (15, b"second")}
            with suppress(PowerCut):
                run(log.write_snapshot(RaftIndex(15), b"second"))
                expected = {(15, b"second")}
            disk.power_cut(Keep.NOTHING if seed == 0 else Keep.RANDOM)
            log = open_log(disk, SMALL)
            assert loaded(log) in expected
            assert not [name for name in disk.list(DIRECTORY) if name.endswith(".tmp")]
    assert len(expected) == 1


def loaded(log: PartitionLog) -> tuple[int, bytes]:
    """Index and payload of the snapshot that is loaded."""
    snapshot = log.load_snapshot()
    assert snapshot is not None
    return snapshot.index, snapshot.payload


def _stamps(data: bytes) -> list[Stamp]:
    out, position = [], 0
    while position < len(data):
        out.append(read_stamp(data, position))
        position += out[-1].frame_bytes
    return out
