"""Snapshots of a replica's state that nobody asked for."""

from __future__ import annotations

import pytest

from fluxd.core import limits
from tests.simulation.test_copying import healed, lab_with
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
