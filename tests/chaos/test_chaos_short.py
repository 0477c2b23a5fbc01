"""A short run with a fixed seed on loopback; the long ones are `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.network import Loopback
from tests.chaos.report import report
from tests.chaos.run import Options, Run


@pytest.mark.slow
def test_nothing_is_lost_while_nodes_are_killed_paused_and_lose_their_power(tmp_path: Path) -> None:
    """Fifteen seconds of faults of processes: every record is accounted for, and something went wrong."""
    result = Run(Options(seed=10, seconds=15, directory=tmp_path), Loopback(3)).run()
    assert result.valid, report(result)
    assert result.faults["kill"]
    assert result.faults["power cut"]
