"""What clients of the simulated cluster saw, judged by the checker that users have."""

from __future__ import annotations

import pytest

from fluxlog.checker import report
from tests.simulation.history import RecordedWorld


@pytest.mark.parametrize("seed", [1701752, 1901016, 2500076, 3600208, 4000160, *range(1, 7)])
def test_history_is_valid(seed: int) -> None:
    """No promise is broken for any writer or reader, at any replica, and everybody got on."""
    world = RecordedWorld(seed)
    world.run()
    assert world.verdict is not None
    assert not world.verdict.errors, report(world.verdict)
    # who guesses the end of a busy log may always be wrong
    assert [gap for gap in world.verdict.gaps if "conditional_send" not in gap] == [], report(world.verdict)
