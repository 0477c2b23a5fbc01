"""The checker on random histories: what is clean is valid, and one anomaly is always found."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fluxlog.checker import RULES
from tests.history_faults import ANOMALIES
from tests.history_kit import Event, broken, judge
from tests.history_model import Model

SEEDS = st.integers(min_value=0, max_value=2**32)


def by_process(events: list[Event], rng: random.Random) -> list[Event]:
    """The same events as if each process had written a file of its own, and the files were read in any order."""
    owner = {event["id"]: event["process"] for event in events if event["op"] == "send"}
    files: dict[str, list[Event]] = {}
    for event in events:
        name = owner[event["id"]] if event["op"] == "sent" else str(event.get("process", ""))
        files.setdefault(name, []).append(event)
    return [event for name in rng.sample(sorted(files), len(files)) for event in files[name]]


@settings(max_examples=150)
@given(SEEDS)
def test_clean_histories_are_valid(seed: int) -> None:
    """Nothing that a correct cluster may do is taken for an anomaly."""
    verdict = judge(Model(random.Random(seed)).run())
    assert verdict.valid, verdict.to_json()


@settings(max_examples=50)
@given(SEEDS)
def test_order_of_processes_does_not_matter(seed: int) -> None:
    """Time and each process's own order decide, not the order in which files are read."""
    rng = random.Random(seed)
    verdict = judge(by_process(Model(rng).run(), rng))
    assert verdict.valid, verdict.to_json()


@pytest.mark.parametrize("rule", sorted(ANOMALIES))
@settings(max_examples=25)
@given(seed=SEEDS)
def test_anomaly_is_found(rule: str, seed: int) -> None:
    """One anomaly in a clean history is named, with evidence, in whatever order processes are read."""
    rng = random.Random(seed)
    events = Model(rng, steps=40).run()
    assume(ANOMALIES[rule](events, rng))
    verdict = judge(events)
    assert not verdict.valid
    assert rule in broken(verdict), verdict.to_json()
    for error in verdict.errors:
        assert error.name == "short_final_read" or all(example.evidence for example in error.examples)
    assert rule in broken(judge(by_process(events, rng)))


def test_every_rule_has_an_anomaly() -> None:
    """No rule was forgotten."""
    assert set(ANOMALIES) == {rule.name for rule in RULES}
