"""fluxctl bench on the fake cluster: large records, and records that are not acknowledged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fluxctl.__main__ import app, hoist
from tests.unit.fluxlog_fake import FakeCluster, Fault


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCluster]:
    monkeypatch.setenv("FLUXCTL_DATA_DIR", str(tmp_path / "none"))
    fake = FakeCluster(1)
    fake.create("t")
    yield fake
    fake.stop()


def bench(cluster: FakeCluster, *arguments: str) -> Result:
    return CliRunner().invoke(app, hoist(["bench", *arguments, "--bootstrap", cluster.addresses[1]]))


def test_records_of_which_few_fit_the_buffer(cluster: FakeCluster) -> None:
    """They wait for room: 40 of the largest are more than the buffer holds."""
    result = bench(cluster, "produce", "t", "--num-records", "40", "--record-size", "900000", "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["records"] == 40
    assert len(cluster.topics["t"][0].values) == 40


@pytest.mark.parametrize("command", ["produce", "e2e"])
def test_a_record_that_is_not_acknowledged_ends_it_with_one_clear_error(cluster: FakeCluster, command: str) -> None:
    """Nobody waits until it is consumed."""
    cluster.faults[0].extend([Fault.INVALID_ARGUMENT] * 10)
    result = bench(cluster, command, "t", "--num-records", "3")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line == "error: fake INVALID_ARGUMENT (INVALID_ARGUMENT)"
