"""The directory of a replica that is being copied: nothing in it counts while the mark is there."""

from __future__ import annotations

import random

import pytest

from fluxd.core.types import RaftIndex
from fluxd.raft.opening import Opened, open_replica
from fluxd.raft.spec import GroupSpec
from fluxd.storage import copies
from fluxd.storage.errors import LogCorrupt
from fluxd.storage.log import PartitionLog
from tests.simulation.disk import Keep, PowerCut, SimDisk
from tests.storage_kit import BIRTH, DIRECTORY, GROUP, append, create_log, sync

SPEC = GroupSpec(GROUP, 0, (), b"")


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def copied(disk: SimDisk, entries: int = 5) -> PartitionLog:
    """A copy of a log of that many records, synced."""
    copies.begin(disk, GROUP)
    log = copies.create_log(disk, GROUP, 0, BIRTH, snapshot=None, segment_bytes=1 << 20)
    for _ in range(entries):
        append(log, records=0)
    sync(log, log.last_index)
    return log


def test_an_unfinished_copy_is_no_replica(disk: SimDisk) -> None:
    """However whole it looks; the copy goes on where it was."""
    last = copied(disk).last_index
    disk.power_cut(Keep.NOTHING)
    assert open_replica(disk, SPEC, has_voted=True) == "its copy is not finished"
    log = copies.open_or_begin(disk, GROUP, 0)
    assert log is not None
    assert log.last_index == last


def test_a_finished_copy_stays_one(disk: SimDisk) -> None:
    """It may have voted and acknowledged since."""
    copied(disk).close()
    copies.finish(disk, GROUP)
    disk.power_cut(Keep.NOTHING)
    opened = open_replica(disk, SPEC, has_voted=True)
    assert isinstance(opened, Opened)
    assert opened.log.last_index == 6


def test_the_mark_is_there_before_the_first_entry(disk: SimDisk) -> None:
    """Whatever a power cut keeps."""
    copies.begin(disk, GROUP)
    disk.power_cut(Keep.NOTHING)
    assert copies.is_being_copied(disk, GROUP)


def test_what_was_there_is_set_aside(disk: SimDisk) -> None:
    """As it is, each time under a name of its own; a copy that is begun anew is not kept."""
    for _ in range(2):
        create_log(disk).close()
        assert copies.open_or_begin(disk, GROUP, 0) is None
        copies.finish(disk, GROUP)
        disk.remove_tree(DIRECTORY)
    copied(disk).close()
    copies.begin(disk, GROUP)
    assert disk.list(DIRECTORY) == [copies.MARK]
    names = disk.list("quarantine")
    assert names == [f"{GROUP.directory_name}.1", f"{GROUP.directory_name}.2"]
    assert f"{1:020d}.seg" in disk.list(f"quarantine/{names[0]}")


def test_a_copy_that_cannot_be_opened_begins_anew(disk: SimDisk) -> None:
    """Damage, or a log whose snapshot's entry was not copied yet."""
    copied(disk).close()
    disk.flip_bit(f"{DIRECTORY}/{1:020d}.seg", 70)
    assert copies.open_or_begin(disk, GROUP, 0) is None
    assert disk.list(DIRECTORY) == [copies.MARK]


def test_entries_by_index(disk: SimDisk) -> None:
    """From memory or from the file, at least one, bounded in bytes and by the last one wanted."""
    log = create_log(disk, 400)
    frames = [BIRTH, *(append(log, b"x" * 50) for _ in range(20))]
    sync(log, log.last_index)
    cached = log.plan_entries(RaftIndex(15), max_bytes=300, end_index=RaftIndex(30))
    assert cached == frames[14:16]
    again = PartitionLog.open(disk, DIRECTORY, GROUP, 0, segment_bytes=400)
    for first, end in ((1, 2), (3, 3), (6, 21)):
        plan = again.plan_entries(RaftIndex(first), max_bytes=300, end_index=RaftIndex(end))
        assert callable(plan)
        found = plan()
        assert found == frames[first - 1 : first - 1 + len(found)]
        assert 1 <= len(found) <= end - first + 1


def beside(disk: SimDisk, entries: int) -> PartitionLog:
    """A copy beside a log of so many entries more than that has, synced."""
    create_log(disk).close()
    copies.begin(disk, GROUP, beside=True)
    log = copies.create_log(disk, GROUP, 0, BIRTH, snapshot=None, segment_bytes=1 << 20, beside=True)
    for _ in range(entries):
        append(log, records=0)
    sync(log, log.last_index)
    log.close()
    return log


def reopened(disk: SimDisk) -> int:
    """Last index of the replica's log."""
    opened = open_replica(disk, SPEC, has_voted=True)
    assert isinstance(opened, Opened), opened
    opened.log.close()
    return opened.log.last_index


def test_a_copy_beside_counts_only_when_that_was_decided(disk: SimDisk) -> None:
    """Until then it is kept for going on."""
    beside(disk, 5)
    disk.power_cut(Keep.NOTHING)
    opened = open_replica(disk, SPEC, has_voted=True)
    assert isinstance(opened, Opened)
    assert (opened.log.last_index, opened.copy_begun) == (1, True)
    opened.log.close()
    log = copies.open_or_begin(disk, GROUP, 0, beside=True)
    assert log is not None
    assert log.last_index == 6


def test_a_decision_is_durable(disk: SimDisk) -> None:
    """The replica may have gone on with the copy."""
    beside(disk, 5)
    copies.decide(disk, GROUP, 0)
    disk.power_cut(Keep.NOTHING)
    assert reopened(disk) == 6
    assert not copies.is_beside(disk, GROUP)


def test_a_copy_that_does_not_open_takes_no_place(disk: SimDisk) -> None:
    """It was damaged since it was written: the log counts as before, and the copy is removed."""
    beside(disk, 5)
    disk.flip_bit(f"{copies.COPIES}/{GROUP.directory_name}/{1:020d}.seg", 70)
    with pytest.raises(LogCorrupt):
        copies.decide(disk, GROUP, 0)
    assert not copies.is_beside(disk, GROUP)
    assert reopened(disk) == 1


@pytest.mark.parametrize("keep", list(Keep))
def test_power_cut_at_every_step_of_replacing(keep: Keep) -> None:
    """Decided or not, one of the two is there, whole; and once it was the copy, it is the copy for ever."""
    completed, after, last = False, 0, 1
    while not completed:
        disk = SimDisk(random.Random(after))
        beside(disk, 5)
        disk.cut_after(after)
        try:
            copies.decide(disk, GROUP, 0)
            last = 6
            copies.finish_replacing(disk, GROUP)
            completed = True
        except PowerCut:
            pass
        disk.power_cut(keep)
        found = reopened(disk)
        assert found == 6 or (found == 1 and last == 1)
        disk.power_cut(Keep.NOTHING)
        assert reopened(disk) == found
        after += 1
    assert after > 10


def test_what_was_decided_of_a_log_that_counts_no_more_is_void(disk: SimDisk) -> None:
    """The node's votes were lost before the copy took its place: the replica is copied in place, and acknowledges what
    the copy beside never had."""
    beside(disk, 5)
    copies.decide(disk, GROUP, 0)
    copied(disk, 9).close()
    copies.finish(disk, GROUP)
    assert reopened(disk) == 10
