"""Histories as JSON lines: the one part of the checker that reads and writes.

Each client writes a file of its own, a send's beginning before the request leaves, so that a client killed in the
middle leaves a send of unknown outcome instead of a value that nobody sent. Times are seconds of one monotonic clock.
One event a line; `id` is the writer's number of a send, unique in its file; what is optional may be missing or null:

    {"op": "send", "id": 7, "process": "w1", "partition": "orders-3", "values": ["w1-7"], "time": 1.5,
     "expected_offset": 40}
    {"op": "sent", "id": 7, "time": 1.6, "outcome": "ok", "offset": 40, "leader_epoch": 3, "node": 2}
    {"op": "poll", "process": "r1", "invoked": 1.5, "completed": 1.7, "outcome": "ok",
     "runs": [["orders-3", 40, ["w1-7"]]]}
    {"op": "assign", "process": "r1", "time": 1.0, "positions": {"orders-3": 0, "orders-4": null}}
    {"op": "crash", "process": "r1", "time": 2.0}
    {"op": "unordered", "process": "w1"}
    {"op": "watermark", "process": "r1", "partition": "orders-3", "high_watermark": 41, "log_start_offset": 0,
     "latest": true, "invoked": 1.5, "completed": 1.6}
    {"op": "replica", "partition": "orders-3", "node": 2, "high_watermark": 41, "checksum": 123, "time": 9.0}
    {"op": "phase", "phase": "faults", "time": 1.0}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from fluxlog.checker.history import History, HistoryError, Outcome, Phase

_OUTCOMES = {outcome.name.lower(): outcome for outcome in Outcome}


class Writer:
    """Writes events as they happen; the methods of `History`, with the same meaning.

    Args:
        out: gets whole lines. Line-buffered, it survives the death of the process.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._sends = 0

    def _write(self, **event: object) -> None:
        self._out.write(json.dumps({name: value for name, value in event.items() if value is not None}) + "\n")

    def send(
        self, process: str, partition: str, values: Sequence[str], time: float, *, expected_offset: int | None = None
    ) -> int:
        """A send begins; returns its number in this file."""
        self._sends += 1
        self._write(
            op="send", id=self._sends, process=process, partition=partition, values=list(values), time=time,
            expected_offset=expected_offset,
        )  # fmt: skip
        return self._sends

    def sent(
        self,
        send: int,
        time: float,
        outcome: Outcome,
        *,
        offset: int | None = None,
        leader_epoch: int | None = None,
        node: int | None = None,
    ) -> None:
        """Its answer came."""
        self._write(
            op="sent", id=send, time=time, outcome=outcome.name.lower(), offset=offset, leader_epoch=leader_epoch,
            node=node,
        )  # fmt: skip

    def declare_unordered(self, process: str) -> None:
        """This process's overlapping sends may be appended in any order."""
        self._write(op="unordered", process=process)

    def poll_runs(
        self,
        process: str,
        invoked: float,
        completed: float,
        runs: Iterable[tuple[str, int, Sequence[str]]],
        outcome: Outcome = Outcome.OK,
    ) -> None:
        """One poll."""
        lists = [[partition, offset, list(values)] for partition, offset, values in runs]
        self._write(
            op="poll", process=process, invoked=invoked, completed=completed, outcome=outcome.name.lower(), runs=lists
        )

    def assign(self, process: str, positions: Mapping[str, int | None], time: float) -> None:
        """A process reads these partitions from now on."""
        self._write(op="assign", process=process, time=time, positions=dict(positions))

    def crash(self, process: str, time: float) -> None:
        """A client is thrown away."""
        self._write(op="crash", process=process, time=time)

    def watermark(
        self,
        process: str,
        partition: str,
        high_watermark: int,
        invoked: float,
        completed: float,
        *,
        log_start_offset: int = 0,
        latest: bool = False,
    ) -> None:
        """A client was told how far a partition goes."""
        self._write(
            op="watermark", process=process, partition=partition, high_watermark=high_watermark,
            log_start_offset=log_start_offset, latest=latest, invoked=invoked, completed=completed,
        )  # fmt: skip

    def replica(self, partition: str, node: int, high_watermark: int, checksum: int, time: float) -> None:
        """A replica's end."""
        self._write(
            op="replica", partition=partition, node=node, high_watermark=high_watermark, checksum=checksum, time=time
        )

    def phase(self, phase: Phase, time: float) -> None:
        """A part of the run begins."""
        self._write(op="phase", phase=phase.value, time=time)


def read(lines: Iterable[str], history: History) -> None:
    """Add one file's events to a history. A last line without its end is what a killed writer left: it is ignored.

    Raises:
        HistoryError: a line is no event; says which.
    """
    sends: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            return
        try:
            add(json.loads(line), history, sends)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HistoryError(f"line {number}: {type(error).__name__}: {error}") from error


def add(event: Mapping[str, Any], history: History, sends: dict[int, int]) -> None:
    """Add one event.

    Args:
        sends: of the same file so far, by id.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is no event.
    """
    match event["op"]:
        case "send":
            if event["id"] in sends:
                raise HistoryError(f"send {event['id']} began twice")
            sends[event["id"]] = history.send(
                event["process"], event["partition"], event["values"], event["time"],
                expected_offset=event.get("expected_offset"),
            )  # fmt: skip
        case "sent":
            history.sent(
                sends[event["id"]], event["time"], _OUTCOMES[event["outcome"]], offset=event.get("offset"),
                leader_epoch=event.get("leader_epoch"), node=event.get("node"),
            )  # fmt: skip
        case "poll":
            history.poll_runs(
                event["process"], event["invoked"], event["completed"], event["runs"], _OUTCOMES[event["outcome"]]
            )
        case _:
            _add_rare(event, history)


def _add_rare(event: Mapping[str, Any], history: History) -> None:
    match event["op"]:
        case "assign":
            history.assign(event["process"], event["positions"], event["time"])
        case "crash":
            history.crash(event["process"], event["time"])
        case "unordered":
            history.declare_unordered(event["process"])
        case "watermark":
            history.watermark(
                event["process"], event["partition"], event["high_watermark"], event["invoked"], event["completed"],
                log_start_offset=event.get("log_start_offset") or 0, latest=bool(event.get("latest")),
            )  # fmt: skip
        case "replica":
            history.replica(
                event["partition"], event["node"], event["high_watermark"], event["checksum"], event["time"]
            )
        case "phase":
            history.phase(Phase(event["phase"]), event["time"])
        case unknown:
            raise HistoryError(f"no event is called {unknown!r}")
