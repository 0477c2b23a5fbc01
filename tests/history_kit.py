"""Histories for tests of the checker, as lists of events in the form of `fluxlog.checker.jsonl`: easy to write by hand,
to bend, and to read when a test fails.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from fluxlog.checker import History, Verdict, check
from fluxlog.checker.jsonl import add

Event = dict[str, Any]


def history_of(events: Iterable[Event]) -> History:
    """The events in their order, as one file."""
    history, sends = History(), dict[int, int]()
    for event in events:
        add(event, history, sends)
    return history


def judge(events: Iterable[Event], *, clock_error: float = 0.0) -> Verdict:
    """The checker's verdict."""
    return check(history_of(events), clock_error=clock_error)


def broken(verdict: Verdict) -> dict[str, int]:
    """Count of anomalies by rule."""
    return {error.name: error.count for error in verdict.errors}


class Script:
    """Writes a small history by hand, one second an operation; every operation takes half a second."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now = 0.0

    def send(self, process: str, *values: str, partition: str = "t-0", expected_offset: int | None = None) -> int:
        """Begin a send; returns its id."""
        self.now += 1.0
        number = len(self.events)
        self.events.append(
            {"op": "send", "id": number, "process": process, "partition": partition, "values": list(values),
             "time": self.now, "expected_offset": expected_offset}
        )  # fmt: skip
        return number

    def sent(self, send: int, outcome: str, offset: int | None = None, epoch: int = 1, node: int = 1) -> None:
        """Complete it half a second from now."""
        self.events.append(
            {"op": "sent", "id": send, "time": self.now + 0.5, "outcome": outcome, "offset": offset,
             "leader_epoch": epoch, "node": node}
        )  # fmt: skip

    def ok(self, process: str, offset: int, *values: str, epoch: int = 1, node: int = 1, **more: Any) -> None:
        """An acknowledged send."""
        self.sent(self.send(process, *values, **more), "ok", offset, epoch, node)

    def fail(self, process: str, *values: str, **more: Any) -> None:
        """A rejected send."""
        self.sent(self.send(process, *values, **more), "fail")

    def unknown(self, process: str, *values: str, **more: Any) -> None:
        """A send that was never answered."""
        self.send(process, *values, **more)

    def assign(self, process: str, **positions: int | None) -> None:
        """Positions by partition, "t_0" for "t-0"."""
        self.now += 1.0
        named = {name.replace("_", "-"): where for name, where in positions.items()}
        self.events.append({"op": "assign", "process": process, "time": self.now, "positions": named})

    def poll(self, process: str, offset: int, *values: str, partition: str = "t-0") -> None:
        """A poll of one run; without values an empty one."""
        self.now += 1.0
        runs: Sequence[Any] = [[partition, offset, list(values)]] if values else []
        self.events.append(
            {"op": "poll", "process": process, "invoked": self.now, "completed": self.now + 0.5, "outcome": "ok",
             "runs": runs}
        )  # fmt: skip

    def watermark(
        self, process: str, end: int, *, start: int = 0, latest: bool = False, partition: str = "t-0"
    ) -> None:
        """An observation."""
        self.now += 1.0
        self.events.append(
            {"op": "watermark", "process": process, "partition": partition, "high_watermark": end,
             "log_start_offset": start, "latest": latest, "invoked": self.now, "completed": self.now + 0.5}
        )  # fmt: skip

    def replica(self, node: int, end: int, checksum: int, partition: str = "t-0") -> None:
        """A replica's end."""
        self.now += 1.0
        self.events.append(
            {"op": "replica", "partition": partition, "node": node, "high_watermark": end, "checksum": checksum,
             "time": self.now}
        )  # fmt: skip

    def crash(self, process: str) -> None:
        """A client is gone."""
        self.now += 1.0
        self.events.append({"op": "crash", "process": process, "time": self.now})

    def phase(self, phase: str) -> None:
        """A part of the run begins."""
        self.now += 1.0
        self.events.append({"op": "phase", "phase": phase, "time": self.now})

    def final_read(self, *values: str, start: int = 0, reader: str = "r9", partition: str = "t-0") -> None:
        """The last phase, with one reader of one partition."""
        self.phase("final_read")
        self.assign(reader, **{partition.replace("-", "_"): start})
        self.poll(reader, start, *values, partition=partition)

    def judge(self, *, clock_error: float = 0.0) -> Verdict:
        """The verdict on what was written."""
        return judge(copy.deepcopy(self.events), clock_error=clock_error)


def only(verdict: Verdict, *rules: str) -> list[dict[str, Any]]:
    """Exactly these rules are broken, once each; returns the evidence of the first.

    Raises:
        AssertionError: others are, or more often.
    """
    assert broken(verdict) == dict.fromkeys(rules, 1), verdict.to_json()
    assert not verdict.valid
    return verdict.errors[0].examples[0].evidence
