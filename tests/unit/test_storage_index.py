"""A segment's index in memory, which threads of the pool build and read while the loop appends and truncates."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fluxd.core import limits
from fluxd.core.entry import Stamp, birth_frame, read_stamp
from fluxd.core.types import Offset, RaftIndex
from fluxd.storage.filesystem import File
from fluxd.storage.frames import walk_headers
from fluxd.storage.index import SegmentIndex
from fluxd.storage.log import PartitionLog
from fluxd.storage.reader import ReadPlan
from tests.simulation.disk import SimDisk
from tests.storage_kit import GROUP, append, create_log, frames_of, next_frame, open_log, sync, term

SEGMENT_BYTES = 2_000
COMMITTED = RaftIndex(3)
WITHIN = 10.0
Walk = Callable[[File, int, int], Iterator[tuple[int, Stamp]]]


def _opened() -> PartitionLog:
    """Several segments, of which only the last one has its index; the first one has entries above the commit index."""
    disk = SimDisk(random.Random(1))
    log = create_log(disk, SEGMENT_BYTES)
    for _ in range(40):
        append(log, bytes(60))
    sync(log, COMMITTED)
    log.close()
    log = open_log(disk, SEGMENT_BYTES)
    assert log._segments.all[0].index is None
    assert log._segments.all[1].first_index > 8
    return log


def _reading(log: PartitionLog) -> Callable[[], list[bytes]]:
    """All committed entries but the first one."""
    plan = log.plan_entries(RaftIndex(2), max_bytes=1 << 20, end_index=COMMITTED)
    assert not isinstance(plan, list)
    return plan


class _Pause:
    """Walks of the first thread of the pool wait; the loop's do not."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self.walks = 0
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, file: File, position: int, end: int) -> Iterator[tuple[int, Stamp]]:
        if threading.current_thread() is threading.main_thread():
            return walk_headers(file, position, end)
        self.walks += 1
        return self._walk(file, position, end)

    def wait(self) -> None:
        """Until the test goes on."""
        self.reached.set()
        assert self.go.wait(WITHIN)


@pytest.mark.parametrize("read", ["old", "new"])
def test_an_index_that_is_built_late_does_not_replace_the_logs(monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    """A reader's thread has walked the headers, or finds them changed; meanwhile the loop has truncated the segment and
    appended to it, with an index of its own.
    """

    def walk(file: File, position: int, end: int) -> Iterator[tuple[int, Stamp]]:
        found = list(walk_headers(file, position, end)) if read == "old" else walk_headers(file, position, end)
        pause.wait()
        yield from found

    log, pause = _opened(), _Pause(walk)
    committed = log.scrub.verified_stamp(COMMITTED)
    log.close()
    log = open_log(log._fs, SEGMENT_BYTES)
    monkeypatch.setattr("fluxd.storage.segment.walk_headers", pause)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(log.scrub.verified_stamp, COMMITTED)
        assert pause.reached.wait(WITHIN)
        log.truncate_suffix(RaftIndex(COMMITTED + 2))
        for number in (7, 8):
            append(log, b"instead", term=number)
        pause.go.set()
        assert reading.result(WITHIN) == committed
    log._tail.shrink()
    assert [log.term_at(RaftIndex(index)) for index in range(COMMITTED + 1, log.last_index)] == [0, term(7)]
    assert log.stamp_at(RaftIndex(COMMITTED + 2)).leader_epoch == 7


def test_one_thread_builds_what_many_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loop waits for none of them."""

    def walk(file: File, position: int, end: int) -> Iterator[tuple[int, Stamp]]:
        if pause.walks > 1:
            second.set()
        pause.wait()
        yield from walk_headers(file, position, end)

    log, pause, second = _opened(), _Pause(walk), threading.Event()
    segment = log._segments.all[0]
    segment._building = _WatchedLock(second)  # type: ignore[assignment]
    monkeypatch.setattr("fluxd.storage.segment.walk_headers", pause)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(_reading(log))
        assert pause.reached.wait(WITHIN)
        other = pool.submit(_reading(log))
        assert second.wait(WITHIN)
        assert log.stamp_at(RaftIndex(2)).raft_index == 2
        index = segment.index
        assert index is not None
        pause.go.set()
        assert first.result(WITHIN) == other.result(WITHIN) != []
    assert pause.walks == 1
    assert segment.index is index


class _Cutting:
    """A file system; what a log has not committed is cut off just before the first read of a file."""

    def __init__(self, log: PartitionLog) -> None:
        self._log, self._fs, self._cut = log, log._fs, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def open(self, path: str, **options: bool) -> _CutFile:
        """As the real one's."""
        return _CutFile(self._fs.open(path, **options), self.cut)

    def cut(self) -> None:
        """Once."""
        if not self._cut:
            self._cut = True
            self._log.truncate_suffix(RaftIndex(COMMITTED + 1))


class _CutFile:
    def __init__(self, file: File, before_read: Callable[[], None]) -> None:
        self._file, self._before_read = file, before_read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, position: int, size: int) -> bytes:
        """As the real one's."""
        self._before_read()
        return self._file.read(position, size)


@pytest.mark.parametrize("index_is_there", [False, True])
def test_what_is_cut_off_while_a_time_is_looked_for_is_no_damage(index_is_there: bool) -> None:
    """Only committed entries are asked for; the time is later than theirs, and points to what goes."""
    log = _opened()
    late = log.stamp_at(RaftIndex(COMMITTED + 3)).append_time_ms
    if not index_is_there:
        log.close()
        log = open_log(log._fs, SEGMENT_BYTES)
    log._segments.fs = _Cutting(log)
    assert log.find_time(late, COMMITTED) is None
    assert log.last_index == COMMITTED
    found = log.find_time(log.stamp_at(COMMITTED).append_time_ms, COMMITTED)
    assert found == (1, log.stamp_at(COMMITTED).append_time_ms)


def test_what_is_cut_off_while_entries_are_read_is_no_damage() -> None:
    """For a replica that copies: the leader was deposed meanwhile, and what it had not committed goes."""
    log = _opened()
    expected = frames_of(log)[1:COMMITTED]
    log._tail.shrink()
    log._fs = log._segments.fs = _Cutting(log)
    assert _reading(log)() == expected
    assert log.last_index == COMMITTED


def test_what_stands_behind_the_last_entry_of_a_read_is_not_looked_at() -> None:
    """It was being replaced while it was read."""
    log = _opened()
    expected = frames_of(log)[1:COMMITTED]
    segment, position = log._segments.position_of(RaftIndex(COMMITTED + 1))
    plan = log.plan_read(Offset(0), max_bytes=1 << 20, end_index=COMMITTED)
    assert isinstance(plan, ReadPlan)
    disk = log._fs
    assert isinstance(disk, SimDisk)
    disk.set_bytes(segment.path, disk.current_bytes(segment.path)[:position] + bytes(segment.size - position))
    assert plan() == b"".join(expected)


def test_a_time_is_looked_for_while_its_point_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking up which point it is and reading where that stands; the walk begins at an earlier one."""
    index, frame = SegmentIndex(), birth_frame(GROUP, 0)
    stamp = read_stamp(frame)
    for number in range(10):
        stamp = read_stamp(next_frame(stamp))
        index.add(stamp, number * limits.INDEX_INTERVAL_BYTES)

    looked_up = list[int]()

    def look_up_slowly(times: Sequence[int], time_ms: int) -> int:
        looked_up.append(bisect_left(times, time_ms))
        if len(looked_up) == 1:
            index.truncate(RaftIndex(5))
            return looked_up[0]
        return looked_up[-1]

    expected = index.position_by_index(RaftIndex(4))
    assert expected > 0
    monkeypatch.setattr("fluxd.storage.index.bisect_left", look_up_slowly)
    assert index.position_by_time(stamp.append_time_ms) == expected


class _WatchedLock:
    """Says when somebody waits for it."""

    def __init__(self, waiting: threading.Event) -> None:
        self._lock, self._waiting = threading.Lock(), waiting

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._waiting.set()
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
