"""The log against a plain list, through power cuts at any operation, kills and reopenings.

What holds at every moment: what a finished sync covered is there; what is there is a prefix of what was written; a
removed entry never comes back once its removal has returned.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fluxd.core.entry import Stamp, read_stamp
from fluxd.core.types import RaftIndex
from fluxd.storage.log import PartitionLog
from fluxd.storage.sync import SyncJob
from tests.simulation.disk import Keep, PowerCut, SimDisk
from tests.storage_kit import BIRTH, append, create_log, frames_of, open_log, read_all

SEGMENT_BYTES = 700

pytestmark = pytest.mark.slow


class Model:
    """A log, and what it must hold: shared by the machine and the walk over every operation."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.log: PartitionLog = create_log(disk, SEGMENT_BYTES)
        self.frames: list[bytes] = [BIRTH]
        self.before_truncation: list[bytes] = []
        """What may still be there while a truncation has not returned."""
        self.synced = 1
        self.committed = 1
        self.term = 0
        self.job: SyncJob | None = None
        self.steps_left: list[Callable[[], None]] = []
        self.snapshots: dict[int, bytes] = {}
        self.durable_start = 0
        """Log start of the last snapshot that was finished."""

    def append(self, size: int, records: int, new_term: bool) -> None:
        self.term += new_term
        self.frames.append(append(self.log, bytes(size), records=records, term=self.term))

    def begin_sync(self) -> None:
        if self.job is None:
            self.job = self.log.begin_sync()
            self.steps_left = list(self.job.steps)

    def step(self) -> None:
        """One blocking step of the sync in flight; after the last one it is finished."""
        if self.job is None:
            return
        if self.steps_left:
            self.steps_left[0]()
            del self.steps_left[0]
        else:
            job, self.job = self.job, None
            self.log.finish_sync(job, RaftIndex(self.committed))
            self.synced = self.log.synced_index

    def truncate(self, first_removed: int) -> None:
        if not self.committed < first_removed <= len(self.frames):
            return
        self.before_truncation = list(self.frames)
        del self.frames[first_removed - 1 :]
        self.synced = min(self.synced, len(self.frames))
        self.log.truncate_suffix(RaftIndex(first_removed))
        self.before_truncation = []
        self.term += 1

    def commit(self, index: int) -> None:
        self.committed = max(self.committed, min(index, self.synced))

    def snapshot(self) -> None:
        index = RaftIndex(self.committed)
        self.snapshots[index] = b"after %d" % index
        for step in self.log.write_snapshot(index, self.snapshots[index]):
            step()

    def trim(self, back: int) -> None:
        """Move the log start to a committed entry, write a snapshot, let go of what lies before."""
        if self.job is not None:
            return
        start = read_stamp(self.frames[max(0, self.committed - 1 - back)]).base_offset
        self.log.log_start_offset = max(self.log.log_start_offset, start)
        self.snapshot()
        self.durable_start = self.log.log_start_offset
        for step in self.log.trim_prefix(self.log.log_start_offset, RaftIndex(self.committed)):
            step()

    def restart(self, keep: Keep | None) -> None:
        """Power cut, or a kill where keep is None; then open and judge."""
        if keep is None:
            self.disk.kill()
        else:
            self.disk.power_cut(keep)
        self.job = None
        self.log = open_log(self.disk, SEGMENT_BYTES)
        gone = self.log.first_index - 1
        found = frames_of(self.log)
        assert gone + len(found) >= self.synced, "a finished sync covered more"
        history = self.frames if found == self.frames[gone : gone + len(found)] else self.before_truncation
        assert found == history[gone : gone + len(found)], "not a piece of what was written"
        found = history[:gone] + found
        assert self.log.log_start_offset >= self.durable_start
        if keep is None and not self.before_truncation:
            assert found == self.frames
        self.frames, self.before_truncation = found, []
        self.synced = len(found)
        self.term = max(self.term, read_stamp(found[-1]).leader_epoch) + 1
        checkpoint = self.log.checkpoint
        if checkpoint is not None:
            assert checkpoint.commit_index <= self.committed
            assert read_stamp(found[checkpoint.commit_index - 1]).leader_epoch == checkpoint.commit_term
        assert checkpoint is not None or gone
        assert 1 <= self.log.commit_index <= self.committed
        snapshot = self.log.load_snapshot()
        assert snapshot is None or self.snapshots[snapshot.index] == snapshot.payload

    def check(self) -> None:
        """Everything that can be read."""
        last = read_stamp(self.frames[-1])
        assert (self.log.last_index, self.log.last.checksum) == (len(self.frames), last.checksum)
        there = self.frames[self.log.first_index - 1 :]
        assert (self.log.log_end_offset, self.log.size_bytes) == (last.next_offset, sum(map(len, there)))
        assert read_stamp(there[0]).base_offset <= self.log.log_start_offset
        assert self.log.synced_index == self.synced
        assert self.log.dirty == (self.synced < len(self.frames))
        assert [s for s in stamps(read_all(self.log, 500)) if s.record_count] == [
            s
            for frame in self.frames
            if (s := read_stamp(frame)).record_count and s.next_offset > self.log.log_start_offset
        ]


def stamps(data: bytes) -> list[Stamp]:
    out: list[Stamp] = []
    position = 0
    while position < len(data):
        out.append(read_stamp(data, position))
        position += out[-1].frame_bytes
    return out


class LogMachine(RuleBasedStateMachine):
    """Any order of operations, power cuts between and within them."""

    @initialize(seed=st.integers(0, 2**32))
    def create(self, seed: int) -> None:
        self.model = Model(SimDisk(random.Random(seed)))

    @rule(size=st.integers(0, 400), records=st.integers(0, 3), new_term=st.booleans())
    def append(self, size: int, records: int, new_term: bool) -> None:
        self.model.append(size, records, new_term)

    @precondition(lambda self: self.model.job is None)
    @rule()
    def begin_sync(self) -> None:
        self.model.begin_sync()

    @precondition(lambda self: self.model.job is not None)
    @rule(count=st.integers(1, 9))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.model.step()

    @rule(back=st.integers(0, 12))
    def truncate(self, back: int) -> None:
        self.model.truncate(len(self.model.frames) - back)

    @rule(back=st.integers(0, 3))
    def commit(self, back: int) -> None:
        self.model.commit(self.model.synced - back)

    @rule()
    def snapshot(self) -> None:
        self.model.snapshot()

    @rule(keep=st.sampled_from([None, *Keep]))
    def restart(self, keep: Keep | None) -> None:
        self.model.restart(keep)

    @rule(after=st.integers(0, 12), back=st.integers(0, 8), keep=st.sampled_from(list(Keep)))
    def power_cut_within(self, after: int, back: int, keep: Keep) -> None:
        """The power fails at one of the next operations, whatever that is part of."""
        model = self.model
        model.disk.cut_after(after)
        with suppress(PowerCut):
            model.trim(back)
            model.begin_sync()
            model.step()
            model.truncate(len(model.frames) - back)
            model.append(200, 1, False)
            for _ in range(9):
                model.step()
        model.restart(keep)

    @invariant()
    def all_is_there(self) -> None:
        self.model.check()


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def scenario(model: Model) -> None:
    """Appends, rolls, syncs that overlap with rolls, truncations with and without a sync in flight, snapshots,
    trims."""
    for number in range(40):
        model.append(number * 37 % 300, number % 3, number % 6 == 0)
        if number % 4 == 1:
            model.begin_sync()
        if number % 2:
            model.step()
        if number % 7 == 6:
            model.truncate(len(model.frames) - number % 9)
        if number % 10 == 9:
            while model.job is not None:
                model.step()
            model.commit(model.synced - 2)
            model.snapshot()
            model.trim(number % 8)


def test_power_cut_at_every_operation_of_a_scenario() -> None:
    """Whatever operation is the last one, whatever of the unsynced is kept: a prefix, with all that was synced."""
    after, completed = 0, False
    while not completed:
        for keep, seed in [(Keep.NOTHING, 0), (Keep.EVERYTHING, 0), *((Keep.RANDOM, seed) for seed in range(4))]:
            model = Model(SimDisk(random.Random(after * 100 + seed)))
            model.disk.cut_after(after)
            with suppress(PowerCut):
                scenario(model)
                completed = True
            model.restart(keep)
            model.append(100, 1, False)
            model.begin_sync()
            while model.job is not None:
                model.step()
            model.restart(Keep.NOTHING)
            model.check()
        after += 1
    assert after > 100
