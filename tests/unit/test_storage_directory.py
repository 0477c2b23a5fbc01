"""A data directory belongs to one node, one process at a time, and says so."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from fluxd.core.types import NodeId
from fluxd.storage.copies import COPIES, REPLACES
from fluxd.storage.directory import DataDirectory, FoundingMember, open_directory
from fluxd.storage.errors import DirectoryError, VotesCorrupt, VotesMissing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.real import RealFileSystem
from fluxd.storage.votes import VoteFile
from tests.simulation.disk import Keep, PowerCut, SimDisk
from tests.storage_kit import DIRECTORY, GROUP, create_log

NODE = NodeId(4)


_RANDOM = random.Random(1)


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def opened(fs: FileSystem, root: Path | None = None, node: NodeId = NODE) -> DataDirectory:
    return open_directory(fs, root, node, _RANDOM.randbytes)


def test_an_empty_directory_is_made_this_nodes(disk: SimDisk) -> None:
    """It gets a random id, votes, and stays as it is when opened again; durable at once."""
    directory = opened(disk)
    assert directory.fresh
    first = directory.meta
    disk.power_cut(Keep.NOTHING)
    again = opened(disk)
    assert (again.meta, again.fresh, again.partitions()) == (first, False, [])
    VoteFile.open(disk, "votes")
    assert len(bytes.fromhex(first.directory_id)) == 16
    disk.wipe()
    assert opened(disk).meta.directory_id != first.directory_id


def test_power_cut_at_every_step_of_its_making() -> None:
    """It is empty still, or whole."""
    for after in range(40):
        for seed in range(8):
            disk = SimDisk(random.Random(seed))
            disk.cut_after(after)
            made = None
            with suppress(PowerCut):
                made = opened(disk).meta
            disk.power_cut()
            directory = opened(disk)
            assert made is None or (directory.meta, directory.fresh) == (made, False)
            VoteFile.open(disk, "votes")
    assert made is not None


def test_power_cut_at_every_step_of_joining_a_cluster() -> None:
    """The old meta or the new one, never anything between."""
    founding = (FoundingMember(NODE, "ab" * 16, "host:9092"),)
    for after in range(12):
        for seed in range(8):
            disk = SimDisk(random.Random(seed))
            directory = opened(disk)
            before = directory.meta
            disk.cut_after(after)
            try:
                directory.set_cluster("c1", founding)
                after_it = directory.meta
            except PowerCut:
                after_it = None
            disk.power_cut()
            found = opened(disk).meta
            if after_it is not None:
                assert found == after_it
            else:
                assert found == before or (found.cluster_id, found.founding) == ("c1", founding)
    assert after_it is not None


def test_it_belongs_to_one_node_and_one_cluster(disk: SimDisk) -> None:
    """Another node id, another cluster, another format or damage is refused with a clear message."""
    directory = opened(disk)
    with pytest.raises(DirectoryError, match="belongs to node 4, not 5"):
        opened(disk, node=NodeId(5))
    directory.set_cluster("c1", ())
    directory.set_cluster("c1", (FoundingMember(NODE, "ab" * 16, "a:1"),))
    with pytest.raises(DirectoryError, match="belongs to cluster c1, not c2"):
        opened(disk).set_cluster("c2", ())
    meta = disk.current_bytes("meta.json")
    for damage, message in (
        (meta.replace(b'"format_version": 1', b'"format_version": 2'), "format version 2; this fluxd reads 1"),
        (meta[: len(meta) // 2], "meta.json is damaged"),
        (b"[]", "meta.json is damaged"),
        (meta.replace(b'"node_id": 4', b'"node_id": "x"'), "meta.json is damaged"),
    ):
        disk.set_bytes("meta.json", damage)
        with pytest.raises(DirectoryError, match=message):
            opened(disk)
        assert disk.current_bytes("meta.json") == damage


def test_partitions_without_a_meta_file_are_not_taken_over(disk: SimDisk) -> None:
    """Somebody lost the file: what is there is not silently made another directory's."""
    opened(disk)
    create_log(disk).close()
    disk.remove("meta.json")
    with pytest.raises(DirectoryError, match=r"holds partitions but no meta\.json"):
        opened(disk)


def test_quarantine_moves_aside_durably(disk: SimDisk) -> None:
    """Each time under another number; the old name is free again."""
    directory = opened(disk)
    name = GROUP.directory_name
    for number in (1, 2):
        create_log(disk).close()
        assert directory.partitions() == [name]
        assert directory.quarantine(name) == f"quarantine/{name}.{number}"
        disk.power_cut(Keep.NOTHING)
        directory = opened(disk)
        assert directory.partitions() == []
        assert disk.list(f"quarantine/{name}.{number}") != []
    assert not disk.exists(DIRECTORY)


@pytest.mark.parametrize("decided", [False, True])
@pytest.mark.parametrize("log_is_there", [False, True])
def test_quarantine_leaves_no_copy_behind(disk: SimDisk, decided: bool, log_is_there: bool) -> None:
    """A copy that counts as the log is what is set aside; a part of one goes."""
    directory, name = opened(disk), GROUP.directory_name
    if log_is_there:
        disk.set_bytes(f"{DIRECTORY}/old", b"log")
    disk.set_bytes(f"{COPIES}/{name}/new", b"copy")
    if decided:
        disk.set_bytes(f"{COPIES}/{name}/{REPLACES}", b"")
    assert directory.partitions() == [name]
    path = directory.quarantine(name)
    disk.power_cut(Keep.NOTHING)
    directory = opened(disk)
    assert directory.partitions() == []
    kept = ["new"] if decided else ["old"] if log_is_there else []
    assert path == (f"quarantine/{name}.1" if kept else "")
    assert disk.list(f"quarantine/{name}.1") == kept


def _try_to_open(root: str, answers: multiprocessing.Queue[str]) -> None:
    try:
        opened(RealFileSystem(Path(root)), Path(root)).close()
        answers.put("opened")
    except DirectoryError as error:
        answers.put(str(error))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """The message names the process that holds it; when that lets go, or ends, the directory is free."""
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()

    def other_process() -> str:
        process = context.Process(target=_try_to_open, args=(str(tmp_path), answers))
        process.start()
        answer = answers.get(timeout=30)
        process.join(30)
        return answer

    directory = opened(RealFileSystem(tmp_path), tmp_path)
    assert "in use by another process (process id " in other_process()
    directory.close()
    directory.close()
    assert other_process() == "opened"


def test_a_file_system_without_locks_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file `lock` says of an earlier process is not told then."""
    opened(RealFileSystem(tmp_path), tmp_path).close()

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(OSError, match=f"it cannot be locked: No locks available: '{tmp_path / 'lock'}'"):
        opened(RealFileSystem(tmp_path), tmp_path)


def test_a_refused_directory_is_not_kept_locked(tmp_path: Path) -> None:
    """A wrong node id lets go of the lock."""
    opened(RealFileSystem(tmp_path), tmp_path).close()
    for _ in range(2):
        with pytest.raises(DirectoryError, match="belongs to node 4"):
            opened(RealFileSystem(tmp_path), tmp_path, NodeId(9))
    opened(RealFileSystem(tmp_path), tmp_path).close()


def test_a_directory_whose_votes_are_lost_becomes_another_one() -> None:
    """Whenever the power fails: there are never new votes under the id that replicas are bound to."""
    completed, after = False, 0
    while not completed:
        disk = SimDisk(random.Random(after))
        directory = opened(disk)
        directory.set_metadata_bound()
        old = directory.meta.directory_id
        disk.set_bytes("votes", b"damaged")
        disk.cut_after(after)
        with suppress(PowerCut):
            directory.renew(_RANDOM.randbytes)
            completed = True
        disk.power_cut()
        meta = opened(disk).meta
        if meta.directory_id == old:
            with pytest.raises((VotesCorrupt, VotesMissing)):
                VoteFile.open(disk, "votes")
        else:
            assert not meta.metadata_bound
        after += 1
    assert meta.directory_id != old
    VoteFile.open(disk, "votes")
    assert disk.list("quarantine") == ["votes.1"]
    assert after > 5


def test_the_binding_of_the_metadata_is_remembered(disk: SimDisk) -> None:
    """A directory of an older version knows of none."""
    directory = opened(disk)
    assert not directory.meta.metadata_bound
    directory.set_metadata_bound()
    disk.power_cut(Keep.NOTHING)
    assert opened(disk).meta.metadata_bound
    data = disk.durable_bytes("meta.json")
    assert data is not None
    disk.set_bytes("meta.json", data.replace(b'"metadata_bound": true,\n', b""))
    assert not opened(disk).meta.metadata_bound
