"""What a thin consumer may commit: what is acknowledged without a gap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fluxd.broker.thin_partition import ThinPartition
from fluxlog.v1 import groups_pb2


def partition(position: int = 10) -> ThinPartition:
    return ThinPartition(groups_pb2.TopicPartition(topic="t", partition=0), position)


def test_nothing_delivered_is_nothing_to_commit() -> None:
    owned = partition()
    assert (owned.done_up_to, owned.drained, owned.outstanding) == (10, True, 0)
    assert owned.acknowledge(0, 100) == 0


def test_a_gap_holds_the_commit_back() -> None:
    """Acknowledged in any order; again counts once."""
    owned = partition()
    owned.delivered(range(10, 15), 15)
    assert owned.acknowledge(12, 14) == 3
    assert (owned.done_up_to, owned.outstanding) == (10, 2)
    assert owned.acknowledge(10, 10) == 1
    assert owned.done_up_to == 11
    assert owned.acknowledge(10, 14) == 1
    assert (owned.done_up_to, owned.drained) == (15, True)


def test_offsets_that_compaction_removed_do_not_hold_it_back() -> None:
    owned = partition()
    owned.delivered([10, 13], 20)
    assert owned.acknowledge(10, 10) == 1
    assert owned.done_up_to == 13
    assert owned.acknowledge(13, 13) == 1
    assert owned.done_up_to == 20


@given(acks=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))), count=st.integers(0, 25))
def test_it_is_what_a_list_would_say(acks: list[tuple[int, int]], count: int) -> None:
    """Against the plain rule, whatever is acknowledged."""
    owned, done = partition(3), set[int]()
    owned.delivered(range(3, 3 + count), 3 + count)
    for first, last in acks:
        fresh = {offset for offset in range(3, 3 + count) if first <= offset <= last} - done
        if first <= last:
            assert owned.acknowledge(first, last) == len(fresh)
            done |= fresh
    expected = next((offset for offset in range(3, 3 + count) if offset not in done), 3 + count)
    assert (owned.done_up_to, owned.outstanding) == (expected, count - len(done))
