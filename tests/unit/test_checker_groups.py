"""Each rule for groups on the smallest history that breaks it, and on its nearest neighbour that does not."""

from __future__ import annotations

import pytest

from fluxlog.checker.groups import GROUP_RULES, GroupHistory, check_group


@pytest.fixture
def group() -> GroupHistory:
    """Two members, one after the other; the second is given one record again."""
    history = GroupHistory("g")
    history.owned("a", "t-0", 5, 1.0)
    history.delivered("a", "t-0", 0, 3, 2.0)
    history.committed("t-0", 2, 2.1, 2.2)
    history.owned("b", "t-0", 9, 3.0)
    history.delivered("b", "t-0", 2, 2, 4.0)
    history.committed("t-0", 4, 4.1, 4.2)
    return history


def broken(history: GroupHistory) -> list[str]:
    return [rule for rule, _ in check_group(history).errors]


def test_clean(group: GroupHistory) -> None:
    """Delivered again is no error; it is counted."""
    verdict = check_group(group)
    assert verdict.valid, verdict.errors
    assert (verdict.delivered, verdict.redelivered) == (4, 1)


def test_nothing_proves_nothing() -> None:
    """An empty history is not valid."""
    assert not check_group(GroupHistory("g")).valid


def test_two_owners(group: GroupHistory) -> None:
    """In one generation; the same member again is fine."""
    group.owned("b", "t-0", 9, 5.0)
    group.owned("a", "t-1", 9, 5.0)
    assert broken(group) == []
    group.owned("a", "t-0", 9, 5.0)
    ((rule, message),) = check_group(group).errors
    assert rule == "two_owners"
    assert "b (at 3.000) and by a (at 5.000)" in message


def test_skipped(group: GroupHistory) -> None:
    """A hole between what anybody was given."""
    group.delivered("b", "t-0", 4, 1, 5.0)
    assert broken(group) == []
    group.delivered("b", "t-0", 7, 1, 5.0)
    ((rule, message),) = check_group(group).errors
    assert (rule, message) == ("skipped", "t-0: 5..6 were delivered to nobody, 7 was")


def test_commit_ahead(group: GroupHistory) -> None:
    """Of what was delivered; after a reset it is somebody's wish."""
    group.committed("t-0", 5, 5.0, 5.1)
    assert broken(group) == ["commit_ahead"]
    group.reset("t-0", 4.5)
    assert broken(group) == []


def test_commit_back(group: GroupHistory) -> None:
    """An answer that overlaps the higher one may be older; one that was asked for later may not."""
    group.committed("t-0", 2, 4.15, 6.0)
    assert broken(group) == []
    group.committed("t-0", 2, 5.0, 5.1)
    assert broken(group) == ["commit_back"]
    group.reset("t-0", 4.9)
    assert broken(group) == []


def test_every_rule_has_its_test() -> None:
    """By name."""
    assert {f"test_{name}" for name in GROUP_RULES} <= set(globals())
