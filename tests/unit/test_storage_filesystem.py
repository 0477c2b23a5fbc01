"""All filesystems keep the same contract."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxd.storage.filesystem import FileSystem
from fluxd.storage.real import RealFileSystem
from tests.chaos.filesystem import PowerCutFileSystem
from tests.simulation.disk import Keep, SimDisk


@pytest.fixture(params=["real", "simulated", "power cut"])
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    if request.param == "real":
        return RealFileSystem(tmp_path / "data")
    if request.param == "power cut":
        return PowerCutFileSystem(tmp_path / "data")
    return SimDisk(random.Random(1))


def test_append_returns_the_size_before(fs: FileSystem) -> None:
    """Buffers go to the end, in order; the position they got is returned."""
    file = fs.open("a", create=True)
    assert file.append(b"one", b"two") == 0
    assert file.append(memoryview(b"three")) == 6
    assert (file.read(0, 100), file.size()) == (b"onetwothree", 11)
    file.close()
    again = fs.open("a")
    assert (again.size(), again.append(b"!")) == (11, 11)
    again.close()
    again.close()


def test_read_is_short_only_at_the_end(fs: FileSystem) -> None:
    """A read beyond the end is empty, one across it short."""
    file = fs.open("a", create=True)
    file.append(b"0123456789")
    assert [file.read(p, 4) for p in (0, 3, 8, 10, 50)] == [b"0123", b"3456", b"89", b"", b""]
    file.close()


def test_read_into_fills_a_buffer(fs: FileSystem) -> None:
    """As much as the buffer takes, short at the end of the file; without waiting it may be less, but is never else."""
    file, blob = fs.open("a", create=True), random.Random(1).randbytes(3 << 20)
    file.append(blob)
    file.sync()
    for position, size in ((0, len(blob)), (1 << 20, 10), (len(blob) - 5, 10), (len(blob) + 1, 10)):
        there = blob[position : position + size]
        for forgotten in (0, len(blob)):
            file.forget(forgotten)
            buffer = bytearray(size)
            at_once = file.read_into(position, memoryview(buffer), wait=False)
            assert buffer[:at_once] == there[:at_once]
            assert file.read_into(position, memoryview(buffer)) == len(there)
            assert buffer[: len(there)] == there
    file.close()


def test_what_is_forgotten_is_still_there(fs: FileSystem) -> None:
    """Dropping pages from memory loses neither what was synced nor what was not, also after a truncation."""
    file, blob = fs.open("a", create=True), random.Random(1).randbytes(3 << 20)
    file.append(blob)
    file.sync()
    file.append(b"not synced")
    file.forget(len(blob))
    assert file.read(0, 4 << 20) == blob + b"not synced"
    file.truncate(1 << 20)
    file.append(blob)
    file.forget(file.size())
    assert file.read(0, 5 << 20) == blob[: 1 << 20] + blob
    file.close()
    file.forget(0)


def test_write_at_overwrites_and_may_extend(fs: FileSystem) -> None:
    """A write in the file replaces bytes; one at its end extends it; one beyond is refused."""
    file = fs.open("a", create=True)
    file.append(b"0123")
    file.write_at(2, b"xyz")
    assert file.read(0, 9) == b"01xyz"
    assert file.append(b"!") == 5
    with pytest.raises(ValueError, match="beyond"):
        file.write_at(7, b"a")
    file.close()


def test_truncate_cuts(fs: FileSystem) -> None:
    """The file ends at the size; appends go on from there; a larger size is refused."""
    file = fs.open("a", create=True)
    file.append(b"0123")
    file.truncate(1)
    assert file.append(b"x") == 1
    assert file.read(0, 9) == b"0x"
    with pytest.raises(ValueError, match="beyond"):
        file.truncate(3)
    file.close()


def test_closed_file_answers_ebadf(fs: FileSystem) -> None:
    """Every call on a closed file is an OSError, never a call on another file."""
    file = fs.open("a", create=True)
    file.close()
    for call in (
        lambda: file.append(b"x"), lambda: file.read(0, 1), lambda: file.read_into(0, memoryview(bytearray(1))),
        lambda: file.read_into(0, memoryview(bytearray(1)), wait=False), file.sync, lambda: file.truncate(0),
    ):  # fmt: skip
        with pytest.raises(OSError, match="closed") as error:
            call()
        assert error.value.errno == errno.EBADF


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system knows a descriptor only; who reads of it looks for a file."""
    file = RealFileSystem(tmp_path).open("a", create=True)
    file.append(b"0123")

    def sick(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("pread", "preadv", "pwrite", "fdatasync"):
        monkeypatch.setattr(os, name, sick)
    calls: list[Callable[[], object]] = [
        lambda: file.read(0, 4), lambda: file.read_into(0, memoryview(bytearray(4))), lambda: file.append(b"x"),
        lambda: file.write_at(0, b"x"), file.sync,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(OSError, match=str(tmp_path / "a")) as error:
            call()
        assert error.value.errno == errno.EIO
    monkeypatch.setattr(os, "ftruncate", sick)
    with pytest.raises(OSError, match=str(tmp_path / "a")):
        file.truncate(0)


def test_the_root_is_durable_with_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was made, the directories that have a new name in them are synced; where it was there, none."""
    synced: list[str] = []
    fsync = os.fsync

    def remembering(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", remembering)
    root = tmp_path / "made" / "data"
    RealFileSystem(root)
    assert sorted(synced) == [str(tmp_path), str(tmp_path / "made")]
    RealFileSystem(root)
    assert len(synced) == 2


def test_open_without_create_needs_the_file(fs: FileSystem) -> None:
    """A missing file, or a missing directory above it, is FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        fs.open("missing")
    with pytest.raises(FileNotFoundError):
        fs.open("no/such", create=True)
    assert not fs.exists("missing")


def test_directories(fs: FileSystem) -> None:
    """Directories nest, list sorted, and a missing one has no names."""
    fs.make_directory("a/b")
    fs.make_directory("a/b")
    for name in ("z", "y"):
        fs.open(f"a/b/{name}", create=True).close()
    assert (fs.list("a/b"), fs.list("a"), fs.list(""), fs.list("missing")) == (["y", "z"], ["b"], ["a"], [])
    assert fs.exists("a/b")
    fs.sync_directory("a/b")
    fs.sync_directory("")
    fs.remove_tree("a")
    fs.remove_tree("a")
    assert fs.list("") == []


def test_rename_replaces_a_file_and_moves_a_directory(fs: FileSystem) -> None:
    """An existing file is replaced; a directory keeps what is in it."""
    for name in ("old", "new"):
        file = fs.open(name, create=True)
        file.append(name.encode())
        file.close()
    fs.rename("old", "new")
    file = fs.open("new")
    assert (file.read(0, 9), fs.list("")) == (b"old", ["new"])
    file.close()
    fs.make_directory("from/x")
    fs.make_directory("to")
    fs.rename("from/x", "to/x.1")
    assert (fs.list("from"), fs.list("to")) == ([], ["x.1"])
    with pytest.raises(FileNotFoundError):
        fs.rename("from/x", "to/y")


def test_remove_is_harmless_when_missing(fs: FileSystem) -> None:
    """An open file outlives its name."""
    file = fs.open("a", create=True)
    file.append(b"x")
    fs.remove("a")
    fs.remove("a")
    assert (fs.exists("a"), file.read(0, 1)) == (False, b"x")
    file.close()


def test_a_short_write_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of an append fits the real disk: the file has its old size, and the error is the system's."""
    file = RealFileSystem(tmp_path).open("a", create=True)
    file.append(b"before")
    pwrite = os.pwrite

    def full_disk(fd: int, data: bytes | memoryview, position: int) -> int:
        if position >= 9:
            raise OSError(errno.ENOSPC, "no space")
        return pwrite(fd, bytes(data)[: 9 - position], position)

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="no space"):
        file.append(b"0123456789")
    monkeypatch.undo()
    assert (file.size(), (tmp_path / "a").read_bytes()) == (6, b"before")
    assert file.append(b"!") == 6
    file.close()


def test_close_waits_for_a_sync_in_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor is not given back, so not reused for another file, while a sync uses it."""
    file = RealFileSystem(tmp_path).open("a", create=True)
    entered, leave, fds = threading.Event(), threading.Event(), []

    def slow(fd: int) -> None:
        fds.append(fd)
        entered.set()
        assert leave.wait(10)
        os.fstat(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    thread = threading.Thread(target=file.sync)
    thread.start()
    assert entered.wait(10)
    file.close()
    os.fstat(fds[0])
    leave.set()
    thread.join(10)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fds[0])


# ---- what only the simulated disk can show


def test_power_cut_keeps_what_was_synced() -> None:
    """Synced bytes under a synced name stay; the rest goes, in each file and directory on its own."""
    disk = SimDisk(random.Random(1))
    kept, unsynced = disk.open("kept", create=True), disk.open("unsynced", create=True)
    kept.append(b"durable")
    kept.sync()
    kept.append(b" volatile")
    unsynced.append(b"x")
    disk.sync_directory("")
    disk.open("nameless", create=True).append(b"x")
    disk.power_cut(Keep.NOTHING)
    assert disk.list("") == ["kept", "unsynced"]
    assert (disk.current_bytes("kept"), disk.current_bytes("unsynced")) == (b"durable", b"")
    with pytest.raises(OSError, match="closed"):
        kept.read(0, 1)


def test_power_cut_keeps_a_prefix_of_writes_and_tears_the_last() -> None:
    """Every length between synced and written is seen, and zeros in the place of lost bytes."""
    seen = set()
    for seed in range(400):
        disk = SimDisk(random.Random(seed))
        file = disk.open("a", create=True)
        disk.sync_directory("")
        file.append(b"ab")
        file.sync()
        file.append(b"cd")
        file.append(b"ef")
        disk.power_cut()
        seen.add(disk.current_bytes("a"))
    assert {b"abcdef"[:n] for n in range(2, 7)} <= seen
    assert {s.rstrip(b"\0") for s in seen} <= {b"abcdef"[:n] for n in range(2, 7)}
    assert any(b"\0" in s for s in seen)


def test_a_lost_removal_brings_the_file_back() -> None:
    """A removal is durable only after the directory's sync; a rename is atomic."""
    disk = SimDisk(random.Random(1))
    disk.set_bytes("a", b"1")
    disk.set_bytes("b", b"2")
    disk.remove("a")
    disk.rename("b", "c")
    disk.power_cut(Keep.NOTHING)
    assert disk.list("") == ["a", "b"]
    disk.remove("a")
    disk.rename("b", "c")
    disk.sync_directory("")
    disk.power_cut(Keep.NOTHING)
    assert (disk.list(""), disk.durable_bytes("c")) == (["c"], b"2")


def test_kill_keeps_everything_and_failures_are_on_demand() -> None:
    """After a kill unsynced bytes are there, still unsynced. A failing call changes nothing."""
    disk = SimDisk(random.Random(1))
    file = disk.open("a", create=True)
    file.append(b"x")
    disk.kill()
    assert (disk.current_bytes("a"), disk.durable_bytes("a")) == (b"x", None)
    file = disk.open("a")
    disk.fail_next("append", OSError(errno.ENOSPC, "no space"), path="a")
    with pytest.raises(OSError, match="no space"):
        file.append(b"y")
    assert file.append(b"z") == 1
    disk.wipe()
    assert disk.list("") == []
