"""The measures that carry most weight, each taken out in turn: the test that guards it fails. `make mutants` tries
all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.mutation.catalogue import MUTANTS
from tests.simulation.mutation.mutant import ROOT, Mutant
from tests.simulation.mutation.trial import mutated, run_tests

ESSENTIAL = [mutant for mutant in MUTANTS if mutant.essential]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ESSENTIAL, ids=lambda mutant: mutant.name)
def test_a_measure_taken_out_is_seen(mutant: Mutant) -> None:
    """C1 to C6 and the rule for lost disks."""
    with mutated(mutant) as tree:
        assert run_tests(tree, [mutant.guard]) is not None, f"without {mutant.measure} {mutant.guard} passes"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_no_mutant_is_stale(mutant: Mutant, tmp_path: Path) -> None:
    """What it replaces stands in the code as it is now, and it is told what becomes of it."""
    for edit in mutant.edits:
        path = tmp_path / edit.file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / edit.file).read_bytes())
        edit.apply(tmp_path)
    assert bool(mutant.guard) is not bool(mutant.expected_silent)


def test_every_measure_is_among_them() -> None:
    """C1 to C6, the heartbeat for all groups and a lost disk, each at least once."""
    names = {mutant.name.split("-")[0] for mutant in ESSENTIAL}
    assert names == {"c1", "c2", "c3", "c4", "c5", "c6", "lost", "list"}
