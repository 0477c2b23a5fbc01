"""Local processes: never another one than the one that was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from fluxctl.__main__ import app
from fluxctl.exits import CommandError
from fluxctl.local import LocalCluster
from fluxctl.options import NODES_MAX
from fluxctl.process import ProcessIdentity, identify, is_running, send_signal, wait_gone
from fluxd.core import limits


@pytest.fixture
def sleeper() -> Iterator[ProcessIdentity]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = identify(child.pid)
    assert process is not None
    yield process
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()


def test_a_process_is_known_by_its_start_too(sleeper: ProcessIdentity) -> None:
    """The same id with another start is another process, and is left alone."""
    other = ProcessIdentity(sleeper.process_id, "1")
    assert is_running(sleeper)
    assert not is_running(other)
    assert not send_signal(other, signal.SIGKILL)
    assert is_running(sleeper)


def test_a_killed_process_is_gone_although_its_parent_has_not_asked(sleeper: ProcessIdentity) -> None:
    assert send_signal(sleeper, signal.SIGKILL)
    assert wait_gone(sleeper, 10)
    assert not send_signal(sleeper, signal.SIGKILL)


def test_the_state_file_survives_and_the_secret_is_private(tmp_path: Path) -> None:
    made = LocalCluster.create(tmp_path / "c", 3, None)
    loaded = LocalCluster.load(tmp_path / "c")
    assert loaded is not None
    assert loaded.addresses == made.addresses
    assert len(set(made.addresses)) == 3
    assert (tmp_path / "c" / "cluster.secret").stat().st_mode & 0o777 == 0o600
    assert loaded.running == []


def test_commands_that_start_nodes_at_once_forget_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has read the state file before the other one writes it."""
    children: list[subprocess.Popen[bytes]] = []

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        options["stdin"] = subprocess.PIPE
        children.append(subprocess.Popen([sys.executable, "-c", "input()"], **options))
        return children[-1]

    LocalCluster.create(tmp_path, 3, None)
    one, other = LocalCluster.load(tmp_path), LocalCluster.load(tmp_path)
    assert one is not None
    assert other is not None
    monkeypatch.setattr("fluxctl.local.subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))
    try:
        assert one.start(1)
        assert other.start(2)
        assert not other.start(1), "it runs already"
        last = LocalCluster.load(tmp_path)
        assert last is not None
        assert [node.node_id for node in last.running] == [1, 2]
    finally:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)  # `start` has told the object that it has ended
            os.waitpid(child.pid, 0)
            assert child.stdin is not None
            child.stdin.close()


def test_a_process_that_took_a_dead_nodes_id_is_not_stopped(tmp_path: Path) -> None:
    """The state file names this very test's process id, with another start."""
    LocalCluster.create(tmp_path, 1, None)
    path = tmp_path / "cluster.json"
    state = json.loads(path.read_text())
    state["nodes"][0]["process"] = {"process_id": os.getpid(), "started": "long ago"}
    path.write_text(json.dumps(state))
    cluster = LocalCluster.load(tmp_path)
    assert cluster is not None
    assert cluster.running == []
    assert cluster.stop([1]) == []
    assert not cluster.kill(1)


def test_up_makes_no_cluster_that_cannot_be_founded(tmp_path: Path) -> None:
    """As many nodes as there may be seeds; nothing is left that would be in the way of the next one."""
    assert NODES_MAX == limits.VOTERS_MAX
    result = CliRunner().invoke(
        app, ["cluster", "up", "--nodes", str(NODES_MAX + 1), "--data-dir", str(tmp_path / "c")]
    )
    assert result.exit_code == 2
    assert not (tmp_path / "c").exists()
    LocalCluster.create(tmp_path / "earlier", NODES_MAX + 1, None)
    result = CliRunner().invoke(app, ["cluster", "up", "--data-dir", str(tmp_path / "earlier")])
    assert result.exit_code == 1
    assert "has 6 nodes, and 5 are the most there can be" in result.stderr


def test_up_refuses_what_the_cluster_that_is_there_is_not(tmp_path: Path) -> None:
    """Instead of starting another one than was asked for."""
    made = LocalCluster.create(tmp_path, 3, None)
    for wanted, said in ((["--nodes", "5"], "has 3 nodes, not 5"), (["--base-port", "1"], "not 1 and up")):
        result = CliRunner().invoke(app, ["cluster", "up", "--data-dir", str(tmp_path), *wanted])
        assert result.exit_code == 1
        assert said in result.stderr
        assert "another --data-dir" in result.stderr
    assert made.running == []


def test_a_damaged_state_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(CommandError, match="damaged"):
        LocalCluster.load(tmp_path)
