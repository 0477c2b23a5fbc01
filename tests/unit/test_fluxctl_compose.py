"""The demo's containers: what needs no engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxctl.compose import ComposeCluster, parse_time
from fluxctl.exits import CommandError


def test_times_of_the_engine() -> None:
    """Nanoseconds, fewer digits, or none: seconds since the epoch."""
    assert parse_time("1970-01-01T00:01:00.123456789Z") == pytest.approx(60.123456)
    assert parse_time("1970-01-01T00:01:00.5Z") == 60.5
    assert parse_time("1970-01-01T00:01:00Z") == 60.0


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """Outside a checkout there is no docker-compose.yml: the error says how to name one."""
    with pytest.raises(CommandError) as error:
        ComposeCluster.lay_out(tmp_path, tmp_path / "docker-compose.yml", 3)
    assert "--compose-file" in error.value.advice
