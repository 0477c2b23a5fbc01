"""fluxctl log: what a stopped node has on its disk, as a user sees it."""

from __future__ import annotations

import fcntl
import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fluxctl.__main__ import app
from fluxd.core.batch import batch_from_records
from fluxd.core.metadata import Node, apply, founding_image
from fluxd.core.metadata_commands import Commands
from fluxd.core.metadata_snapshot import snapshot
from fluxd.core.state_chunks import state_chunks
from fluxd.core.types import METADATA_GROUP, NodeId, Offset
from fluxd.storage.directory import open_directory
from fluxd.storage.log import PartitionLog
from fluxd.storage.real import RealFileSystem
from fluxlog.v1 import record_pb2
from tests.storage_kit import DIRECTORY, GROUP, append, create_log, sync
from tests.unit.broker_fakes import founding


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


def write_metadata(root: Path, log_start_offset: int) -> None:
    """A data directory with a metadata log, trimmed to an offset: a command, then the state behind it in chunks."""
    directory = open_directory(RealFileSystem(root), root, NodeId(7), lambda size: bytes(size))
    directory.set_cluster("c1", ())
    place = f"partitions/{METADATA_GROUP.directory_name}"
    log = PartitionLog.create(directory.fs, place, METADATA_GROUP, 0, segment_bytes=100)
    commands = Commands(random.Random(1).random, lambda: 0)
    register = commands.register_node(Node(NodeId(4), bytes(16), "host4:7000"))
    image, _ = apply(founding_image(founding([1, 2, 3])), register)
    chunks = state_chunks(Offset(1), snapshot(image, Offset(1)))
    for command in (register, *map(commands.state_chunk, chunks)):
        append(log, batch_from_records([record_pb2.Record(value=command.SerializeToString())], b"", 0, 0))
        sync(log, log.last_index)
    log.log_start_offset = Offset(log_start_offset)
    for step in log.write_snapshot(log.last_index, b""):
        step()
    for step in log.trim_prefix(log.log_start_offset, log.last_index):
        step()
    log.close()
    directory.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several to a state."""
    monkeypatch.setattr("fluxd.core.state_chunks._CHUNK_BYTES", 60)


@pytest.mark.usefixtures("small_chunks")
def test_the_metadatas_state_is_shown(tmp_path: Path) -> None:
    """By check what the last whole one holds, by dump where its parts are."""
    write_metadata(tmp_path, 0)
    result = run("check", tmp_path)
    assert result.exit_code == 0, result.output
    shown = f"  {METADATA_GROUP.directory_name}: state of the metadata at offset 1: 1 topic, 4 nodes\n"
    assert shown in result.stdout
    (one,) = json.loads(run("check", tmp_path, "--output", "json").stdout)["partitions"]
    assert one["metadata_state"] == {"applied_offset": 1, "topics": 1, "nodes": 4}
    rows = [json.loads(line) for line in run("dump", tmp_path, "--output", "json").stdout.splitlines()]
    count = len(rows) - 2
    assert count > 2
    assert [row["kind"] for row in rows] == ["birth", "records", *["state"] * count]
    assert rows[-1]["state"] == [{"applied_offset": 1, "number": count - 1, "count": count}]


@pytest.mark.usefixtures("small_chunks")
def test_a_trimmed_metadata_log_without_a_state_is_damaged(tmp_path: Path) -> None:
    """With the whole state in it, it is sound; where a part of that is gone, nothing says what was before."""
    sound, damaged = tmp_path / "sound", tmp_path / "damaged"
    for root, log_start_offset, exit_code in ((sound, 2, 0), (damaged, 3, 11)):
        root.mkdir()
        write_metadata(root, log_start_offset)
        result = run("check", root)
        assert result.exit_code == exit_code, result.output
    assert "the log begins at offset 2, and no state in it says what was before" in result.stdout


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
