"""Reading frames for consumers, on the loop where the machine has them in memory."""

from __future__ import annotations

import random

import pytest

from fluxd.core import limits
from fluxd.core.entry import HEADER_BYTES, read_stamp
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import Offset, RaftIndex
from fluxd.storage.log import PartitionLog
from fluxd.storage.reader import ReadPlan
from tests.simulation.disk import SimDisk
from tests.storage_kit import append, create_log, frames_of, open_log, read_all, sync

_SEGMENT_BYTES = 8 * limits.INDEX_INTERVAL_BYTES
_HEAD = b"some head"


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def _filled(disk: SimDisk) -> PartitionLog:
    """Entries smaller and larger than what stands between two points of the index, some without records."""
    rng = random.Random(2)
    log = create_log(disk, _SEGMENT_BYTES)
    for number in range(120):
        body = rng.randbytes(rng.choice((10, 700, 20_000, limits.INDEX_INTERVAL_BYTES + 5_000)))
        append(log, body, records=rng.randint(1, 3) if number % 7 else 0)
    log.keeps_cached = True
    sync(log, log.last_index)
    log.close()
    return open_log(disk, _SEGMENT_BYTES)


def _plan(log: PartitionLog, offset: int, max_bytes: int = 1, end: int | None = None) -> ReadPlan:
    plan = log.plan_read(Offset(offset), max_bytes=max_bytes, end_index=RaftIndex(end or log.last_index))
    assert isinstance(plan, ReadPlan)
    return plan


def test_whole_frames_within_the_bounds(disk: SimDisk) -> None:
    """From the entry that holds the record: as many as fit, up to the end index and the segment's end, at least one."""
    log = _filled(disk)
    frames = frames_of(log)
    stamps = [read_stamp(frame) for frame in frames]
    rng = random.Random(3)
    for offset in range(log.log_end_offset):
        first = next(number for number, stamp in enumerate(stamps) if stamp.next_offset > offset)
        end = rng.randint(first + 1, len(frames))
        max_bytes = rng.choice((1, 3_000, 60_000, 10 * _SEGMENT_BYTES))
        plan = _plan(log, offset, max_bytes, end)
        block = plan.read(len(_HEAD))
        found = block.behind(_HEAD)
        assert found[: len(_HEAD)] == _HEAD
        assert found[len(_HEAD) :] == plan() == b"".join(frames[first:end])[: block.size]
        last = next(n for n in range(first, end) if sum(map(len, frames[first : n + 1])) == block.size)
        assert block.next_offset == stamps[last].next_offset
        assert block.size <= max(max_bytes, len(frames[first]))


def test_what_is_in_memory_is_read_at_once(disk: SimDisk) -> None:
    """The same bytes; nothing where the index would have to be built or the machine has let go of what is wanted."""
    log = _filled(disk)
    segment, _ = log._segments.by_offset(Offset(0))
    assert _plan(log, 0).read_if_cached() is None
    assert read_all(log)
    for offset in range(log.log_end_offset):
        plan = _plan(log, offset, 50_000)
        block = plan.read_if_cached(len(_HEAD))
        assert block is not None
        assert block.behind(_HEAD) == plan.read(len(_HEAD)).behind(_HEAD)
    disk.forgotten[segment.path] = segment.size
    assert _plan(log, 0).read_if_cached() is None
    assert _plan(log, 0)()


def test_damage_is_found_at_once(disk: SimDisk) -> None:
    """A flipped bit behind the first frame's header: nothing of it is handed out, on neither way."""
    log = _filled(disk)
    assert read_all(log)
    segment, position = log._segments.position_of(RaftIndex(4))
    plan = _plan(log, log.stamp_at(RaftIndex(4)).base_offset)
    disk.flip_bit(segment.path, position + HEADER_BYTES + 1)
    for read in (plan.read, plan.read_if_cached):
        with pytest.raises(CorruptDataError, match=f"^{segment.path}: position {position}: checksum of entry 4"):
            read()
