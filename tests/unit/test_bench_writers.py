"""What the failover measurement makes of what was acknowledged: the longest wait, and what is lost or there twice."""

from __future__ import annotations

from array import array

from fluxlog import Delivered
from tests.bench.writers import Acked, Verdict, Write, compare, longest_wait_s


def _writes(*times: tuple[float, float, int]) -> list[Write]:
    return [Write(*each) for each in times]


def test_the_wait_counts_from_the_signal_until_a_new_leader_answers() -> None:
    """A write under way at the signal counts from there; what was answered before it does not count at all."""
    writes = _writes((1.0, 1.9, 1), (1.9, 4.5, 2), (4.6, 9.0, 2))
    assert longest_wait_s(writes, 1, moment=2.0) == 2.5


def test_answers_of_the_old_leader_after_the_signal_do_not_end_it() -> None:
    """A leader that hands over goes on answering for a while: the gap comes later."""
    writes = _writes((1.9, 2.1, 1), (2.1, 2.2, 1), (2.2, 3.2, 2))
    assert longest_wait_s(writes[:2], 1, moment=2.0) is None
    assert longest_wait_s(writes, 1, moment=2.0) == 1.0


def test_a_leader_that_is_dead_answers_nothing_that_begins_later() -> None:
    """What was under way at the signal may still have been answered by the old leader."""
    writes = _writes((1.9, 2.1, 1), (2.1, 2.4, 1))
    assert longest_wait_s(writes[:1], -1, moment=2.0) is None
    assert round(longest_wait_s(writes, -1, moment=2.0) or 0, 3) == 0.3


def _acked(*pairs: tuple[int, int]) -> Acked:
    acked = Acked()
    for number, offset in pairs:
        acked.note(number, Delivered(0, offset, 1, 3, duplicate=False))
    return acked


def _judge(acked: Acked, found: list[int]) -> Verdict:
    verdict = Verdict()
    compare(acked, array("q", found), verdict)
    return verdict


def test_a_sound_log_is_judged_sound() -> None:
    """Everything acknowledged at its offset; a record that nobody was told of may be there, once."""
    verdict = _judge(_acked((7, 0), (8, 1), (10, 3)), [7, 8, 9, 10])
    assert (verdict.acknowledged, verdict.in_log, verdict.lost, verdict.duplicated) == (3, 4, 0, 0)


def test_lost_records_and_double_ones_are_counted() -> None:
    """Acknowledged and absent, or at another offset than was told; and a record that is there twice."""
    assert _judge(_acked((7, 0), (8, 1)), [7]).lost == 1
    assert _judge(_acked((7, 0), (8, 1)), [8, 7]).lost == 2
    assert _judge(_acked((7, 0), (8, 2)), [7, 7, 8]).duplicated == 1
