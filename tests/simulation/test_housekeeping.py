"""Snapshots of a replica's state that nobody asked for."""

from __future__ import annotations

import pytest

from fluxd.core import limits
from fluxd.core.entry import Stamp
from fluxd.core.types import RaftIndex
from fluxd.raft.opening import Opened, open_replica
from tests.simulation.node import GROUP
from tests.simulation.test_copying import healed, lab_with, node
from tests.simulation.test_scrubbing_files import restart, snapshots


def test_many_small_entries_are_not_all_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many there is a snapshot on each node, however few bytes they are; the state is what it was."""
    monkeypatch.setattr(limits, "SNAPSHOT_ENTRIES", 20)
    lab = lab_with(records=1)
    for number in range(15):
        lab.commit(1, b"%d" % number)
    assert not snapshots(lab, 3)
    for number in range(30):
        lab.commit(1, b"%d" % number)
    for number in (1, 2, 3):
        lab.until(lambda number=number: bool(snapshots(lab, number)))  # type: ignore[misc]
        assert int(snapshots(lab, number)[-1].rsplit("/", 1)[1].split(".")[0]) >= 20
    values = lab.values(1)
    restart(lab, 3)
    lab.until(healed(lab))
    assert lab.values(3) == values


def test_what_was_read_back_from_files_does_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts in no budget: neither what opening has read (the entry that the last snapshot is tied to), nor what a
    follower that lagged was sent, once nobody lags.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_ENTRIES", 10)
    lab = lab_with(records=30)
    lab.until(lambda: bool(snapshots(lab, 2)))
    lab.kill(3)
    for number in range(30):
        lab.commit(1, b"%d" % number + bytes(30_000))
    lab.kill(2)
    spec = lab[1].spec
    opened = open_replica(node(lab, 2).disk, spec, has_voted=True)
    assert isinstance(opened, Opened)
    assert opened.snapshot_index > 1
    assert opened.log._segments._window == {}
    opened.log.close()
    lab.start(2)
    lab.until(healed(lab, 2))
    lab[1].log._tail.shrink()
    read, entry = list[RaftIndex](), lab[1].log._segments.entry

    def read_back(index: RaftIndex) -> tuple[Stamp, bytes]:
        read.append(index)
        return entry(index)

    monkeypatch.setattr(lab[1].log._segments, "entry", read_back)
    lab.invariants.after_step = lambda node: None  # type: ignore[method-assign]  # they read, too
    lab.start(3)
    lab.until(lambda: bool(read))
    lab.until(healed(lab))
    lab.run(1.0)
    for number in (1, 2, 3):
        assert lab[number].log._segments._window == {}


def test_of_a_closed_replica_nothing_is_kept() -> None:
    """Its partition was deleted; there may be many of them in the life of a process."""
    lab = lab_with(records=3)
    host = node(lab, 3).host
    assert host is not None
    kept = [value for value in vars(host.housekeeping).values() if isinstance(value, (dict, set))]
    assert any(GROUP in value for value in kept)
    host.close(GROUP)
    lab.until(lambda: not any(GROUP in value for value in kept))
