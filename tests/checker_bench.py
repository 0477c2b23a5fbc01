"""python -m tests.checker_bench [SENDS [RECORDS_PER_SEND]]: how fast a long clean history is judged, and what it costs.

Twenty writers, twelve partitions; two readers follow the log, two more read it whole in the end. Sends have one record
each unless said otherwise. Times are of the processor, so that a busy machine does not count.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path

from fluxlog.checker import History, Outcome, Phase, check, report

_PARTITIONS = [f"orders-{number}" for number in range(12)]
_WRITERS = [f"w{number}" for number in range(20)]
_START = dict.fromkeys(_PARTITIONS, 0)
_PAGE_BYTES = resource.getpagesize()


class _Run:
    """Builds one history."""

    def __init__(self) -> None:
        self.history = History()
        self._rng = random.Random(1)
        self._now = 0.0
        self._logs: dict[str, list[str]] = {name: [] for name in _PARTITIONS}
        self._positions = {reader: dict(_START) for reader in ("r0", "r1")}

    def build(self, sends: int, records: int) -> None:
        """As many sends; polls come beside them."""
        self.history.phase(Phase.FAULTS, 0.0)
        for reader in self._positions:
            self.history.assign(reader, _START, 0.0)
        for number in range(sends):
            self._send(number, records)
            if number % 10 == 9:
                for reader, positions in self._positions.items():
                    self._poll(reader, positions, 50)
        self._now += 1.0
        self.history.phase(Phase.FINAL_READ, self._now)
        for reader in ("f0", "f1"):
            self.history.assign(reader, _START, self._now)
            positions = dict(_START)
            while any(positions[name] < len(log) for name, log in self._logs.items()):
                self._poll(reader, positions, 500)

    def _send(self, number: int, records: int) -> None:
        self._now += 0.0001
        writer, partition, chance = self._rng.choice(_WRITERS), self._rng.choice(_PARTITIONS), self._rng.random()
        values, log = [f"{writer}-{number}-{part}" for part in range(records)], self._logs[partition]
        send = self.history.send(writer, partition, values, self._now)
        epoch, answered = 1 + number // 100_000, self._now + 0.00005
        if chance < 0.98:
            self.history.sent(send, answered, Outcome.OK, offset=len(log), leader_epoch=epoch, node=epoch % 3)
        elif chance < 0.99:
            self.history.sent(send, answered, Outcome.FAIL)
            return
        log += values

    def _poll(self, reader: str, positions: dict[str, int], most: int) -> None:
        self._now += 0.0001
        runs = []
        for name, log in self._logs.items():
            values = log[positions[name] : positions[name] + most]
            if values:
                runs.append((name, positions[name], values))
                positions[name] += len(values)
        self.history.poll_runs(reader, self._now, self._now + 0.00005, runs)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def main() -> None:
    """Prints a few lines."""
    sends = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    records = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    before, began = _resident(), time.process_time()
    run = _Run()
    run.build(sends, records)
    history, built = run.history, time.process_time()
    del run  # the model's own copy of the logs
    held = _resident() - before
    checked = time.process_time()
    verdict = check(history)
    seconds = time.process_time() - checked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    operations = len(history.sends) + len(history.polls)
    handled = history.sends.values_total() + history.polls.values_total()
    print(f"{operations:,} operations, {handled:,} records sent and polled; recorded in {built - began:.1f} s")
    print(f"judged in {seconds:.1f} s: {operations / seconds:,.0f} operations/s, {handled / seconds:,.0f} records/s")
    print(f"{held / operations:,.0f} bytes an operation recorded, {peak / operations:,.0f} at the peak of the check")
    print(report(verdict).splitlines()[0])


if __name__ == "__main__":
    main()
