"""A log whose files had an error, opened again: exactly what was synced is there, and it goes on behind that."""

from __future__ import annotations

import errno
import random
from contextlib import suppress

import pytest

from fluxd.core import limits
from fluxd.core.types import RaftIndex
from fluxd.storage.errors import LogCorrupt
from fluxd.storage.log import PartitionLog
from fluxd.storage.sync import Synced
from tests.simulation.disk import Keep, PowerCut, Sickness, SimDisk
from tests.storage_kit import DIRECTORY, GROUP, append, create_log, frames_of, open_log, run, sync

SMALL = 300


def _open_after(disk: SimDisk, synced: Synced) -> PartitionLog:
    return PartitionLog.open(disk, DIRECTORY, GROUP, 0, segment_bytes=SMALL, after=synced)


def _fail_sync(log: PartitionLog, disk: SimDisk) -> None:
    disk.fail_next("sync", OSError(errno.EIO, "bad disk"), path=".seg")
    with pytest.raises(OSError, match="bad disk"):
        run(log.begin_sync().steps)
    log.close()


@pytest.mark.parametrize("segment_bytes", [SMALL, limits.MIB])
@pytest.mark.parametrize("seed", range(8))
def test_what_was_synced_is_kept_and_nothing_else(seed: int, segment_bytes: int) -> None:
    """Whatever of the rest has reached the disk or can still be read, in this segment or in ones begun since."""
    disk = SimDisk(random.Random(seed))
    log = create_log(disk, segment_bytes)
    for _ in range(4):
        append(log)
    sync(log)
    kept = frames_of(log)
    for _ in range(1 + seed):
        append(log)
    _fail_sync(log, disk)
    log = _open_after(disk, log.synced)
    assert len(kept) <= log.last_index == log.synced_index
    assert frames_of(log)[: len(kept)] == kept
    if segment_bytes != SMALL:
        assert frames_of(log) == kept
    before = disk.names(DIRECTORY)
    append(log)
    assert len(disk.names(DIRECTORY)) == len(before) + 1, "a new segment"
    sync(log)
    frames = frames_of(log)
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk)) == frames


def test_what_can_be_read_but_was_not_synced_is_removed() -> None:
    """The cache has all of it, the disk nothing."""
    disk = SimDisk(random.Random(1))
    disk.rng.random = lambda: 0.99  # type: ignore[method-assign]
    log = create_log(disk)
    append(log)
    sync(log)
    kept = frames_of(log)
    append(log)
    _fail_sync(log, disk)
    assert frames_of(_open_after(disk, log.synced)) == kept


@pytest.mark.parametrize("segment_bytes", [SMALL, limits.MIB])
def test_a_sync_that_failed_over_a_truncation_is_told(segment_bytes: int) -> None:
    """Of a finished segment that stays, or of what was written in the place of what was removed: no later sync of that
    file fails, or brings what was lost to the disk.
    """
    disk = SimDisk(random.Random(1))
    log = create_log(disk, segment_bytes)
    append(log)
    sync(log)
    kept = frames_of(log)
    for _ in range(9):
        append(log)
    job = log.begin_sync()
    log.truncate_suffix(log.last_index)
    append(log, term=1)
    disk.fail_next("sync", OSError(errno.EIO, "bad disk"), path=".seg")
    with pytest.raises(OSError, match="bad disk"):
        run(job.steps)
    synced = log.synced
    log.close()
    log = _open_after(disk, synced)
    assert frames_of(log) == kept
    append(log, term=1)
    sync(log)
    frames = frames_of(log)
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk, segment_bytes)) == frames


def test_a_segment_that_a_truncation_removed_does_not_fail_the_sync_that_had_it() -> None:
    """It is closed: nothing of it need be on the disk any more."""
    disk = SimDisk(random.Random(1))
    log = create_log(disk, SMALL)
    for _ in range(9):
        append(log)
    job = log.begin_sync()
    before = disk.names(DIRECTORY)
    log.truncate_suffix(RaftIndex(3))
    assert len(disk.names(DIRECTORY)) < len(before)
    run(job.steps)
    log.finish_sync(job, RaftIndex(1))
    sync(log)
    assert log.synced_index == log.last_index == 2


@pytest.mark.parametrize("operations", range(12))
@pytest.mark.parametrize("keep", [Keep.NOTHING, Keep.EVERYTHING])
def test_a_truncation_whose_mark_could_not_be_written(operations: int, keep: Keep) -> None:
    """It has not begun, so nothing is cut when the log is opened again, whenever the power fails meanwhile: the mark on
    the disk may still be the old one.
    """
    disk = SimDisk(random.Random(1))
    log = create_log(disk)
    for _ in range(4):
        append(log)
    sync(log)
    frames = frames_of(log)
    disk.fail_next("sync", OSError(errno.EIO, "bad disk"), path="state")
    with pytest.raises(OSError, match="bad disk"):
        log.truncate_suffix(RaftIndex(3))
    synced = log.synced
    log.close()
    disk.cut_after(operations)
    with suppress(PowerCut):
        assert frames_of(_open_after(disk, synced)) == frames
    disk.power_cut(keep)
    assert frames_of(open_log(disk)) == frames


@pytest.mark.parametrize("seed", range(30))
def test_opening_again_may_fail_as_often_as_it_likes(seed: int) -> None:
    """Each try leaves what the next one needs, also for a process that knows nothing of it after a power cut."""
    disk = SimDisk(random.Random(seed))
    log = create_log(disk, SMALL)
    for _ in range(7):
        append(log)
    sync(log)
    kept = frames_of(log)
    for _ in range(5):
        append(log)
    _fail_sync(log, disk)
    disk.sickness = Sickness(0.1, 0.1, 0.01)
    synced, opened = log.synced, None
    for _ in range(200):
        try:
            opened = _open_after(disk, synced)
            break
        except OSError:
            continue
    disk.sickness = Sickness()
    assert opened is not None
    assert frames_of(opened)[: len(kept)] == kept
    opened.close()
    disk.power_cut()
    assert frames_of(open_log(disk, SMALL))[: len(kept)] == kept


@pytest.mark.parametrize("seed", range(60))
def test_a_log_on_a_sick_disk_keeps_what_it_said_was_synced(seed: int) -> None:
    """Appends, syncs, kills and power cuts at random: what one finished sync covered is there after all of them."""
    disk = SimDisk(random.Random(seed))
    rng = random.Random(seed)
    log = create_log(disk, SMALL)
    promised = frames_of(log)
    for _ in range(60):
        disk.sickness = Sickness(0.3, 0.05, 0.0) if rng.random() < 0.4 else Sickness()
        try:
            for _ in range(rng.randint(1, 4)):
                append(log)
            sync(log, rng.randint(1, log.synced_index))
            with disk.calm():
                promised = frames_of(log)
        except OSError:
            disk.sickness = Sickness()
            log.close()
            if rng.random() < 0.5:
                log = _open_after(disk, log.synced)
            else:
                has_holes = bool(disk.lossy_files())
                disk.power_cut() if rng.random() < 0.5 else disk.kill()
                try:
                    log = open_log(disk, SMALL)
                except LogCorrupt:  # a hole with sound frames behind it cannot be told from damage
                    assert has_holes
                    return
        with disk.calm():
            assert frames_of(log)[: len(promised)] == promised
