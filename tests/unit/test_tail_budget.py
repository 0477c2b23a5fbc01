"""What the tails of all logs of a node hold in memory together (`storage/tail.py`)."""

from __future__ import annotations

from fluxd.core.entry import EntryKind, build_frame, read_stamp
from fluxd.core.types import RaftIndex
from fluxd.storage.tail import TailBudget, TailCache


class Log:
    """The tail of one log."""

    def __init__(self, budget: TailBudget) -> None:
        self.tail, self.last = TailCache(), 0
        self.tail.share(budget)

    def write(self, entries: int = 1) -> Log:
        """Append small entries."""
        for _ in range(entries):
            self.last += 1
            frame = _frame(self.last)
            self.tail.append(read_stamp(frame), frame)
        return self

    def held(self) -> list[int]:
        """Indexes of the entries in memory."""
        return [index for index in range(1, self.last + 1) if self.tail.get(index)]


def _frame(index: int) -> bytes:
    return build_frame(
        kind=EntryKind.NO_OP, base_offset=0, raft_index=index, leader_epoch=1, append_time_ms=1, record_count=0,
        previous_checksum=0,
    )  # fmt: skip


def test_beyond_the_budget_the_log_written_longest_ago_keeps_its_last_frame() -> None:
    """The others keep what they have."""
    cost = TailBudget()
    Log(cost).write()
    budget = TailBudget(10 * cost.bytes_held)
    old, new = Log(budget).write(5), Log(budget).write(5)
    assert (old.held(), new.held()) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    new.write()
    assert (old.held(), new.held()) == ([5], [1, 2, 3, 4, 5, 6])
    assert budget.bytes_held == 7 * cost.bytes_held


def test_who_writes_again_is_the_last_to_be_cut() -> None:
    """Also after it was cut before."""
    cost = TailBudget()
    Log(cost).write()
    budget = TailBudget(10 * cost.bytes_held)
    first, second = Log(budget).write(5), Log(budget).write(5)
    first.write()
    assert (first.held(), second.held()) == ([1, 2, 3, 4, 5, 6], [5])
    second.write(4)
    assert (first.held(), second.held()) == ([6], [5, 6, 7, 8, 9])


def test_what_is_cut_off_and_what_is_closed_counts_no_more() -> None:
    """All that was counted is given back."""
    budget = TailBudget()
    log = Log(budget).write(5)
    held = budget.bytes_held
    log.tail.truncate(RaftIndex(4))
    assert budget.bytes_held == held * 3 // 5
    log.tail.release()
    log.tail.release()
    assert budget.bytes_held == 0


def test_a_log_that_is_alone_keeps_its_own_bound() -> None:
    """There is nobody whose frames could go instead."""
    budget = TailBudget(1)
    assert Log(budget).write(5).held() == [1, 2, 3, 4, 5]
