"""What a verdict says beside its errors: progress, summary, JSON, and the report for people."""

from __future__ import annotations

import json

import pytest

from fluxlog.checker import History, HistoryError, Outcome, Phase, check, report
from tests.history_kit import Script


def healthy() -> Script:
    """Sends and polls that succeed in every part."""
    script = Script()
    script.ok("w", 0, "a")
    script.assign("r", t_0=0)
    script.poll("r", 0, "a")
    script.phase("faults")
    script.ok("w", 1, "b", epoch=2, node=2)
    script.poll("r", 1, "b")
    script.phase("heal")
    script.ok("w", 2, "c", epoch=2, node=2)
    script.poll("r", 2, "c")
    return script


def test_empty_history() -> None:
    """A history of nothing proves nothing."""
    verdict = Script().judge()
    assert not verdict.valid
    assert not verdict.errors
    assert verdict.gaps == [
        "no poll succeeded, of 0",
        "no send succeeded, of 0",
        "no final read: what was acknowledged last may be gone",
    ]
    assert report(verdict).startswith("NOT PROVEN")


def test_stuck_cluster() -> None:
    """A cluster that does nothing from some time on breaks no promise, and does not pass."""
    script = healthy()
    script.phase("faults")
    script.fail("w", "d")
    script.unknown("w", "e")
    script.final_read("a", "b", "c")
    verdict = script.judge()
    assert not verdict.valid
    assert verdict.gaps == ["phase faults (number 3): no send succeeded, of 2"]


def test_empty_polls_are_no_progress() -> None:
    """A reader that is given nothing in a phase makes no progress."""
    script = healthy()
    script.phase("faults")
    script.ok("w", 3, "d", epoch=2, node=2)
    script.poll("r", 3)
    script.final_read("a", "b", "c", "d")
    assert script.judge().gaps == ["phase faults (number 3): no poll succeeded, of 1"]


def test_answer_in_a_later_phase() -> None:
    """A phase in which nothing was begun needs no success."""
    script = healthy()
    script.phase("faults")
    script.final_read("a", "b", "c")
    assert script.judge().valid


def test_conditional_sends_count_apart() -> None:
    """Where appends with an expected offset were tried, one must have won."""
    script = healthy()
    script.fail("w", "d", expected_offset=3)
    script.final_read("a", "b", "c")
    assert script.judge().gaps == ["no conditional_send succeeded, of 1"]


@pytest.mark.parametrize(
    ("lost", "pattern"), [("ab", "prefix"), ("bc", "middle"), ("ad", "middle"), ("cd", "postfix"), ("abcd", "all")]
)
def test_pattern_of_losses(lost: str, pattern: str) -> None:
    """Which of a writer's acknowledged sends are gone, and who acknowledged them."""
    script = Script()
    for offset, value in enumerate("abcd"):
        script.ok("w", offset, value, node=offset % 2 + 1)
    script.unknown("v", *"ABCD")
    script.final_read(*(value.upper() if value in lost else value for value in "abcd"))
    summary = script.judge().summary
    assert summary["lost"] == len(lost)
    assert summary["lost_by_writer"] == [
        {"process": "w", "partition": "t-0", "lost": len(lost), "acknowledged": 4, "pattern": pattern}
    ]


def test_longest_stall() -> None:
    """The longest time without an acknowledgement, with its beginning."""
    script = healthy()
    script.now += 10.0
    script.ok("w", 3, "d", epoch=3)
    script.final_read("a", "b", "c", "d")
    assert script.judge().summary["longest_stall"] == {"seconds": 12.0, "from": 8.5}


def test_stall_that_does_not_end() -> None:
    """A send that begins late and is never acknowledged is a stall too."""
    script = healthy()
    script.now += 10.0
    script.fail("w", "d")
    script.final_read("a", "b", "c")
    assert script.judge().summary["longest_stall"] == {"seconds": 11.5, "from": 8.5}


def test_worst_lag() -> None:
    """The longest time for which an acknowledged record waited for an assigned reader."""
    script = healthy()
    script.ok("w", 3, "d", epoch=2)
    acknowledged_at = script.now + 0.5
    script.now += 5.0
    script.poll("r", 3, "d")
    lag = script.now - acknowledged_at
    script.final_read("a", "b", "c", "d")
    worst = {"seconds": lag, "process": "r", "partition": "t-0", "offset": 3}
    assert script.judge().summary["worst_lag"] == worst


def test_json_and_report() -> None:
    """Both name the rule, the values, and the operations; the report counts what it leaves out."""
    script = Script()
    for offset in range(9):
        script.ok("w", offset, f"v{offset}")
    script.ok("w", 9, "end")
    script.phase("final_read")
    script.assign("r", t_0=9)
    script.poll("r", 9, "end")
    verdict = script.judge()
    found = json.loads(verdict.to_json())
    assert found["valid"] is False
    lost = next(error for error in found["errors"] if error["rule"] == "lost_write")
    assert lost["count"] == 9
    assert lost["examples"][0]["evidence"][0]["values"] == ["v0"]
    text = report(verdict)
    assert text.startswith("INVALID: 2 promises were broken")
    assert "lost_write, 9 times" in text
    assert "'v0' was acknowledged and never read, what is at 9 was" in text
    assert "and 4 more" in text


def test_valid_report() -> None:
    """Says so, and what there was."""
    script = healthy()
    script.final_read("a", "b", "c")
    text = report(script.judge())
    assert text.startswith("VALID")
    assert "faults: poll 1 begun, 1 succeeded; send 1 begun, 1 succeeded" in text


# ---------------------------------------------------------------------- mistakes of a recorder
def test_value_sent_twice() -> None:
    """Values must be unique."""
    script = Script()
    script.ok("w", 0, "a")
    script.ok("v", 1, "a")
    with pytest.raises(HistoryError, match="'a' was sent twice"):
        script.judge()


def test_mistakes() -> None:
    """What cannot be a history is refused where it is entered."""
    history = History()
    with pytest.raises(HistoryError, match="at least one value"):
        history.send("w", "t-0", "text", 0.0)
    with pytest.raises(HistoryError, match="no send has number 0"):
        history.sent(0, 1.0, Outcome.OK, offset=0)
    send = history.send("w", "t-0", ["a"], 0.0)
    with pytest.raises(HistoryError, match="OK without an offset"):
        history.sent(send, 1.0, Outcome.OK)
    with pytest.raises(HistoryError, match="offset -1 is not in"):
        history.sent(send, 1.0, Outcome.OK, offset=-1)
    history.sent(send, 1.0, Outcome.OK, offset=0)
    with pytest.raises(HistoryError, match="completed before"):
        history.sent(send, 2.0, Outcome.FAIL)
    with pytest.raises(HistoryError, match="offset -5"):
        history.poll("r", 1.0, 2.0, [("t-0", 0, "a"), ("t-0", -5, "a")])
    history.assign("r", {"t-0": 0}, 2.0)
    history.phase(Phase.FINAL_READ, 2.0)
    history.poll("r", 3.0, 4.0, [("t-0", 0, "a")])
    assert check(history).valid, "a refused operation leaves nothing behind"


def test_poll_of_records() -> None:
    """Records in the order of delivery, partitions mixed."""
    history = History()
    for partition, values in (("t-0", "ab"), ("t-1", "cd")):
        for offset, value in enumerate(values):
            history.sent(history.send("w", partition, [value], 0.0), 1.0, Outcome.OK, offset=offset)
    history.phase(Phase.FINAL_READ, 2.0)
    history.assign("r", {"t-0": 0, "t-1": 0}, 2.0)
    history.poll("r", 3.0, 4.0, [("t-0", 0, "a"), ("t-1", 0, "c"), ("t-1", 1, "d"), ("t-0", 1, "b")])
    assert check(history).valid
    assert len(list(history.polls.runs(0))) == 3
