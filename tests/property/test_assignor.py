"""Assignments under any sequence of members, topics and partitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.assignor import assign
from fluxd.core.types import GroupId as PartitionId

TOPICS = [bytes([number]) * 16 for number in range(4)]
MEMBERS = [b"member-%d" % number for number in range(6)]

topic_sets = st.frozensets(st.sampled_from(TOPICS), min_size=1)
subscriptions = st.dictionaries(st.sampled_from(MEMBERS), topic_sets, max_size=6)
counts = st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 12), max_size=4)
currents = st.dictionaries(
    st.builds(PartitionId, st.sampled_from(TOPICS), st.integers(0, 13)), st.sampled_from([*MEMBERS, b"gone"])
)


def moved(before: Mapping[PartitionId, bytes], after: Mapping[PartitionId, bytes]) -> int:
    return sum(1 for partition, member in after.items() if before.get(partition, member) != member)


@given(wanted=subscriptions, partitions=counts, current=currents)
def test_each_partition_has_one_member_that_wants_it(
    wanted: dict[bytes, frozenset[bytes]], partitions: dict[bytes, int], current: dict[PartitionId, bytes]
) -> None:
    """Every partition of a topic that somebody wants has exactly one member, who wants it; nothing else has."""
    result = assign(wanted, partitions, current)
    assert set(result) == {
        PartitionId(topic, number)
        for topic, count in partitions.items()
        if any(topic in topics for topics in wanted.values())
        for number in range(count)
    }
    assert all(partition.topic_id in wanted[member] for partition, member in result.items())


@given(wanted=subscriptions, partitions=counts, current=currents)
def test_members_with_the_same_topics_are_within_one(
    wanted: dict[bytes, frozenset[bytes]], partitions: dict[bytes, int], current: dict[PartitionId, bytes]
) -> None:
    """Members with the same topics have the same number of partitions, plus or minus one."""
    load = Counter(assign(wanted, partitions, current).values())
    for topics in set(wanted.values()):
        loads = [load[member] for member, own in wanted.items() if own == topics]
        assert max(loads) - min(loads) <= 1


@given(wanted=subscriptions, partitions=counts, current=currents)
def test_what_is_even_stays(
    wanted: dict[bytes, frozenset[bytes]], partitions: dict[bytes, int], current: dict[PartitionId, bytes]
) -> None:
    """Worked out again, nothing moves."""
    once = assign(wanted, partitions, current)
    assert assign(wanted, partitions, once) == once


@given(
    members=st.frozensets(st.sampled_from(MEMBERS), min_size=1),
    partitions=st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 12), min_size=1),
    data=st.data(),
)
def test_no_even_assignment_moves_less(
    members: frozenset[bytes], partitions: dict[bytes, int], data: st.DataObject
) -> None:
    """With the same topics for all, exactly as many partitions move as the even shares demand."""
    all_partitions = [PartitionId(topic, number) for topic, count in partitions.items() for number in range(count)]
    holder = st.sampled_from([*sorted(members), b"gone", None])
    drawn = {partition: data.draw(holder) for partition in all_partitions}
    current = {partition: member for partition, member in drawn.items() if member is not None}
    result = assign(dict.fromkeys(members, frozenset(partitions)), partitions, current)
    kept = Counter(member for partition, member in current.items() if result[partition] == member)
    has = Counter(member for member in current.values() if member in members)
    # The most that can stay: everybody keeps up to the share, and as many as there are remainders keep one more.
    share, remainder = divmod(len(all_partitions), len(members))
    above = sum(1 for member in members if has[member] > share)
    most = sum(min(has[member], share) for member in members) + min(above, remainder)
    assert sum(kept.values()) == most


def test_more_members_than_partitions_leaves_some_idle() -> None:
    """Three members, two partitions: one has none, and that stays so."""
    wanted = dict.fromkeys(MEMBERS[:3], frozenset(TOPICS[:1]))
    result = assign(wanted, {TOPICS[0]: 2}, {})
    assert sorted(result.values()) == MEMBERS[:2]


def test_a_new_member_takes_its_share_and_nothing_else_moves() -> None:
    """Of 12 partitions of two members the third gets four; the others keep the rest."""
    wanted = dict.fromkeys(MEMBERS[:2], frozenset(TOPICS[:2]))
    before = assign(wanted, {TOPICS[0]: 6, TOPICS[1]: 6}, {})
    after = assign(wanted | {MEMBERS[2]: frozenset(TOPICS[:2])}, {TOPICS[0]: 6, TOPICS[1]: 6}, before)
    assert moved(before, after) == 4
    assert Counter(after.values()) == dict.fromkeys(MEMBERS[:3], 4)


def test_when_a_member_goes_only_its_partitions_move() -> None:
    """The others keep what they have."""
    wanted = dict.fromkeys(MEMBERS[:4], frozenset(TOPICS[:1]))
    before = assign(wanted, {TOPICS[0]: 12}, {})
    del wanted[MEMBERS[1]]
    after = assign(wanted, {TOPICS[0]: 12}, before)
    assert moved(before, after) == 3
