"""fluxctl log: what a stopped node has on its disk, as a user sees it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fluxctl.__main__ import app
from fluxd.core.types import NodeId
from fluxd.storage.directory import open_directory
from fluxd.storage.real import RealFileSystem
from tests.storage_kit import DIRECTORY, GROUP, append, create_log, sync


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data directory with one partition of three records and a no-op."""
    directory = open_directory(RealFileSystem(tmp_path), tmp_path, NodeId(7), lambda size: bytes(size))
    directory.set_cluster("c1", ())
    log = create_log(directory.fs)
    for records in (1, 1, 0, 1):
        append(log, bytes(60), records=records)
    sync(log, 5)
    log.close()
    directory.close()
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["log", *map(str, arguments)])


def flip(root: Path, position: int) -> None:
    (path,) = (root / DIRECTORY).glob("*.seg")
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_check_tells_what_is_there(root: Path) -> None:
    """Of the whole directory, and of one partition."""
    result = run("check", root)
    assert result.exit_code == 0, result.output
    assert "node 7 of cluster c1" in result.stdout
    assert f"{GROUP.directory_name}  sound      0..3" in result.stdout
    assert "votes: 0 groups, 0 records" in result.stdout
    assert result.stdout.endswith("all is sound\n")
    found = json.loads(run("check", root / DIRECTORY, "--output", "json").stdout)
    assert found["sound"]
    (one,) = found["partitions"]
    assert (one["condition"], one["records"], one["last_index"], one["commit_index"]) == ("sound", 3, 5, 5)


def test_damage_is_said_and_has_its_exit_code(root: Path) -> None:
    """With the file and the position."""
    flip(root, 130)
    for where in (root, root / DIRECTORY):
        result = run("check", where)
        assert result.exit_code == 11
        assert f"{GROUP.directory_name}: {1:020d}.seg: position 60: checksum of entry 2 does not match" in result.stdout
        assert result.stdout.endswith("not all is sound\n")
    assert not json.loads(run("check", root, "--output", "json").stdout)["sound"]


def test_dump_lists_entries(root: Path) -> None:
    """With their checksums verified; behind a bad one it goes on."""
    for where in (root, root / DIRECTORY, next((root / DIRECTORY).glob("*.seg"))):
        result = run("dump", where, "--output", "json")
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(row["index"], row["offset"], row["kind"], row["records"], row["checksum"]) for row in rows] == [
            (1, 0, "birth", 0, "ok"),
            (2, 0, "records", 1, "ok"),
            (3, 1, "records", 1, "ok"),
            (4, 2, "no_op", 0, "ok"),
            (5, 2, "records", 1, "ok"),
        ]
        assert rows[1]["position"] == 60
        assert rows[1]["append_time_ms"] == 1
    lines = run("dump", root, "--max-entries", "2").stdout.splitlines()
    assert len(lines) == 3
    assert "1970-01-01T00:00:00.001Z" in lines[2]
    flip(root, 130)
    result = run("dump", root, "--output", "json")
    assert result.exit_code == 11
    assert [json.loads(line)["checksum"] for line in result.stdout.splitlines()] == ["ok", "bad", "ok", "ok", "ok"]
    flip(root, 60)
    assert f"no entry: {GROUP.directory_name}/{1:020d}.seg: position 60: not the header" in run("dump", root).stdout


def test_a_running_node_is_left_alone(root: Path) -> None:
    """Its files change while they are read."""
    with (root / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for where in (root, root / DIRECTORY):
            for command in ("check", "dump"):
                result = run(command, where)
                assert result.exit_code == 1
                assert "is in use by a running node — stop it first" in result.stderr
    assert run("check", root).exit_code == 0


def test_what_is_no_data_directory_is_said(tmp_path: Path) -> None:
    """Not taken for a sound one."""
    assert run("check", tmp_path / "nowhere").exit_code == 1
    result = run("check", tmp_path)
    assert result.exit_code == 11
    assert "there is no meta.json" in result.stdout
