"""What a run is made of and how it is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxlog.checker import History, Outcome
from tests.chaos.availability import has_quorum, measure, quorum_intervals
from tests.chaos.network import CLIENTS, among, between
from tests.chaos.plan import Kind, Target, choose, network_plan, process_plan
from tests.chaos.scene import Scene, Worker
from tests.chaos.switch import Rule

NOTHING_CUT: frozenset[tuple[int, int]] = frozenset()
ALL = frozenset({1, 2, 3})


def test_a_seed_gives_the_same_plan_again() -> None:
    """Everything but who leads is fixed; another seed is another plan; it fits the time."""
    assert process_plan(7, 300) == process_plan(7, 300) != process_plan(8, 300)
    for plan in (process_plan(7, 300), network_plan(7, 300)):
        assert sum(fault.pause + fault.seconds for fault in plan) <= 300
    assert {fault.kind for fault in network_plan(7, 300, {Kind.RING, Kind.KILL})} == {Kind.RING}
    assert choose(Target.LEADER, 2, [1, 2, 3], 5) == [2]
    assert len(choose(Target.MAJORITY, 2, [1, 2, 3], 5)) == 2


@pytest.mark.parametrize(
    ("up", "cut", "expected"),
    [
        ({1, 2, 3}, {}, True),
        ({1, 2}, {}, True),
        ({1}, {}, False),
        ({1, 2, 3}, among([1, 2, 3], Rule(1)), False),
        ({1, 2, 3}, between([1], [2], Rule(1)), True),
        ({1, 2}, between([1], [2], Rule(1), one_way=True), False),
        ({1, 2, 3}, between([CLIENTS], [1, 2, 3], Rule(1)), False),
    ],
)
def test_a_quorum_is_a_majority_that_hears_each_other_and_the_clients(
    up: set[int], cut: dict[tuple[int, int], Rule], expected: bool
) -> None:
    """In both directions."""
    assert has_quorum(up, set(cut), 3) is expected


def test_only_time_with_a_quorum_counts() -> None:
    """Nine tenths of a second are served of two, and the half in which nothing could be served is left out."""
    changes = [
        (0.0, ALL, NOTHING_CUT),
        (1.0, frozenset({1, 3}), NOTHING_CUT),
        (1.5, frozenset({1}), NOTHING_CUT),
        (2.0, ALL, NOTHING_CUT),
    ]
    assert list(quorum_intervals(changes, 3, 0.0, 2.5)) == [(0.0, 1.5), (2.0, 2.5)]
    history = History()
    for number, time in enumerate([0.05, 0.06, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85]):
        send = history.send("w", "t-0", [f"{number}"], time - 0.01)
        history.sent(send, time, Outcome.OK, offset=number)
    found = measure(history, changes, 3, 0.0, 2.5)
    assert (round(found.quorum_seconds, 6), round(found.percent)) == (2.0, 45)
    assert found.stalls[0] == (0.85, 0.65, "t-0")


class _Broken(Worker):
    """A client with a defect."""

    def live(self) -> None:
        raise ValueError("a defect")


def test_a_client_with_a_defect_fails_the_run(tmp_path: Path) -> None:
    """It does not end silently: then its part of the history would prove nothing."""
    failures: list[str] = []
    scene = Scene("t", 1, {1: "127.0.0.1:1"}, 1, tmp_path, failures, crash_every=10)
    worker = _Broken("broken", scene, scene.stop_writing)
    worker.start()
    worker.join(10)
    worker.close()
    assert "a defect" in failures[0]
