"""The state file while a thread works on it: the loop does not wait, and what it wanted written is."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxd.core.types import RaftIndex
from fluxd.storage.checkpoint import STATE_NAME, StateFile
from fluxd.storage.log import PartitionLog
from fluxd.storage.real import RealFileSystem
from fluxd.storage.sync import SyncJob
from tests.simulation.disk import Keep, SimDisk
from tests.storage_kit import DIRECTORY, append, create_log, open_log, run

SMALL = 1000
LAST = 61
STATE = f"{DIRECTORY}/{STATE_NAME}"
EIO = OSError(errno.EIO, "bad disk")


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def _synced(log: PartitionLog) -> SyncJob:
    """Several segments more; a job for them that has done all its steps and wants nothing but `finish_sync`."""
    while log.last_index < LAST:
        append(log, bytes(100))
    job = log.begin_sync()
    run(job.steps)
    return job


def _while_it_syncs(log: PartitionLog, action: Callable[[], None]) -> None:
    """Have something happen in another thread in the middle of the next sync of the state file, and end there."""
    file = log._state._file
    real = file.sync

    def sync_meanwhile() -> None:
        file.sync = real  # type: ignore[method-assign]
        loop = threading.Thread(target=action, daemon=True)
        loop.start()
        loop.join(10)
        assert not loop.is_alive(), "it waits"
        real()

    file.sync = sync_meanwhile  # type: ignore[method-assign]


def test_a_sync_is_finished_while_another_thread_waits_for_the_state_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk hangs in a trim: the loop, which finishes a sync of the log, does not. The mark follows by itself."""
    log = create_log(RealFileSystem(tmp_path))
    append(log)
    job = log.begin_sync()
    run(job.steps)
    entered, leave, fdatasync = threading.Event(), threading.Event(), os.fdatasync

    def slow(fd: int) -> None:
        entered.set()
        assert leave.wait(30)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    thread = threading.Thread(target=log._state.make_durable)
    loop = threading.Thread(target=lambda: log.finish_sync(job, RaftIndex(2)))
    thread.start()
    assert entered.wait(10)
    loop.start()
    loop.join(10)
    waits = loop.is_alive()
    leave.set()
    thread.join(10)
    loop.join(10)
    assert not waits and not thread.is_alive()
    assert log.synced_index == 2
    found = StateFile.open(RealFileSystem(tmp_path), STATE)
    assert found is not None and found.state is not None
    assert (found.state.mark.index, found.state.checkpoint.commit_index) == (2, 2)


def test_a_mark_that_could_not_be_written_is_what_a_trim_makes_durable(disk: SimDisk) -> None:
    """It came while another thread had the file, which then failed to write it: the older mark names a segment that
    goes."""
    log = create_log(disk, SMALL)
    job = _synced(log)

    def finish() -> None:
        log.finish_sync(job, RaftIndex(LAST))
        disk.fail_next("write_at", EIO, path=STATE_NAME)

    _while_it_syncs(log, finish)
    with pytest.raises(OSError, match="bad disk"):
        log._state.make_durable()
    log.log_start_offset = log.log_end_offset
    run(log.write_snapshot(RaftIndex(LAST), b""))
    run(log.trim_prefix(log.log_start_offset, RaftIndex(LAST)))
    assert len(log.segment_summaries()) == 1
    disk.power_cut(Keep.NOTHING)
    opened = open_log(disk, SMALL)
    assert opened.first_index > 1 and opened.last_index == LAST


def test_a_mark_that_was_not_written_yet_counts_no_more_after_a_truncation(disk: SimDisk) -> None:
    """Written later, it would name what is not there any more."""
    log = create_log(disk, SMALL)
    job = _synced(log)

    def finish() -> None:
        log.finish_sync(job, RaftIndex(1))
        disk.fail_next("sync", EIO, path=STATE_NAME)

    _while_it_syncs(log, finish)
    with pytest.raises(OSError, match="bad disk"):
        log._state.make_durable()
    log.truncate_suffix(RaftIndex(LAST))
    log._state.make_durable()
    disk.power_cut(Keep.NOTHING)
    assert open_log(disk, SMALL).last_index == LAST - 1


def test_the_mark_never_falls_behind_a_finished_segment(disk: SimDisk) -> None:
    """What was wanted before is written before."""
    log = create_log(disk, SMALL)
    append(log)
    job = log.begin_sync()
    run(job.steps)

    def finish() -> None:
        log.finish_sync(job, RaftIndex(2))
        disk.fail_next("sync", EIO, path=STATE_NAME)

    _while_it_syncs(log, finish)
    with pytest.raises(OSError, match="bad disk"):
        log._state.make_durable()
    job = _synced(log)
    disk.kill()
    found = StateFile.open(disk, STATE)
    assert found is not None and found.state is not None
    assert 2 < found.state.mark.index < LAST
    assert found.state.checkpoint.commit_index == 2
