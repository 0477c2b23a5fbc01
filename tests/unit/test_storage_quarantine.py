"""What was set aside is kept for a while, the last one of each name only, and no longer than there is room."""

from __future__ import annotations

import random

import pytest

from fluxd.broker.quarantine_keeper import QuarantineKeeper
from fluxd.core import limits
from fluxd.core.types import GroupId
from fluxd.storage import copies
from fluxd.storage.quarantine import QUARANTINE, SINCE_NAME, free_path, sweep
from tests.simulation.clock import DiskSpeed, SimReactor, Simulator
from tests.simulation.disk import SimDisk

DAY_MS = 24 * 3600 * 1000
GROUP = GroupId(bytes(range(16)), 3)
NAME = GROUP.directory_name


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def put(disk: SimDisk, name: str, *, file: bool = False) -> str:
    """Set something aside; returns what it is called there."""
    path = free_path(disk, name)
    disk.set_bytes(path if file else f"{path}/1.seg", b"data")
    return path.rpartition("/")[2]


def entries(disk: SimDisk) -> list[str]:
    return [name for name in disk.list(QUARANTINE) if name != SINCE_NAME]


def look(disk: SimDisk, days: float, *, keep_days: float = 7, wanted: str = "") -> list[str]:
    return sweep(
        disk, now_ms=int(days * DAY_MS), keep_ms=int(keep_days * DAY_MS), reserve_bytes=limits.DISK_RESERVE_BYTES,
        wanted=lambda name: name == wanted,
    )  # fmt: skip


def test_it_is_kept_for_so_many_days(disk: SimDisk) -> None:
    """Counted from when it was first seen; files and directories."""
    put(disk, "a-0")
    put(disk, "votes", file=True)
    assert look(disk, 100) == []
    assert look(disk, 106.9) == []
    put(disk, "b-0")
    assert look(disk, 106.95) == []
    assert look(disk, 107) == ["a-0.1", "votes.1"]
    assert entries(disk) == ["b-0.1"]
    assert look(disk, 114) == ["b-0.1"]
    assert entries(disk) == []


def test_only_the_last_of_a_name_is_kept(disk: SimDisk) -> None:
    """By number, also beyond nine, and when lower numbers are free again."""
    for _ in range(11):
        put(disk, "a-0")
    put(disk, "a-1")
    assert len(look(disk, 1)) == 10
    assert entries(disk) == ["a-0.11", "a-1.1"]
    assert put(disk, "a-0") == "a-0.12"
    assert look(disk, 2) == ["a-0.11"]


def test_without_room_nothing_is_kept(disk: SimDisk) -> None:
    """The oldest goes first, and what is not replaced yet last."""
    put(disk, NAME)
    look(disk, 1)
    put(disk, "b-0")
    look(disk, 2)
    put(disk, "c-0")
    look(disk, 3)
    disk.free = limits.DISK_RESERVE_BYTES
    assert look(disk, 4) == []
    disk.free = limits.DISK_RESERVE_BYTES - 1
    assert look(disk, 4, wanted=NAME) == ["b-0.1", "c-0.1", f"{NAME}.1"]


def test_no_more_goes_than_gives_room(disk: SimDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as there is the reserve again, the rest stays."""
    for name in ("a-0", "b-0", "c-0"):
        put(disk, name)
    look(disk, 1)
    monkeypatch.setattr(disk, "free_bytes", lambda: limits.DISK_RESERVE_BYTES - (len(entries(disk)) > 2))
    assert look(disk, 2) == ["a-0.1"]


def test_what_is_not_replaced_yet_is_kept(disk: SimDisk) -> None:
    """However long the copy takes."""
    put(disk, NAME)
    look(disk, 1)
    assert look(disk, 100, wanted=NAME) == []
    assert look(disk, 101) == [f"{NAME}.1"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a-0.1": "x"}', b'{"a-0.1": 99999999999999}', None])
def test_damaged_times_begin_anew(disk: SimDisk, content: bytes | None) -> None:
    """It is kept longer then; a time that is still to come counts as now."""
    put(disk, "a-0")
    look(disk, 1)
    if content is None:
        disk.remove(f"{QUARANTINE}/{SINCE_NAME}")
    else:
        disk.set_bytes(f"{QUARANTINE}/{SINCE_NAME}", content)
    assert look(disk, 9) == []
    assert look(disk, 15.9) == []
    assert look(disk, 16) == ["a-0.1"]


def test_what_is_no_such_thing_is_left_alone(disk: SimDisk) -> None:
    """What a copy is just removing, and what somebody put there."""
    disk.set_bytes(f"{QUARANTINE}/{NAME}.copy/1.seg", b"")
    disk.set_bytes(f"{QUARANTINE}/notes", b"")
    disk.free = 0
    assert look(disk, 1, keep_days=0) == []
    assert entries(disk) == [f"{NAME}.copy", "notes"]


def test_the_node_looks_now_and_then(disk: SimDisk) -> None:
    """While the copy of a replica is being made, what it replaces stays; then it goes."""
    simulator = Simulator()
    reactor = SimReactor(simulator, random.Random(2), DiskSpeed())
    disk.set_bytes(f"partitions/{NAME}/1.seg", b"damaged")
    copies.begin(disk, GROUP)
    assert entries(disk) == [f"{NAME}.1"]
    put(disk, "other-0")
    keeper = QuarantineKeeper(reactor, disk, keep_s=0.0)
    keeper.start()

    def run(seconds: float) -> None:
        end = simulator.now + seconds
        while simulator.now < end and simulator.step():
            pass

    run(2 * limits.QUARANTINE_CHECK_INTERVAL)
    assert entries(disk) == [f"{NAME}.1"]
    copies.finish(disk, GROUP)
    run(2 * limits.QUARANTINE_CHECK_INTERVAL)
    assert entries(disk) == []
    keeper.stop()
    put(disk, "other-0")
    run(2 * limits.QUARANTINE_CHECK_INTERVAL)
    assert entries(disk) == ["other-0.1"]
