"""A segment's index in memory, which threads of the pool build and read while the loop appends and truncates."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluxd.core.entry import Stamp
from fluxd.core.types import RaftIndex
from fluxd.storage.filesystem import File
from fluxd.storage.frames import walk_headers
from fluxd.storage.log import PartitionLog
from tests.simulation.disk import SimDisk
from tests.storage_kit import append, create_log, open_log, sync, term

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
