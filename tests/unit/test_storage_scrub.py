"""Reading a log again finds every byte that changed, and nothing where nothing did; readers are never given what
changed, nor a log with a hole."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from fluxd.core.entry import HEADER_BYTES, Stamp
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import Offset, RaftIndex
from fluxd.storage.errors import is_damage
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.index import SegmentIndex
from fluxd.storage.log import PartitionLog
from fluxd.storage.scrub import Verified
from fluxd.storage.segment import Segment
from tests.simulation.disk import SimDisk
from tests.storage_kit import DIRECTORY, append, create_log, open_log, read_all, run, sync

SEGMENT_BYTES = 600
FIRST = f"{DIRECTORY}/{1:020d}.seg"


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def filled(disk: SimDisk, entries: int = 20, size: int = 60) -> PartitionLog:
    """A log of several segments, all committed, nothing of it in memory."""
    log = create_log(disk, SEGMENT_BYTES)
    for _ in range(entries):
        append(log, bytes(size))
    sync(log, log.last_index)
    log.close()
    return open_log(disk, SEGMENT_BYTES)


def scrub(
    log: PartitionLog, max_bytes: int = 1, *, closed_only: bool = False, end_index: int | None = None
) -> Verified:
    """All pieces, to the end."""
    at = Verified()
    end = RaftIndex(end_index or log.last_index)
    while piece := log.scrub.next_piece(at, end_index=end, max_bytes=max_bytes, closed_only=closed_only):
        at = piece.read()
    return at


def trim(log: PartitionLog, offset: int) -> None:
    """Of a log whose entries are all committed."""
    log.commit_index, log.log_start_offset = log.last_index, Offset(offset)
    run(log.write_snapshot(log.last_index, b""))
    run(log.trim_prefix(log.log_start_offset, log.last_index))


READS: dict[str, Callable[[PartitionLog], object]] = {
    "copy": lambda log: log.plan_entries(RaftIndex(2), max_bytes=1 << 20, end_index=log.last_index),
    "time": lambda log: lambda: log.find_time(1, log.last_index),
    "entry": lambda log: lambda: log.scrub.verified_stamp(RaftIndex(2)),
    "behind": lambda log: lambda: log.scrub.behind(RaftIndex(2)),
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_was_trimmed_meanwhile_is_no_damage(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch, read: Callable[[PartitionLog], object], begun: bool
) -> None:
    """Of a read in another thread: before it began, or between looking up where to read and reading."""
    log = filled(disk)
    plan, load_index = read(log), Segment.load_index
    assert callable(plan)
    if begun:

        def load_then_trim(segment: Segment, fs: FileSystem, following: Stamp | None) -> SegmentIndex:
            index = load_index(segment, fs, following)
            monkeypatch.undo()
            trim(log, 12)
            return index

        monkeypatch.setattr(Segment, "load_index", load_then_trim)
    else:
        trim(log, 12)
    try:
        plan()
    except OSError as error:
        assert log.scrub.was_trimmed(error)
    else:
        assert not begun and read is READS["time"]
    assert log.first_index > 2


def test_damage_of_what_is_there_was_not_trimmed(disk: SimDisk) -> None:
    """Neither is an error that names no segment, or another log's."""
    log = filled(disk)
    trim(log, 12)
    there, gone = f"{DIRECTORY}/{log.first_index:020d}.seg", f"{DIRECTORY}/{1:020d}.seg"
    assert not log.scrub.was_trimmed(CorruptDataError(f"{there}: position 0: bad"))
    assert not log.scrub.was_trimmed(OSError(errno.EIO, "bad disk", f"{DIRECTORY}/state"))
    assert not log.scrub.was_trimmed(OSError(errno.EIO, "bad disk", "partitions/another-0/00000000000000000001.seg"))
    assert log.scrub.was_trimmed(CorruptDataError(f"{gone}: position 0: bad"))


def test_an_entry_is_looked_up_while_the_head_goes(disk: SimDisk) -> None:
    """The loop takes segments off in the middle of it."""
    log = filled(disk)

    class Meanwhile(int):
        def __lt__(self, other: int) -> bool:
            if log.first_index == 1:
                trim(log, 12)
            return int(self) < other

    segment, following = log._segments.holder(RaftIndex(Meanwhile(17)))
    assert log.first_index > 1
    assert following is not None
    assert segment.first_index <= 17 < following.raft_index


@pytest.mark.parametrize("max_bytes", [1, 150, 1 << 20])
def test_a_sound_log_is_verified_to_its_end(disk: SimDisk, max_bytes: int) -> None:
    """Whatever the pieces; the last entry stands for all of them."""
    log = filled(disk)
    at = scrub(log, max_bytes)
    assert at.last is not None
    assert (at.last.raft_index, at.last.checksum) == (log.last_index, log.last.checksum)


def test_the_segment_that_is_written_can_be_left_out(disk: SimDisk) -> None:
    """And so can what is not committed."""
    log = filled(disk)
    last_closed = max(log.scrub.segment_ends(log.last_index))
    at = scrub(log, closed_only=True)
    assert at.last is not None
    assert at.last.raft_index == last_closed < log.last_index
    at = scrub(log, end_index=last_closed - 1)
    assert at.last is not None
    assert at.last.raft_index == last_closed - 1
    at = scrub(log, closed_only=True, end_index=last_closed - 1)
    assert at.last is not None
    assert at.last.raft_index < last_closed - 1


def test_every_flipped_bit_is_found(disk: SimDisk) -> None:
    """In headers and bodies, and in the file and at the entry where it is."""
    log = filled(disk)
    size = len(disk.durable_bytes(FIRST) or b"")
    for position in range(size):
        disk.flip_bit(FIRST, position, position % 8)
        with pytest.raises(CorruptDataError, match=f"^{FIRST}: position ") as caught:
            scrub(log)
        at = int(str(caught.value).split("position ")[1].split(":")[0])
        assert at <= position
        disk.flip_bit(FIRST, position, position % 8)
    scrub(log)


def test_a_file_of_another_log_is_found(disk: SimDisk) -> None:
    """Each frame is sound, but they do not follow what is before."""
    log = filled(disk)
    other = SimDisk(random.Random(2))
    filled(other, size=61)
    second = f"{DIRECTORY}/{min(log.scrub.segment_ends(log.last_index)) + 1:020d}.seg"
    disk.set_bytes(second, other.durable_bytes(FIRST) or b"")
    with pytest.raises(CorruptDataError, match=f"^{second}: position 0: "):
        scrub(log)


def test_entries_in_another_order_are_found(disk: SimDisk) -> None:
    """Each frame is sound, and the first one is the right one."""
    log = filled(disk)
    data = disk.durable_bytes(FIRST) or b""
    size = log.stamp_at(RaftIndex(2)).frame_bytes
    first, second = data[HEADER_BYTES:][:size], data[HEADER_BYTES + size :][:size]
    disk.set_bytes(FIRST, data[:HEADER_BYTES] + second + first + data[HEADER_BYTES + 2 * size :])
    with pytest.raises(CorruptDataError, match=f"^{FIRST}: position {HEADER_BYTES}: index 3 after 1"):
        scrub(log)


@pytest.mark.parametrize("cut", [0, 1, HEADER_BYTES, 100])
def test_a_shorter_or_missing_file_is_damage(disk: SimDisk, cut: int) -> None:
    """What was there must be there."""
    log = filled(disk)
    disk.set_bytes(FIRST, (disk.durable_bytes(FIRST) or b"")[:cut])
    with pytest.raises(CorruptDataError, match=FIRST):
        scrub(log)
    disk.remove(FIRST)
    with pytest.raises(FileNotFoundError) as caught:
        scrub(log)
    assert is_damage(caught.value)


def test_what_may_pass_is_no_damage() -> None:
    """An error of the machine, but for one that says that the bytes are lost."""
    assert is_damage(OSError(errno.EIO, "Input/output error"))
    assert not is_damage(OSError(errno.EMFILE, "Too many open files"))
    assert not is_damage(ValueError("below the log start"))


def test_readers_get_what_was_written_or_an_error(disk: SimDisk) -> None:
    """Whichever bit flips: never other bytes, never a hole, never nothing."""
    log = filled(disk)
    expected = read_all(log)
    size = len(disk.durable_bytes(FIRST) or b"")
    for position in range(size):
        for bit in (0, 7):
            disk.flip_bit(FIRST, position, bit)
            try:
                assert read_all(open_log(disk, SEGMENT_BYTES) if position % 2 else log, max_bytes=150) == expected
            except Exception as error:
                assert "Corrupt" in type(error).__name__, error
            disk.flip_bit(FIRST, position, bit)
    assert read_all(log) == expected


def test_a_header_that_hides_its_record_leaves_no_hole(disk: SimDisk) -> None:
    """The index is in memory, and the entry's base offset falls: the reader must not be given what comes behind it."""
    log = filled(disk)
    assert read_all(log)
    stamp = log.stamp_at(RaftIndex(4))
    segment, position = log._segments.position_of(stamp.raft_index)
    assert stamp.base_offset == 2
    disk.flip_bit(segment.path, position + 8, 1)  # 2 becomes 0
    plan = log.plan_read(Offset(2), max_bytes=1000, end_index=log.last_index)
    assert callable(plan)
    with pytest.raises(CorruptDataError, match=f"^{segment.path}: position "):
        plan()


def test_a_point_is_read_from_the_disk(disk: SimDisk) -> None:
    """Not from memory: what is compared between replicas is what the disk has."""
    log = create_log(disk, SEGMENT_BYTES)
    for _ in range(20):
        append(log)
    sync(log, log.last_index)
    assert log.scrub.verified_stamp(RaftIndex(5)).checksum == log.stamp_at(RaftIndex(5)).checksum
    segment, position = log._segments.position_of(RaftIndex(5))
    disk.flip_bit(segment.path, position + HEADER_BYTES + 1)
    with pytest.raises(CorruptDataError, match=f"^{segment.path}: position {position}: checksum of entry 5"):
        log.scrub.verified_stamp(RaftIndex(5))
    assert log.stamp_at(RaftIndex(5)).raft_index == 5
