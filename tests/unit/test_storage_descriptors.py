"""Files that rest: fewer descriptors than open files, and nothing is lost by it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fluxd.core.types import GroupId, Offset, RaftIndex
from fluxd.storage.checkpoint import STATE_NAME
from fluxd.storage.descriptors import Descriptors
from fluxd.storage.log import PartitionLog
from fluxd.storage.real import RealFile, RealFileSystem
from tests.storage_kit import DIRECTORY, append, create_log, open_log, run, sync

LIMIT = 4


@pytest.fixture
def descriptors() -> Descriptors:
    return Descriptors(LIMIT)


@pytest.fixture
def fs(tmp_path: Path, descriptors: Descriptors) -> RealFileSystem:
    return RealFileSystem(tmp_path, descriptors)


def opened(fs: RealFileSystem, count: int) -> list[RealFile]:
    return [fs.open(f"f{number}", create=True, rests=True) for number in range(count)]


def crowd_out(fs: RealFileSystem) -> None:
    """Use other files until nothing that may rest has been used lately."""
    for _ in range(2):
        for number in range(2 * LIMIT):
            fs.open(f"other{number}", create=True, rests=True)


def open_in_this_process(root: Path) -> list[str]:
    paths = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - only the names
        try:
            path = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - may say "(deleted)"
        except FileNotFoundError:  # the listing's own
            continue
        if path.startswith(f"{root}/"):
            paths.append(path.removeprefix(f"{root}/"))
    return paths


def test_more_files_than_descriptors(fs: RealFileSystem, descriptors: Descriptors, tmp_path: Path) -> None:
    """All can be written, synced, cut and read in any order; only so many are open at a time."""
    files = opened(fs, 30)
    for turn in range(3):
        for number, file in enumerate(files):
            assert file.append(b"%d:%d," % (number, turn)) == turn * len(b"%d:0," % number)
            file.sync()
            assert len(open_in_this_process(tmp_path)) <= LIMIT + 1
    for file in reversed(files):
        file.truncate(file.size() - 1)
        file.sync()
    assert [file.read(0, 99) for file in files] == [b"%d:0,%d:1,%d:2" % (n, n, n) for n in range(30)]
    assert len(descriptors) == len(open_in_this_process(tmp_path)) <= LIMIT
    for file in files:
        file.close()
        with pytest.raises(OSError, match="closed"):
            file.append(b"x")
    assert (len(descriptors), open_in_this_process(tmp_path)) == (0, [])


def test_a_file_that_was_not_opened_as_one_that_rests_does_not(fs: RealFileSystem, tmp_path: Path) -> None:
    """Its name may go."""
    file = fs.open("kept", create=True)
    crowd_out(fs)
    fs.remove("kept")
    file.append(b"x")
    assert file.read(0, 1) == b"x"
    assert "kept (deleted)" in open_in_this_process(tmp_path)


def test_who_was_used_last_keeps_its_descriptor(fs: RealFileSystem, tmp_path: Path) -> None:
    """A file in use is not opened again and again because others come and go."""
    busy = fs.open("busy", create=True, rests=True)
    for number in range(40):
        busy.append(b"x")
        busy.sync()
        fs.open(f"other{number}", create=True, rests=True)
        assert "busy" in open_in_this_process(tmp_path), number


def test_it_does_not_rest_between_a_write_and_its_sync(
    fs: RealFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a write that did not reach the disk comes only to a descriptor that was open then."""
    closed: list[int] = []
    synced: list[int] = []
    close, fdatasync = os.close, os.fdatasync

    def noted_close(fd: int) -> None:
        closed.append(fd)
        close(fd)

    def noted_sync(fd: int) -> None:
        synced.append(fd)
        fdatasync(fd)

    monkeypatch.setattr(os, "close", noted_close)
    monkeypatch.setattr(os, "fdatasync", noted_sync)
    changes: list[Callable[[RealFile], object]] = [
        lambda file: file.append(b"x"), lambda file: file.write_at(0, b"y"), lambda file: file.truncate(0)
    ]  # fmt: skip
    for change in changes:
        file = fs.open("a", create=True, rests=True)
        change(file)
        closed.clear()
        crowd_out(fs)
        assert closed
        assert "a" in open_in_this_process(tmp_path)
        file.sync()
        assert synced[-1] not in closed
        crowd_out(fs)
        assert "a" not in open_in_this_process(tmp_path)
        file.close()


def test_it_never_rests_again_after_a_sync_that_failed(
    fs: RealFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that succeeds afterwards says nothing about what was lost."""
    file = fs.open("a", create=True, rests=True)
    file.append(b"x")

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="lost"):
            file.sync()
    file.sync()
    crowd_out(fs)
    assert "a" in open_in_this_process(tmp_path)
    file.close()
    assert "a" not in open_in_this_process(tmp_path)


def test_a_sync_does_not_cover_what_is_written_meanwhile(
    fs: RealFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a file rest while one is on."""
    file = fs.open("a", create=True, rests=True)
    file.append(b"before")
    entered, leave, fdatasync = threading.Event(), threading.Event(), os.fdatasync

    def slow(fd: int) -> None:
        entered.set()
        assert leave.wait(10)
        fdatasync(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", slow)
        thread = threading.Thread(target=file.sync)
        thread.start()
        assert entered.wait(10)
        assert not file.rest()
        file.append(b" meanwhile")
        leave.set()
        thread.join(10)
    assert not file.rest()
    file.sync()
    assert file.rest()
    assert file.read(0, 99) == b"before meanwhile"


def test_what_may_be_lost_holds_nothing_up(fs: RealFileSystem) -> None:
    """But it does not make what was written before it rest either."""
    file = fs.open("a", create=True, rests=True)
    file.write_at(0, b"hint", may_be_lost=True)
    assert file.rest()
    file.write_at(0, b"fact")
    file.write_at(0, b"hint", may_be_lost=True)
    assert not file.rest()
    file.sync()
    assert file.rest()


def test_it_must_be_the_same_file_when_it_is_opened_again(fs: RealFileSystem, tmp_path: Path) -> None:
    """One that has gone or was replaced is an error of the call; nothing is written to the other one."""
    file = fs.open("a", create=True, rests=True)
    file.append(b"mine")
    file.sync()
    for put, number in ((None, errno.ENOENT), (b"", errno.ESTALE), (b"alien", errno.ESTALE)):
        assert file.rest()
        os.rename(tmp_path / "a", tmp_path / "aside")  # noqa: PTH104
        if put is not None:
            (tmp_path / "a").write_bytes(put)
        for call in (lambda: file.append(b"x"), file.sync, lambda: file.read(0, 1), lambda: file.truncate(0)):
            with pytest.raises(OSError, match="a") as error:
                call()
            assert error.value.errno == number
        assert not (tmp_path / "a").exists() or (tmp_path / "a").read_bytes() == put
        os.rename(tmp_path / "aside", tmp_path / "a")  # noqa: PTH104
        assert file.read(0, 9) == b"mine"
    (tmp_path / "a").write_bytes(b"min")
    assert file.rest()
    with pytest.raises(OSError, match="another file"):
        file.append(b"x")


def test_threads(fs: RealFileSystem, tmp_path: Path) -> None:
    """Each writes, syncs and reads files of its own while the others' work takes descriptors away."""
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            files = [fs.open(f"{worker}-{n}", create=True, rests=True) for n in range(5)]
            for turn in range(60):
                for number, file in enumerate(files):
                    assert file.append(b"%d%d%02d" % (worker, number, turn)) == 4 * turn
                    if turn % 3:
                        file.sync()
                    assert file.read(4 * turn, 4) == b"%d%d%02d" % (worker, number, turn)
            for number, file in enumerate(files):
                assert file.read(0, 999) == b"".join(b"%d%d%02d" % (worker, number, turn) for turn in range(60))
                file.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert open_in_this_process(tmp_path) == []


@pytest.fixture
def logs(fs: RealFileSystem) -> Iterator[list[PartitionLog]]:
    made = [PartitionLog.create(fs, f"p{n}", GroupId(bytes(16), n), 0, segment_bytes=4_000) for n in range(3 * LIMIT)]
    yield made
    for log in made:
        log.close()


def test_logs_that_rest(logs: list[PartitionLog], fs: RealFileSystem, tmp_path: Path) -> None:
    """More logs than descriptors: append, sync, roll, truncate, and open again."""
    for turn in range(12):
        for log in logs:
            append(log, b"%d" % turn * 800)
            sync(log)
            assert not log.dirty
            assert len(open_in_this_process(tmp_path)) <= LIMIT + 2
    for number, log in enumerate(logs):
        log.truncate_suffix(RaftIndex(log.last_index - 1))
        end = log.last
        log.close()
        again = PartitionLog.open(fs, f"p{number}", GroupId(bytes(16), number), 0, segment_bytes=4_000)
        assert (again.last, again.synced_index) == (end, end.raft_index)
        assert len(list(again.walk(again.first_index))) == end.raft_index == 11
        logs[number] = again


def test_a_log_in_use_asks_the_system_for_nothing_more(
    logs: list[PartitionLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit of it is its writes and its sync: nothing is opened, looked at or closed, however many others rest."""
    append(logs[0])
    sync(logs[0])

    def never(*args: object, **options: object) -> int:
        raise AssertionError(args)

    for name in ("open", "close", "fstat"):
        monkeypatch.setattr(os, name, never)
    for _ in range(20):
        append(logs[0], b"x")
        sync(logs[0])
    monkeypatch.undo()
    assert logs[0].synced_index == 22


def test_a_state_file_that_has_gone_is_made_anew(logs: list[PartitionLog], fs: RealFileSystem) -> None:
    """The log is opened again after the error that a rest made of it: what is durable is known without the file."""
    log, end = logs[0], logs[0].last
    fs.remove(f"p0/{STATE_NAME}")
    log.close()
    again = PartitionLog.open(fs, "p0", GroupId(bytes(16), 0), 0, segment_bytes=1_000, after=log.synced)
    assert (again.last, fs.exists(f"p0/{STATE_NAME}")) == (end, True)
    again.close()
    logs[0] = PartitionLog.open(fs, "p0", GroupId(bytes(16), 0), 0, segment_bytes=4_000)
    assert logs[0].last == end


_WITH_FEW = """
import errno, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from fluxd.storage.descriptors import Descriptors
from fluxd.storage.real import RealFileSystem
assert Descriptors().limit == 32
fs = RealFileSystem(Path(sys.argv[1]), Descriptors(1_000))
files = [fs.open(f"f{n}", create=True, rests=True) for n in range(200)]
for n, file in enumerate(files):
    file.append(b"%d" % n)
    file.sync()
assert [file.read(0, 9) for file in files] == [b"%d" % n for n in range(200)]
kept = []
try:
    for n in range(200):
        kept.append(fs.open(f"kept{n}", create=True))
except OSError as error:
    assert error.errno == errno.EMFILE, error
    print(len(kept), error)
try:
    files[0].append(b"x")
except OSError as error:
    assert error.errno == errno.EMFILE, error
    print("refused")
kept.pop().close()
assert files[0].read(0, 9) == b"0"
assert files[0].append(b"x") == 1
print("again")
"""


def test_a_process_without_descriptors_says_so(tmp_path: Path) -> None:
    """Files that rest make room, below their bound too. When there is none the error tells the limit and the remedy,
    nothing was written, and the same file goes on when there is room again."""
    done = subprocess.run(
        [sys.executable, "-c", _WITH_FEW, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said, refused, again = done.stdout.splitlines()
    assert int(said.split()[0]) > 40
    assert "64 are allowed for this process (raise `ulimit -n`)" in said
    assert (refused, again) == ("refused", "again")


def test_the_bound_leaves_half_to_others() -> None:
    """Connections and reads need descriptors, too."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert Descriptors().limit == (sys.maxsize if allowed == resource.RLIM_INFINITY else allowed // 2)


def test_what_cannot_be_opened_or_made_keeps_no_descriptor(
    fs: RealFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk refuses syncs each replica is tried again and again: what was left open would never rest."""
    group = GroupId(bytes(16), 0)
    PartitionLog.create(fs, "log", group, 1, segment_bytes=1 << 20).close()

    def refused(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refused)
    for number in range(3):
        with pytest.raises(OSError, match="Input/output"):
            PartitionLog.open(fs, "log", group, 1, segment_bytes=1 << 20)
        with pytest.raises(OSError, match="Input/output"):
            PartitionLog.create(fs, f"new{number}", group, 1, segment_bytes=1 << 20)
    assert open_in_this_process(tmp_path) == []


def test_a_head_that_is_removed_at_open_is_not_held_open(tmp_path: Path) -> None:
    """Its space would be taken until the process ends: the durable mark is older than the snapshot, so what goes was
    just read as the log's end.
    """
    fs = RealFileSystem(tmp_path)
    log = create_log(fs, 400)
    sync(log, log.last_index)
    state = tmp_path / DIRECTORY / STATE_NAME
    marked = state.read_bytes()
    for number in range(30):
        append(log, b"%03d" % number * 20)
    sync(log, log.last_index)
    log.log_start_offset = Offset(20)
    run(log.write_snapshot(log.commit_index, b"state"))
    log.close()
    state.write_bytes(marked)
    log = open_log(fs, 400)
    assert log.first_index > 10
    open_now = open_in_this_process(tmp_path)
    assert sorted(open_now) == sorted([f"{DIRECTORY}/{STATE_NAME}", log._segments.active.path])
    log.close()
    assert open_in_this_process(tmp_path) == []
