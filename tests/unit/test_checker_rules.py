"""Each rule of the checker on the smallest history that breaks it, and on its nearest neighbour that does not."""

from __future__ import annotations

from typing import Any

import pytest

from fluxlog.checker import RULES
from tests.history_kit import Script, broken, judge, only


def three() -> Script:
    """a, b, c acknowledged at 0, 1, 2."""
    script = Script()
    for offset, value in enumerate("abc"):
        script.ok("w", offset, value)
    return script


def operations(evidence: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(operation.get(name) for name in ("op", *names)) for operation in evidence]


def test_clean() -> None:
    """A history without anomaly is valid."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 0, "a", "b")
    script.final_read("a", "b", "c")
    verdict = script.judge()
    assert verdict.valid, verdict.to_json()


# ---------------------------------------------------------------------- the log
def test_inconsistent_offset_polls() -> None:
    """Two polls return different values at one offset."""
    script = Script()
    script.ok("w", 0, "a")
    script.unknown("w", "b")
    script.assign("r", t_0=0)
    script.poll("r", 0, "b")
    script.final_read("a")
    verdict = script.judge()
    assert broken(verdict) == {"inconsistent_offset": 1, "acknowledged_value": 1}
    evidence = verdict.errors[0].examples[0].evidence
    assert operations(evidence, "process", "offset", "value") == [("poll", "r", 0, "b"), ("poll", "r9", 0, "a")]


def test_inconsistent_offset_acknowledgements() -> None:
    """Two sends are acknowledged at one offset; a batch covers all of its offsets."""
    script = Script()
    script.ok("w", 0, "a", "b")
    script.ok("v", 1, "c")
    script.final_read("a", "b")
    verdict = script.judge()
    assert broken(verdict) == {"inconsistent_offset": 1, "lost_write": 1, "acknowledged_value": 1}
    evidence = verdict.errors[0].examples[0].evidence
    assert operations(evidence, "process", "offset") == [("send", "w", 0), ("send", "v", 1)]


def test_duplicate_read_twice() -> None:
    """One value is read at two offsets."""
    script = Script()
    script.ok("w", 0, "a")
    script.final_read("a", "a")
    evidence = only(script.judge(), "duplicate")
    assert operations(evidence, "offset", "value") == [("poll", 0, "a"), ("poll", 1, "a")]


def test_duplicate_read_elsewhere() -> None:
    """A value is read elsewhere than acknowledged."""
    script = Script()
    script.ok("w", 0, "a")
    script.unknown("w", "b")
    script.final_read("b", "a")
    assert broken(script.judge()) == {"duplicate": 1, "acknowledged_value": 1}


def test_duplicate_behind_a_conflict() -> None:
    """A value that one poll returns at a place where others see another value counts as read there."""
    script = Script()
    script.ok("w", 0, "a")
    script.ok("w", 1, "b")
    script.assign("r", t_0=0)
    script.poll("r", 0, "a", "a")
    script.final_read("a", "b")
    assert {"inconsistent_offset", "duplicate"} <= broken(script.judge()).keys()


def test_unexpected_value_unknown() -> None:
    """A value is read that nobody sent."""
    script = Script()
    script.ok("w", 0, "a")
    script.final_read("a", "x")
    assert operations(only(script.judge(), "unexpected_value"), "offset", "value") == [("poll", 1, "x")]


def test_unexpected_value_of_another_partition() -> None:
    """A value is read in a partition that it was not sent to."""
    script = Script()
    script.ok("w", 0, "a")
    script.unknown("w", "b", partition="u-0")
    script.final_read("a", "b")
    evidence = only(script.judge(), "unexpected_value")
    assert operations(evidence, "partition") == [("send", "u-0"), ("poll", "t-0")]


def test_hole() -> None:
    """A reader goes over an offset that nobody ever read."""
    script = Script()
    script.ok("w", 0, "a")
    script.ok("w", 2, "b")
    script.final_read("a")
    script.poll("r9", 2, "b")
    evidence = only(script.judge(), "hole")
    assert operations(evidence, "offsets") == [("poll", [[0, 1]]), ("poll", [[2, 3]])]


def test_hole_at_the_beginning() -> None:
    """A reader that asked for offset 0 is given a later one."""
    script = Script()
    script.ok("w", 2, "b")
    script.phase("final_read")
    script.assign("r", t_0=0)
    script.poll("r", 2, "b")
    assert operations(only(script.judge(), "hole"), "offsets") == [("poll", [[2, 3]])]


def test_no_hole_below_the_log_start() -> None:
    """What retention removed is no hole, nor lost, nor skipped."""
    script = three()
    script.watermark("r", 3, start=2)
    script.phase("final_read")
    script.assign("r", t_0=0)
    script.poll("r", 2, "c")
    verdict = script.judge()
    assert verdict.valid, verdict.to_json()


# ---------------------------------------------------------------------- writes
def test_lost_write() -> None:
    """Acknowledged, below what was read, and never read: another record has its place."""
    script = Script()
    script.ok("w", 0, "a")
    script.unknown("w", "b")
    script.final_read("b")
    verdict = script.judge()
    assert broken(verdict) == {"lost_write": 1, "acknowledged_value": 1}
    evidence = verdict.errors[0].examples[0].evidence
    assert operations(evidence, "offset") == [("send", 0), ("poll", 0)]
    assert verdict.summary["lost_by_node"] == {"1": 1}


def test_lost_stretch() -> None:
    """Every record of a lost stretch is counted; the evidence is the first that was read above it."""
    script = Script()
    for offset in range(5):
        script.ok("w", offset, f"v{offset}")
    script.phase("final_read")
    script.assign("r", t_0=0)
    script.poll("r", 0, "v0")
    script.poll("r", 4, "v4")
    verdict = script.judge()
    assert broken(verdict) == {"hole": 1, "lost_write": 3}
    assert [one.evidence[1]["offset"] for one in verdict.errors[1].examples] == [4, 4, 4]


def test_unseen() -> None:
    """Acknowledged above everything that was read: an error once the last phase is over, lag before."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 0, "a", "b")
    before = script.judge()
    assert not before.errors
    assert before.summary["unread"] == 1
    script.final_read("a", "b")
    verdict = script.judge()
    assert broken(verdict) == {"unseen": 1, "short_final_read": 1}
    assert operations(verdict.errors[0].examples[0].evidence, "offset", "node") == [("send", 2, 1)]


def test_aborted_read() -> None:
    """A rejected value is read."""
    script = Script()
    script.ok("w", 0, "a")
    script.fail("w", "b")
    script.final_read("a", "b")
    evidence = only(script.judge(), "aborted_read")
    assert operations(evidence, "outcome", "offset") == [("send", "fail", None), ("poll", None, 1)]


def test_unknown_may_be_read() -> None:
    """Without an answer a value may be there or not."""
    script = Script()
    script.ok("w", 0, "a")
    script.unknown("w", "b")
    script.unknown("w", "c")
    script.final_read("a", "b")
    verdict = script.judge()
    assert verdict.valid, verdict.to_json()
    assert verdict.summary["unknown_and_written"] == 1


def test_acknowledged_value() -> None:
    """Two acknowledged values are read in each other's place."""
    script = Script()
    script.ok("w", 0, "a")
    script.ok("v", 1, "b")
    script.final_read("b", "a")
    verdict = script.judge()
    assert broken(verdict) == {"duplicate": 2, "acknowledged_value": 2}
    evidence = verdict.errors[1].examples[0].evidence
    assert operations(evidence, "process", "offset", "value") == [("send", "w", 0, None), ("poll", "r9", 0, "b")]


# ---------------------------------------------------------------------- readers
def test_poll_skip() -> None:
    """A reader goes over a record that another one read."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 0, "a")
    script.poll("r", 2, "c")
    script.final_read("a", "b", "c")
    evidence = only(script.judge(), "poll_skip")
    expected = [("poll", "r", [[0, 1]], None), ("poll", "r", [[2, 3]], None), ("poll", "r9", None, "b")]
    assert operations(evidence, "process", "offsets", "value") == expected


@pytest.mark.parametrize("change", ["assign", "crash"])
def test_skip_between_assignments(change: str) -> None:
    """A new assignment, or a client that begins anew, may stand anywhere."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 0, "a")
    if change == "assign":
        script.assign("r", t_0=None)
    else:
        script.crash("r")
    script.poll("r", 2, "c")
    script.final_read("a", "b", "c")
    assert script.judge().valid


def test_nonmonotonic_poll() -> None:
    """A reader is given a record again."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 0, "a", "b")
    script.poll("r", 1, "b")
    script.final_read("a", "b", "c")
    evidence = only(script.judge(), "nonmonotonic_poll")
    assert operations(evidence, "offsets") == [("poll", [[0, 2]]), ("poll", [[1, 2]])]


def test_nonmonotonic_within_a_poll() -> None:
    """Order within one poll counts as well."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 0, "a")
    script.events[-1]["runs"] = [["t-0", 0, ["a", "b"]], ["t-0", 0, ["a"]]]
    script.final_read("a", "b", "c")
    evidence = only(script.judge(), "nonmonotonic_poll")
    assert operations(evidence, "offsets") == [("poll", [[0, 2], [0, 1]])]


# ---------------------------------------------------------------------- order
def overlapping(*, unordered: bool) -> Script:
    """w sends a, then b before a was answered; b lies below a."""
    script = Script()
    if unordered:
        script.events.append({"op": "unordered", "process": "w"})
    first = script.send("w", "a")
    second = script.send("w", "b")
    script.sent(first, "ok", 1)
    script.sent(second, "ok", 0)
    script.final_read("b", "a")
    return script


def test_nonmonotonic_send() -> None:
    """A writer's later send lies below its earlier one."""
    evidence = only(overlapping(unordered=False).judge(), "nonmonotonic_send")
    assert operations(evidence, "offset") == [("send", 1), ("send", 0)]


def test_unordered_writer() -> None:
    """A writer without sequence numbers that does not wait may see its records in any order."""
    assert overlapping(unordered=True).judge().valid


def test_real_time_order() -> None:
    """A send that began after an acknowledgement lies below it."""
    script = Script()
    script.ok("w", 1, "a")
    script.ok("v", 0, "b")
    script.final_read("b", "a")
    evidence = only(script.judge(), "real_time_order")
    assert operations(evidence, "process", "offset") == [("send", "w", 1), ("send", "v", 0)]


def test_real_time_order_of_unknown() -> None:
    """So does one without an answer that was read."""
    script = Script()
    script.ok("w", 1, "a")
    script.unknown("v", "b")
    script.final_read("b", "a")
    only(script.judge(), "real_time_order")


def test_clock_error() -> None:
    """Clocks that may differ by more than the distance prove nothing."""
    script = Script()
    script.ok("w", 1, "a")
    script.ok("v", 0, "b")
    script.final_read("b", "a")
    assert script.judge(clock_error=0.6).valid
    assert not script.judge(clock_error=0.4).valid


def test_stale_latest() -> None:
    """An answer to "latest" misses what was acknowledged before the question."""
    script = three()
    script.watermark("r", 2, latest=True)
    script.final_read("a", "b", "c")
    evidence = only(script.judge(), "stale_latest")
    assert operations(evidence, "offset", "high_watermark") == [("send", 2, None), ("watermark", None, 2)]


def test_follower_may_lag() -> None:
    """Any other high watermark may be an old one."""
    script = three()
    script.watermark("r", 2)
    script.final_read("a", "b", "c")
    assert script.judge().valid


# ---------------------------------------------------------------------- the cluster
def test_watermark_back() -> None:
    """A client's high watermark goes back."""
    script = three()
    script.watermark("r", 3)
    script.watermark("r", 2)
    script.final_read("a", "b", "c")
    evidence = only(script.judge(), "watermark_back")
    assert operations(evidence, "high_watermark") == [("watermark", 3), ("watermark", 2)]


def test_watermark_of_a_new_client() -> None:
    """Another client, or one that crashed, may start lower."""
    script = three()
    script.watermark("r", 3)
    script.watermark("q", 2)
    script.crash("r")
    script.watermark("r", 1)
    script.final_read("a", "b", "c")
    assert script.judge().valid


def test_epoch_back() -> None:
    """A record has a lower epoch than one below it."""
    script = Script()
    script.ok("w", 0, "a", epoch=3, node=1)
    script.ok("w", 1, "b", epoch=2, node=2)
    script.final_read("a", "b")
    evidence = only(script.judge(), "epoch_back")
    assert operations(evidence, "offset", "leader_epoch") == [("send", 0, 3), ("send", 1, 2)]


def test_two_leaders() -> None:
    """Two nodes acknowledge in one epoch."""
    script = Script()
    script.ok("w", 0, "a", epoch=3, node=1)
    script.ok("w", 1, "b", epoch=3, node=2)
    script.final_read("a", "b")
    assert operations(only(script.judge(), "two_leaders"), "node") == [("send", 1), ("send", 2)]


def test_one_leader_per_partition() -> None:
    """Epochs of different partitions have nothing to do with each other; an answer without a node says nothing."""
    script = Script()
    script.ok("w", 0, "a", epoch=3, node=1)
    script.ok("w", 0, "b", epoch=3, node=2, partition="t-1")
    script.ok("w", 1, "c", epoch=3)
    script.events[-1]["node"] = None
    script.phase("final_read")
    script.assign("r", t_0=0, t_1=0)
    script.poll("r", 0, "a", "c")
    script.poll("r", 0, "b", partition="t-1")
    assert script.judge().valid


@pytest.mark.parametrize(("end", "checksum"), [(3, 8), (2, 7)])
def test_replicas_differ(end: int, checksum: int) -> None:
    """Replicas end with different bytes, or in different places."""
    script = three()
    script.final_read("a", "b", "c")
    script.replica(1, 3, 7)
    script.replica(2, end, checksum)
    assert operations(only(script.judge(), "replicas_differ"), "node") == [("replica", 1), ("replica", 2)]


def test_newest_end_counts() -> None:
    """A replica may have been behind before."""
    script = three()
    script.replica(2, 2, 5)
    script.final_read("a", "b", "c")
    script.replica(1, 3, 7)
    script.replica(2, 3, 7)
    assert script.judge().valid


# ---------------------------------------------------------------------- appends with an expected offset
def test_two_winners() -> None:
    """Two appends that expected the same offset win."""
    script = Script()
    script.ok("w", 0, "a", expected_offset=0)
    script.ok("v", 1, "b", expected_offset=0)
    script.final_read("a", "b")
    verdict = script.judge()
    assert broken(verdict) == {"two_winners": 1, "wrong_expected_offset": 1}
    assert operations(verdict.errors[0].examples[0].evidence, "process") == [("send", "w"), ("send", "v")]


def test_wrong_expected_offset() -> None:
    """An append without an answer is read elsewhere than it expected."""
    script = Script()
    script.ok("w", 0, "a", expected_offset=0)
    script.unknown("v", "b", expected_offset=0)
    script.final_read("a", "b")
    evidence = only(script.judge(), "wrong_expected_offset")
    assert operations(evidence, "expected_offset", "value") == [("send", 0, None), ("poll", None, "b")]


def test_one_winner() -> None:
    """One wins, the others do not."""
    script = Script()
    script.ok("w", 0, "a", expected_offset=0)
    script.fail("v", "b", expected_offset=0)
    script.unknown("u", "c", expected_offset=0)
    script.final_read("a")
    assert script.judge().valid


# ---------------------------------------------------------------------- the last phase
def test_short_final_read() -> None:
    """A reader of the last phase does not reach what another one was given."""
    script = three()
    script.final_read("a", "b", "c")
    script.assign("q", t_0=0)
    script.poll("q", 0, "a")
    evidence = only(script.judge(), "short_final_read")
    assert operations(evidence, "process", "offsets") == [("poll", "q", [[0, 1]])]


def test_final_read_reaches_the_watermark() -> None:
    """What a client was told to be committed must be there, whoever sent it."""
    script = three()
    script.watermark("r", 4)
    script.final_read("a", "b", "c")
    only(script.judge(), "short_final_read")


def test_final_read_begins_at_the_log_start() -> None:
    """A reader that begins later proves nothing about what is before."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 0, "a", "b")
    script.phase("final_read")
    script.assign("r", t_0=1)
    script.poll("r", 1, "b", "c")
    only(script.judge(), "short_final_read")


def test_nobody_reads_a_partition() -> None:
    """A partition that nobody reads in the end."""
    script = three()
    script.ok("w", 0, "d", partition="t-1")
    script.assign("r", t_1=0)
    script.poll("r", 0, "d", partition="t-1")
    script.final_read("a", "b", "c")
    assert only(script.judge(), "short_final_read") == []


def test_every_rule_is_tested() -> None:
    """The rules named here are all there are."""
    tested = {
        "inconsistent_offset", "duplicate", "unexpected_value", "hole", "lost_write", "unseen", "aborted_read",
        "acknowledged_value", "poll_skip", "nonmonotonic_poll", "nonmonotonic_send", "real_time_order", "stale_latest",
        "watermark_back", "epoch_back", "two_leaders", "replicas_differ", "two_winners", "wrong_expected_offset",
        "short_final_read",
    }  # fmt: skip
    assert {rule.name for rule in RULES} == tested


def test_huge_offset() -> None:
    """A reader that is thrown to an absurd offset costs no memory."""
    script = three()
    script.assign("r", t_0=0)
    script.poll("r", 2**60, "b")
    script.final_read("a", "b", "c")
    assert {"duplicate", "poll_skip"} <= broken(judge(script.events)).keys()
