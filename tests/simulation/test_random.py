"""A few fresh random schedules in every test run, and every seed that ever failed. `make sim` runs many."""

from __future__ import annotations

import pytest

from tests.simulation.world import World


@pytest.mark.parametrize("seed", [29, 54, 509, 1070, 1107, 1113, 2101309, *range(1, 11)])
def test_seed(seed: int) -> None:
    """No promise is broken, and the run was not an empty one."""
    world = World(seed)
    world.run()
    assert world.counts["answer_committed"] > 0
