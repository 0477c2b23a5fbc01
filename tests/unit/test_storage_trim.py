"""Trimming below the log: what may go, what a power cut leaves, and which logs may begin in the middle."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from crc32c import crc32c

from fluxd.core.types import GroupId, Offset, RaftIndex
from fluxd.storage.errors import LogCorrupt
from fluxd.storage.log import PartitionLog
from fluxd.storage.snapshot import Snapshot, encode_snapshot, snapshot_name
from tests.simulation.disk import Keep, PowerCut, SimDisk
from tests.storage_kit import DIRECTORY, GROUP, append, create_log, frames_of, open_log, read_all, run, sync

SMALL = 400


def filled(disk: SimDisk, count: int = 30) -> PartitionLog:
    """One record an entry: offset n is in entry n + 2; several segments, all synced and committed."""
    log = create_log(disk, SMALL)
    for number in range(count):
        append(log, b"%03d" % number * 20)
    sync(log, commit_index=log.last_index)
    return log


def trim(log: PartitionLog, start: int) -> None:
    """As the host does it."""
    log.log_start_offset = Offset(start)
    run(log.write_snapshot(log.commit_index, b"state"))
    run(log.trim_prefix(Offset(start), log.commit_index))


def segments(disk: SimDisk) -> list[int]:
    """First indexes of the segment files."""
    return [int(name[:20]) for name in disk.list(DIRECTORY) if name.endswith(".seg")]


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def test_whole_segments_below_the_log_start_go(disk: SimDisk) -> None:
    """The log begins at most a segment before its start, now and when it is opened again; what is behind is whole."""
    log = filled(disk)
    before, frames = segments(disk), frames_of(log)
    trim(log, 17)
    assert 1 < log.first_index <= 19
    assert segments(disk) == [index for index in before if index >= log.first_index]
    assert log.size_bytes == sum(len(frame) for frame in frames_of(log))
    assert frames_of(log) == frames[log.first_index - 1 :]
    again = open_log(disk, SMALL)
    assert (again.first_index, again.log_start_offset, again.last.checksum) == (log.first_index, 17, log.last.checksum)
    assert read_all(again) == b"".join(frames[18:])
    with pytest.raises(ValueError, match="below log_start_offset 17"):
        again.plan_read(Offset(16), max_bytes=1, end_index=again.last_index)
    assert again.find_time(0, again.last_index) == (17, again.stamp_at(RaftIndex(19)).append_time_ms)


def test_the_active_segment_stays(disk: SimDisk) -> None:
    """Also when all records lie below the log start; entries can be appended behind."""
    log = filled(disk)
    trim(log, 30)
    assert segments(disk)[0] == log.first_index > 20
    append(log)
    sync(log, log.last_index)
    assert open_log(disk, SMALL).log_end_offset == 31


def test_nothing_goes_above_the_snapshot(disk: SimDisk) -> None:
    """What the snapshot does not cover is the only trace of itself."""
    log = filled(disk)
    log.log_start_offset = Offset(25)
    run(log.write_snapshot(RaftIndex(10), b"state"))
    run(log.trim_prefix(Offset(25), RaftIndex(10)))
    assert log.first_index <= 10


def test_nothing_goes_above_the_log_start_of_the_snapshot(disk: SimDisk) -> None:
    """The log start may have risen since; only what the durable one says counts."""
    log = filled(disk)
    log.log_start_offset = Offset(12)
    run(log.write_snapshot(log.commit_index, b"state"))
    log.log_start_offset = Offset(29)
    run(log.trim_prefix(Offset(12), log.commit_index))
    assert open_log(disk, SMALL).log_start_offset == 12


def test_entries_without_records_behind_the_log_start_stay(disk: SimDisk) -> None:
    """Nobody knows of them that all replicas have them."""
    log = filled(disk, 5)
    for _ in range(20):
        append(log, records=0)
    sync(log, log.last_index)
    trim(log, 5)
    assert 1 < log.first_index <= 6
    assert log.stamp_at(log.first_index).record_count


@pytest.mark.parametrize("operation", ["write_at", "sync", "remove", "sync_directory"])
def test_a_trim_that_failed_is_done_again(disk: SimDisk, operation: str) -> None:
    """Whichever step it was, and also when more is to go by then: no file stays that the log has let go of."""
    log = filled(disk)
    log.log_start_offset = Offset(25)
    run(log.write_snapshot(log.commit_index, b"state"))
    steps = log.trim_prefix(Offset(12), log.commit_index)
    disk.fail_next(operation, OSError(errno.EIO, "bad disk"))
    with pytest.raises(OSError, match="bad disk"):
        run(steps)
    assert log.removable(Offset(12), log.commit_index)
    run(log.trim_prefix(Offset(25), log.commit_index))
    assert segments(disk)[0] == log.first_index > 13
    assert log.size_bytes == sum(len(disk.current_bytes(f"{DIRECTORY}/{index:020d}.seg")) for index in segments(disk))
    assert not log.removable(Offset(25), log.commit_index)
    assert log.trim_prefix(Offset(25), log.commit_index) == []
    first_index = log.first_index
    disk.power_cut(Keep.NOTHING)
    assert segments(disk)[0] == first_index


def test_what_is_not_synced_stays(disk: SimDisk) -> None:
    """A segment whose end no finished sync covers is kept whatever the log start."""
    log = create_log(disk, SMALL)
    for number in range(30):
        append(log, b"%03d" % number * 20)
    log.log_start_offset = Offset(20)
    assert log.trim_prefix(Offset(20), RaftIndex(25)) == []


def test_a_head_that_nothing_vouches_for_is_corruption(disk: SimDisk) -> None:
    """A lost first segment is not taken for a trimmed one."""
    log = filled(disk)
    run(log.write_snapshot(log.commit_index, b"state"))
    disk.remove(f"{DIRECTORY}/{1:020d}.seg")
    with pytest.raises(LogCorrupt, match="the log start is 0"):
        open_log(disk, SMALL)
    disk.remove(f"{DIRECTORY}/{snapshot_name(log.commit_index)}")
    with pytest.raises(LogCorrupt, match="no snapshot says why"):
        open_log(disk, SMALL)


def test_a_trimmed_log_needs_its_snapshot(disk: SimDisk) -> None:
    """Damaged, or of another group: the log does not open."""
    log = filled(disk)
    trim(log, 17)
    name = f"{DIRECTORY}/{snapshot_name(log.commit_index)}"
    sound = disk.current_bytes(name)
    disk.flip_bit(name, 30)
    with pytest.raises(LogCorrupt):
        open_log(disk, SMALL)
    other = Snapshot(log.commit_index, log.last.checksum, Offset(17), b"state")
    disk.set_bytes(name, encode_snapshot(GroupId(bytes(16), 3), other))
    with pytest.raises(LogCorrupt):
        open_log(disk, SMALL)
    disk.set_bytes(name, encode_snapshot(GROUP, Snapshot(log.commit_index, 1, Offset(17), b"state")))
    with pytest.raises(LogCorrupt):
        open_log(disk, SMALL)
    disk.set_bytes(name, sound)
    assert open_log(disk, SMALL).log_start_offset == 17


def test_a_snapshot_that_cannot_be_read_is_passed_over(disk: SimDisk) -> None:
    """The one before it is taken, or the log is read from its beginning; a replica that copies is given that, too."""
    log = filled(disk)
    for index in (RaftIndex(10), RaftIndex(20)):
        run(log.write_snapshot(index, b"after %d" % index))
    with unreadable(disk, snapshot_name(RaftIndex(20))):
        found = open_log(disk, SMALL).load_snapshot()
        assert found is not None and found.payload == b"after 10"
        assert log.snapshot_file()()[0] == 10
    with unreadable(disk, ".snap"):
        assert open_log(disk, SMALL).load_snapshot() is None
        assert log.snapshot_file()() == (0, b"")
    found = open_log(disk, SMALL).load_snapshot()
    assert found is not None and found.payload == b"after 20"


def test_a_trimmed_log_waits_for_its_snapshot(disk: SimDisk) -> None:
    """Where the only snapshot that vouches for the log's head cannot be read, that is an error that may pass: neither
    damage, nor a log whose state is that of an earlier snapshot, or none.
    """
    log = filled(disk)
    run(log.write_snapshot(RaftIndex(30), b"before"))
    trim(log, 28)
    assert log.first_index < 30
    opened = open_log(disk, SMALL)
    for path in (snapshot_name(log.commit_index), ".snap"):
        with unreadable(disk, path):
            with pytest.raises(OSError, match="bad sector"):
                open_log(disk, SMALL)
            with pytest.raises(OSError, match="bad sector"):
                opened.load_snapshot()
    with unreadable(disk, snapshot_name(RaftIndex(30))):
        assert open_log(disk, SMALL).log_start_offset == 28


@contextmanager
def unreadable(disk: SimDisk, path: str) -> Iterator[None]:
    """Files whose path contains this have a bad sector."""
    for _ in range(10):
        disk.fail_next("read", OSError(errno.EIO, "bad sector"), path=path)
    yield
    disk.heal()


def test_power_cut_at_every_step_of_a_trim() -> None:
    """The log start is the old or the new one, and every record behind it is there."""
    seen = set()
    for after in range(20):
        for seed in range(10):
            disk = SimDisk(random.Random(seed))
            log = filled(disk)
            frames = frames_of(log)
            trim(log, 8)
            append(log)
            sync(log, log.last_index)
            frames.append(frames_of(log)[-1])
            disk.cut_after(after)
            with suppress(PowerCut):
                trim(log, 22)
            disk.power_cut(Keep.NOTHING if seed == 0 else Keep.RANDOM)
            log = open_log(disk, SMALL)
            assert log.log_start_offset in (8, 22)
            assert frames_of(log) == frames[log.first_index - 1 :]
            assert log.stamp_at(log.first_index).base_offset <= log.log_start_offset
            assert len(segments(disk)) == len({s for s in segments(disk) if s >= log.first_index})
            seen.add(log.log_start_offset)
    assert seen == {8, 22}


def test_what_a_trim_left_is_removed_at_open_also_with_a_hole(disk: SimDisk) -> None:
    """A filesystem may keep any of the removals: what lies before the first segment that is needed is not looked at."""
    log = filled(disk)
    before = segments(disk)
    contents = {index: disk.current_bytes(f"{DIRECTORY}/{index:020d}.seg") for index in before}
    trim(log, 25)
    gone = [index for index in before if index < log.first_index]
    assert len(gone) >= 3
    for index in (gone[0], gone[-1]):
        disk.set_bytes(f"{DIRECTORY}/{index:020d}.seg", contents[index])
    again = open_log(disk, SMALL)
    assert again.first_index == log.first_index
    assert segments(disk) == [index for index in before if index >= log.first_index]


def test_the_durable_mark_names_no_segment_that_went(disk: SimDisk) -> None:
    """Marks are written without a sync: a power cut brings the last durable one back."""
    log = create_log(disk, 100_000)  # a roll would sync the mark
    for _ in range(5):
        append(log, bytes(300))
    sync(log, log.last_index)
    log.configure(segment_bytes=SMALL, segment_ms=1 << 40)
    for _ in range(2):
        append(log, bytes(300))
    sync(log, log.last_index)
    trim(log, 7)
    assert log.first_index > 1
    disk.power_cut(Keep.NOTHING)
    assert open_log(disk, SMALL).log_start_offset == 7


def test_a_snapshot_of_the_first_format_is_loaded(disk: SimDisk) -> None:
    """Data directories from before logs were trimmed."""
    log = filled(disk)
    head = struct.pack("<4sIQQ", b"FXP1", log.stamp_at(RaftIndex(9)).checksum, 9, 5) + b"state"
    disk.set_bytes(f"{DIRECTORY}/{snapshot_name(RaftIndex(9))}", head + struct.pack("<I", crc32c(head)))
    snapshot = open_log(disk, SMALL).load_snapshot()
    assert snapshot is not None
    assert (snapshot.index, snapshot.log_start_offset, snapshot.payload) == (9, 0, b"state")


def test_what_a_snapshot_covers_is_committed(disk: SimDisk) -> None:
    """The checkpoint may lag behind it, or be lost."""
    log = create_log(disk, SMALL)
    for _ in range(10):
        append(log)
    sync(log, commit_index=1)
    run(log.write_snapshot(RaftIndex(8), b"state"))
    disk.kill()
    assert open_log(disk, SMALL).commit_index == 8


def test_a_segment_ends_by_age(disk: SimDisk) -> None:
    """With the next entry; the birth entry has no age."""
    log = create_log(disk)
    log.configure(segment_bytes=1 << 20, segment_ms=1_000)
    append(log, after_ms=10_000_000)
    append(log, after_ms=999)
    assert segments(disk) == [1]
    append(log, after_ms=1)
    assert segments(disk) == [1, 4]
    summaries = log.segment_summaries()
    assert [(s.base_offset, s.end_offset, s.last_append_time_ms) for s in summaries] == [
        (0, 2, 10_000_999),
        (2, 3, 10_001_000),
    ]
