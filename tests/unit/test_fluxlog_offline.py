"""What the library says of a stopped node's files is what the node would say, and more: it reads every byte."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fluxd.core.types import NodeId, Offset, RaftIndex, Term
from fluxd.storage.directory import open_directory
from fluxd.storage.errors import LogCorrupt
from fluxd.storage.real import RealFileSystem
from fluxd.storage.votes import VoteFile
from fluxlog.offline.check import Condition, check_directory, check_partition
from fluxlog.offline.frames import Entry, NoEntryError, opened, segments, walk
from fluxlog.offline.state import read_votes
from tests.storage_kit import DIRECTORY, GROUP, append, create_log, open_log, run, sync

SEGMENT_BYTES = 600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data directory with one partition: 20 entries in several segments, all synced."""
    directory = open_directory(RealFileSystem(tmp_path), tmp_path, NodeId(7), lambda size: bytes(size))
    directory.set_cluster("c1", ())
    log = create_log(directory.fs, SEGMENT_BYTES)
    for _ in range(20):
        append(log, bytes(60))
    sync(log, 15)
    log.close()
    directory.close()
    return tmp_path


def files(root: Path) -> list[Path]:
    return [path for _, path in segments(root / DIRECTORY)]


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def opens(root: Path) -> bool:
    """Whether the node would take this log (in a copy, as opening cuts)."""
    copy = root.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    try:
        open_log(RealFileSystem(copy), SEGMENT_BYTES).close()
    except LogCorrupt:
        return False
    return True


def snapshot_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_sound_directory(root: Path) -> None:
    """With whose it is, and where its logs stand; nothing is written."""
    before = snapshot_of(root)
    found = check_directory(root)
    assert found.is_sound
    assert (found.node_id, found.cluster_id, found.why) == (7, "c1", "")
    (one,) = found.partitions
    assert (one.name, one.condition, one.why) == (GROUP.directory_name, Condition.SOUND, "")
    assert (one.first_index, one.last_index, one.entries, one.records) == (1, 21, 21, 20)
    assert (one.first_offset, one.end_offset, one.commit_index, one.synced_index) == (0, 20, 15, 21)
    assert one.size == sum(path.stat().st_size for path in files(root))
    assert one.files == len(files(root)) > 3
    assert snapshot_of(root) == before


def test_every_flipped_bit_is_damage(root: Path) -> None:
    """Also where the node would not look when it starts; the file is named, and a position at or before the bit."""
    unread = 0
    for path in files(root):
        for position in range(0, path.stat().st_size, 29):
            flip(path, position, position % 8)
            found = check_partition(root / DIRECTORY)
            assert found.condition is Condition.DAMAGED
            assert found.why.startswith(f"{path.name}: ")
            if "position " in found.why:
                assert int(found.why.split("position ")[1].split(":")[0]) <= position
            unread += position % 12 == 0 and opens(root)
            flip(path, position, position % 8)
    assert unread > 2
    assert check_partition(root / DIRECTORY).condition is Condition.SOUND


def test_a_torn_tail_is_no_damage(root: Path) -> None:
    """What is behind the sync mark may be cut anywhere; what is before it may not. As the node sees it."""
    log = open_log(RealFileSystem(root), 1 << 20)
    synced = files(root)[-1].stat().st_size
    append(log, bytes(60))
    log.close()
    path, data = files(root)[-1], files(root)[-1].read_bytes()
    assert len(data) > synced
    assert check_partition(root / DIRECTORY).condition is Condition.SOUND
    for size in (synced - 1, synced, synced + 1, synced + 60, synced + 61, len(data) - 1):
        path.write_bytes(data[:size])
        found = check_partition(root / DIRECTORY)
        expected = Condition.DAMAGED if size < synced else Condition.SOUND if size == synced else Condition.TORN
        assert found.condition is expected, size
        assert found.torn_bytes == max(0, size - synced)
        assert opens(root) == (size >= synced)
    path.write_bytes(data + bytes(100))
    found = check_partition(root / DIRECTORY)
    assert (found.condition, found.torn_bytes) == (Condition.TORN, 100)
    assert check_directory(root).is_sound


def test_bad_bytes_with_something_sound_behind_them_are_damage(root: Path) -> None:
    """Even behind the mark."""
    log = open_log(RealFileSystem(root), 1 << 20)
    position = files(root)[-1].stat().st_size
    append(log, bytes(60))
    append(log, bytes(60))
    log.close()
    flip(files(root)[-1], position + 70)
    found = check_partition(root / DIRECTORY)
    assert found.condition is Condition.DAMAGED
    assert "not a torn tail: entry 23 stands behind it" in found.why
    assert not opens(root)


def test_missing_and_foreign_files(root: Path) -> None:
    """A hole, a file of another place, no state."""
    all_files = files(root)
    for path in all_files:
        moved = path.rename(root / "aside")
        found = check_partition(root / DIRECTORY)
        assert found.condition is Condition.DAMAGED, path
        moved.rename(path)
    data = all_files[1].read_bytes()
    all_files[1].write_bytes(all_files[2].read_bytes())
    assert "begins with entry" in check_partition(root / DIRECTORY).why
    all_files[1].write_bytes(data)
    state = root / DIRECTORY / "state"
    whole = state.read_bytes()
    state.write_bytes(bytes(len(whole)))
    assert check_partition(root / DIRECTORY).why == "state: missing or unreadable, but a log is there"
    state.write_bytes(whole)
    other = root / "partitions" / f"{GROUP.topic_id.hex()}-4"
    (root / DIRECTORY).rename(other)
    assert "is not the birth entry of this partition" in check_partition(other).why


def test_a_log_that_was_trimmed_needs_its_snapshot(root: Path) -> None:
    """Then it may begin in the middle; what a crash left of the trim is no damage."""
    fs = RealFileSystem(root)
    log = open_log(fs, SEGMENT_BYTES)
    log.log_start_offset = Offset(12)
    run(log.write_snapshot(RaftIndex(20), b"payload"))
    left = files(root)[1]
    kept = left.read_bytes()
    run(log.trim_prefix(Offset(12), RaftIndex(20)))
    log.close()
    found = check_partition(root / DIRECTORY)
    assert (found.condition, found.last_index) == (Condition.SOUND, 21)
    assert 1 < found.first_index <= 13
    left.write_bytes(kept)
    assert check_partition(root / DIRECTORY).condition is Condition.SOUND
    assert opens(root)
    left.unlink()
    (snapshot,) = (root / DIRECTORY).glob("*.snap")
    flip(snapshot, 60)
    assert "no snapshot says why" in check_partition(root / DIRECTORY).why
    assert not opens(root)


def test_a_copy_and_a_creation_that_did_not_finish(root: Path) -> None:
    """Are no damage, unless the replica has voted."""
    mark = root / DIRECTORY / "copying"
    mark.write_bytes(b"FLUXCOPY")
    assert check_partition(root / DIRECTORY).condition is Condition.COPYING
    mark.unlink()
    shutil.rmtree(root / DIRECTORY)
    (root / DIRECTORY).mkdir()
    assert check_partition(root / DIRECTORY).condition is Condition.MISSING
    assert check_directory(root).is_sound
    votes = VoteFile.open(RealFileSystem(root), "votes")
    votes.put(GROUP, 0, Term(3), NodeId(2))
    run(votes.begin_sync().steps)
    votes.close()
    found = check_directory(root)
    assert not found.is_sound
    assert found.partitions[0].why.startswith("its log is missing although it has voted")


def test_votes(root: Path) -> None:
    """Their last records, a torn end, damage."""
    path = root / "votes"
    votes = VoteFile.open(RealFileSystem(root), "votes")
    for term in (3, 4):
        votes.put(GROUP, 0, Term(term), NodeId(2))
    run(votes.begin_sync().steps)
    votes.close()
    found = read_votes(path)
    assert found is not None
    assert (found.groups, found.records, found.torn_bytes, found.why) == (
        {(GROUP.topic_id, GROUP.partition, 0): (4, 2)},
        2,
        0,
        "",
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    found = read_votes(path)
    assert found is not None
    assert (found.records, found.torn_bytes, found.why) == (1, 39, "")
    path.write_bytes(whole)
    flip(path, 20)
    found = read_votes(path)
    assert found is not None
    assert "with a sound one behind it" in found.why
    assert not check_directory(root).is_sound
    path.unlink()
    assert read_votes(path) is None
    assert not check_directory(root).is_sound


def test_walking_goes_on_behind_damage(root: Path) -> None:
    """An entry with a wrong checksum, and what is no entry at all; all others are listed."""
    path = files(root)[1]
    with opened(path) as data:
        entries = list(walk(data))
    assert all(isinstance(entry, Entry) and entry.is_sound for entry in entries)
    first = entries[0]
    assert isinstance(first, Entry)
    flip(path, first.end + 70)
    with opened(path) as data:
        found = list(walk(data))
    assert [isinstance(entry, Entry) and entry.is_sound for entry in found] == [True, False, *[True] * (len(found) - 2)]
    assert len(found) == len(entries)
    flip(path, first.end)
    with opened(path) as data:
        found = list(walk(data))
    assert isinstance(found[1], NoEntryError)
    assert found[1].position == first.end
    assert len(found) == len(entries)


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """A segment of 300 synced entries in many sectors; its path."""
    directory = open_directory(RealFileSystem(tmp_path), tmp_path, NodeId(7), lambda size: bytes(size))
    log = create_log(directory.fs, 1 << 20)
    for _ in range(300):
        append(log, bytes(60))
    sync(log, 15)
    log.close()
    directory.close()
    (path,) = files(tmp_path)
    return path


def bad_sectors(monkeypatch: pytest.MonkeyPatch, begin: int, end: int) -> None:
    """The disk reads up to them, and an error where a read begins in them."""

    def pread(descriptor: int, size: int, position: int) -> bytes:
        if begin <= position < end:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.pread(descriptor, begin - position if position < begin < position + size else size, position)

    monkeypatch.setattr("fluxlog.offline.frames.os", SimpleNamespace(fstat=os.fstat, pread=pread))


def test_what_the_disk_cannot_read_is_damage(one_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With file and position; what stands behind it is listed. It does not end the process."""
    with opened(one_file) as data:
        entries = list(walk(data))
    bad_sectors(monkeypatch, 8192, 16384)
    with opened(one_file) as data:
        found = list(walk(data))
    (hole,) = [each for each in found if isinstance(each, NoEntryError)]
    assert str(hole) == "position 8192: cannot be read: Input/output error"
    listed = [each for each in found if isinstance(each, Entry)]
    assert listed == [
        each for each in entries if isinstance(each, Entry) and not 8192 - each.size < each.position < 16384
    ]
    checked = check_partition(one_file.parent)
    assert checked.condition is Condition.DAMAGED
    assert checked.why == f"{one_file.name}: position 8192: cannot be read: Input/output error"


def test_a_tail_that_the_disk_cannot_read_is_not_taken_for_a_torn_one(
    one_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although it was never synced: what stands there is not known."""
    begin = one_file.stat().st_size
    with one_file.open("ab") as file:
        file.write(bytes(100))
    assert check_partition(one_file.parent).condition is Condition.TORN
    bad_sectors(monkeypatch, begin, begin + 100)
    checked = check_partition(one_file.parent)
    assert (checked.condition, checked.records) == (Condition.DAMAGED, 300)
    assert f"position {begin}: cannot be read" in checked.why


def test_small_files_that_the_disk_cannot_read_are_told(root: Path) -> None:
    """Directories stand for them here: they cannot be read either."""
    for name in ("votes", "meta.json", f"{DIRECTORY}/state"):
        (root / name).unlink()
        (root / name).mkdir()
    found = check_directory(root)
    assert found.votes is not None
    assert (found.votes.why, found.why) == (
        "cannot be read: Is a directory",
        "meta.json cannot be read: Is a directory",
    )
    assert found.partitions[0].why == "state: missing or unreadable, but a log is there"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_files_hold_there_is_a_verdict(root: Path, seed: int) -> None:
    """Never another exception; and what the node refuses to open is never called sound."""
    rng = random.Random(seed)
    for _ in range(6):
        path = rng.choice([path for path in (root / DIRECTORY).iterdir() if path.is_file()])
        data = bytearray(path.read_bytes())
        match rng.randrange(4):
            case 0:
                del data[rng.randrange(len(data) + 1) :]
            case 1:
                data += rng.randbytes(rng.randrange(200))
            case 2 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case _:
                at = rng.randrange(len(data) + 1)
                data[at : at + 40] = rng.randbytes(rng.randrange(40))
        path.write_bytes(data)
        found = check_partition(root / DIRECTORY)
        if not opens_or_missing(root):
            assert found.condition in (Condition.DAMAGED, Condition.MISSING), found


def opens_or_missing(root: Path) -> bool:
    try:
        return opens(root)
    except Exception as error:
        assert type(error).__name__ == "LogMissing", error
        return True
