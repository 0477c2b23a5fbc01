"""Judges the history of a cluster: were the promises kept?

    history = History() send = history.send("w1", "orders-0", ["w1-1"], time.monotonic()) history.sent(send,
    time.monotonic(), Outcome.OK, offset=0, leader_epoch=1, node=2) history.assign("r1", {"orders-0": 0},
    time.monotonic()) history.poll("r1", began, time.monotonic(), [("orders-0", 0, "w1-1")])
    history.phase(Phase.FINAL_READ, time.monotonic()) ... verdict = check(history) print(report(verdict))

Pure: no clock, no files (`fluxlog.checker.jsonl` alone reads and writes lines), nothing but the standard library. What
is deliberately absent: compacted topics, whose gaps it would take for lost records. Consumer groups have a history of
their own: `fluxlog.checker.groups`.

Source: the anomalies of Jepsen's Kafka workload; dense offsets, epochs and replica checksums allow stronger rules.
"""

from fluxlog.checker.history import History, HistoryError, Outcome, Phase
from fluxlog.checker.report import report
from fluxlog.checker.rules import RULES, Rule
from fluxlog.checker.verdict import Broken, Example, Verdict, check

__all__ = [
    "RULES", "Broken", "Example", "History", "HistoryError", "Outcome", "Phase", "Rule", "Verdict", "check", "report",
]  # fmt: skip
