"""Histories as lines."""

from __future__ import annotations

import io
import json

import pytest

from fluxlog.checker import History, HistoryError, Outcome, Phase, check
from fluxlog.checker.jsonl import Writer, read
from tests.history_kit import Script


def lines_of(script: Script) -> list[str]:
    return [json.dumps(event) + "\n" for event in script.events]


def written() -> str:
    """Every kind of event, by the writer."""
    out = io.StringIO()
    writer = Writer(out)
    writer.declare_unordered("w")
    send = writer.send("w", "t-0", ["a", "b"], 1.0, expected_offset=0)
    writer.send("w", "t-0", ["c"], 1.1)
    writer.sent(send, 2.0, Outcome.OK, offset=0, leader_epoch=3, node=2)
    writer.crash("w", 3.0)
    writer.watermark("r", "t-0", 2, 3.0, 4.0, log_start_offset=0, latest=True)
    writer.phase(Phase.FINAL_READ, 5.0)
    writer.assign("r", {"t-0": 0, "t-1": None}, 5.0)
    writer.poll_runs("r", 6.0, 7.0, [("t-0", 0, ["a", "b"])])
    writer.poll_runs("r", 8.0, 9.0, [], Outcome.FAIL)
    writer.replica("t-0", 1, 2, 77, 9.0)
    return out.getvalue()


def test_round_trip() -> None:
    """What the writer writes is read as what it was told."""
    history = History()
    read(io.StringIO(written()), history)
    verdict = check(history)
    assert verdict.valid, verdict.to_json()
    assert (len(history.sends), len(history.polls), len(history.observations)) == (2, 2, 1)
    assert (len(history.assignments), history.crashes, len(history.replica_ends)) == (2, 1, 1)
    assert history.sends.expected_offset[0] == 0
    assert history.unordered == {history.processes["w"]}


def test_killed_writer() -> None:
    """A file cut anywhere is read up to its last whole line; a send without its answer is unknown."""
    text = written()
    for end in range(len(text)):
        history = History()
        read(io.StringIO(text[:end]), history)
        names = {error.name for error in check(history).errors}
        assert names <= {"unseen", "short_final_read"}, "what its readers did not get is unread"


def test_ids_belong_to_their_file() -> None:
    """Two files may number their sends alike."""
    history = History()
    for partition, value in (("t-0", "a"), ("t-1", "b")):
        script = Script()
        script.ok("w" + value, 0, value, partition=partition)
        read(lines_of(script), history)
    script = Script()
    script.phase("final_read")
    script.assign("r", t_0=0, t_1=0)
    script.poll("r", 0, "a")
    script.poll("r", 0, "b", partition="t-1")
    read(lines_of(script), history)
    assert check(history).valid


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "17", '{"op": "sing"}', '{"op": "sent", "id": 3, "time": 1, "outcome": "ok"}', '{"op": "poll"}',
        '{"op": "phase", "phase": "lunch", "time": 1}',
        '{"op": "send", "id": 1, "process": "w", "partition": "t-0", "values": [], "time": 1}',
        '{"op": "poll", "process": "r", "invoked": 1, "completed": 2, "outcome": "ok", "runs": [["t-0", "x", ["a"]]]}',
        '{"op": "assign", "process": "r", "time": 1, "positions": 5}',
    ],
)  # fmt: skip
def test_bad_line(line: str) -> None:
    """A line that is no event is an error that says which."""
    good = json.dumps({"op": "crash", "process": "w", "time": 1.0})
    with pytest.raises(HistoryError, match="line 2"):
        read([good + "\n", line + "\n"], History())
