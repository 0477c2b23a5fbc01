"""Random clean histories: clients of a model that keeps every promise, and uses every freedom that it has.

Requests are under way for any time, take effect at any moment between their beginning and their end, or after the
client gave up, or never; leaders change; readers are served by replicas that lag, are thrown to other positions, and
crash; the log start moves.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.history_kit import Event


@dataclass(slots=True)
class _Partition:
    name: str
    log: list[str] = field(default_factory=list)
    start: int = 0
    epoch: int = 1
    leader: int = 1


@dataclass(slots=True, eq=False)
class _Request:
    id: int
    process: str
    partition: _Partition
    values: list[str]
    expected_offset: int | None
    answer: Event | None = None
    """Decided, whether the client hears it or not."""
    abandoned: bool = False


class Model:
    """Writes one history.

    Args:
        rng: decides everything.
        steps: of each of the two parts of the run before the final read.
    """

    def __init__(self, rng: random.Random, steps: int = 60) -> None:
        self._rng, self._steps = rng, steps
        self._partitions = [_Partition(f"t-{number}") for number in range(rng.randint(1, 3))]
        self._writers = [f"w{number}" for number in range(rng.randint(1, 3))]
        self._unordered = {name for name in self._writers if rng.random() < 0.3}
        self._readers = [f"r{number}" for number in range(rng.randint(1, 3))]
        self._positions: dict[str, dict[str, int]] = {name: {} for name in self._readers}
        self._watermarks: dict[tuple[str, str], int] = {}
        self._requests: list[_Request] = []
        self._counter = 0
        self._now = 0.0
        self.events: list[Event] = []

    def run(self) -> list[Event]:
        """The history's events."""
        for name in sorted(self._unordered):
            self._note("unordered", process=name)
        for reader in self._readers:
            self._assign(reader)
        for phase in ("faults", "heal"):
            self._mark(phase)
            self._progress()
            for _ in range(self._steps):
                self._rng.choice(self._actions())()
            self._progress()
        self._finish()
        return self.events

    def _actions(self) -> list[Callable[[], None]]:
        often = [self._send, self._apply, self._apply, self._answer, self._answer, self._read, self._read]
        return often * 3 + [
            self._give_up, self._elect, self._reassign, self._crash, self._observe, self._observe, self._trim,
        ]  # fmt: skip

    def _tick(self) -> float:
        self._now = round(self._now + self._rng.uniform(0.001, 0.1), 6)
        return self._now

    def _note(self, op: str, **fields: object) -> Event:
        self.events.append({"op": op, **fields})
        return self.events[-1]

    def _mark(self, phase: str) -> None:
        self._note("phase", phase=phase, time=self._tick())

    # ------------------------------------------------------------------ writers
    def _send(self) -> None:
        process, partition = self._rng.choice(self._writers), self._rng.choice(self._partitions)
        values = []
        for _ in range(self._rng.choice((1, 1, 1, 3))):
            self._counter += 1
            values.append(f"{process}-{self._counter}")
        expected = len(partition.log) + self._rng.choice((0, 0, 1)) if self._rng.random() < 0.3 else None
        request = _Request(self._counter, process, partition, values, expected)
        self._requests.append(request)
        self._note(
            "send", id=request.id, process=process, partition=partition.name, values=values, time=self._tick(),
            expected_offset=expected,
        )  # fmt: skip

    def _apply(self) -> None:
        """A numbered writer's requests to one partition are decided in order; those given up on come when they like."""
        ready, seen = [], set()
        for request in self._requests:
            key = request.process, request.partition.name
            if request.answer is None and (request.abandoned or request.process in self._unordered or key not in seen):
                ready.append(request)
            if request.answer is None and not request.abandoned:
                seen.add(key)
        if ready:
            self._decide(self._rng.choice(ready))

    def _decide(self, request: _Request) -> None:
        partition = request.partition
        expected = request.expected_offset
        if self._rng.random() < 0.1 or (expected is not None and expected != len(partition.log)):
            request.answer = {"outcome": "fail"}
            return
        request.answer = {
            "outcome": "ok", "offset": len(partition.log), "leader_epoch": partition.epoch, "node": partition.leader,
        }  # fmt: skip
        partition.log += request.values

    def _answer(self) -> None:
        heard = [request for request in self._requests if request.answer is not None and not request.abandoned]
        if heard:
            request = self._rng.choice(heard)
            self._requests.remove(request)
            self._note("sent", id=request.id, time=self._tick(), **(request.answer or {}))

    def _give_up(self) -> None:
        waiting = [request for request in self._requests if not request.abandoned]
        if waiting:
            request = self._rng.choice(waiting)
            request.abandoned = True
            if self._rng.random() < 0.5:
                self._note("sent", id=request.id, time=self._tick(), outcome="unknown")

    def _elect(self) -> None:
        partition = self._rng.choice(self._partitions)
        partition.epoch += self._rng.randint(1, 2)
        partition.leader = self._rng.randint(1, 3)

    # ------------------------------------------------------------------ readers
    def _assign(self, reader: str, positions: dict[str, int] | None = None) -> None:
        if positions is None:
            chosen = self._rng.sample(self._partitions, self._rng.randint(1, len(self._partitions)))
            positions = {one.name: self._rng.randint(one.start, len(one.log)) for one in chosen}
        self._positions[reader] = dict(positions)
        shown = {name: at if self._rng.random() < 0.8 else None for name, at in positions.items()}
        self._note("assign", process=reader, time=self._tick(), positions=shown)

    def _reassign(self) -> None:
        self._assign(self._rng.choice(self._readers))

    def _read(self) -> None:
        self._poll(self._rng.choice(self._readers), self._rng.randint(0, 4))

    def _poll(self, reader: str, most: int) -> int:
        positions = self._positions[reader]
        invoked, runs, count = self._tick(), [], 0
        for partition in self._partitions:
            if partition.name not in positions or self._rng.random() < 0.3:
                continue
            at = max(positions[partition.name], partition.start)
            values = partition.log[at : at + most]
            cut = self._rng.randint(0, len(values))
            runs += [[partition.name, at, values[:cut]], [partition.name, at + cut, values[cut:]]]
            positions[partition.name] = at + len(values)
            count += len(values)
        outcome = "ok" if runs or self._rng.random() < 0.5 else "fail"
        self._note(
            "poll", process=reader, invoked=invoked, completed=self._tick(), outcome=outcome,
            runs=[run for run in runs if run[2]],
        )  # fmt: skip
        return count

    def _crash(self) -> None:
        process = self._rng.choice(self._writers + self._readers)
        self._note("crash", process=process, time=self._tick())
        for request in self._requests:
            request.abandoned = request.abandoned or request.process == process
        for key in [key for key in self._watermarks if key[0] == process]:
            del self._watermarks[key]
        if process in self._positions:
            self._assign(process)

    # ------------------------------------------------------------------ the cluster
    def _observe(self) -> None:
        reader, partition = self._rng.choice(self._readers), self._rng.choice(self._partitions)
        latest = self._rng.random() < 0.5
        lowest = max(self._watermarks.get((reader, partition.name), 0), partition.start)
        end = len(partition.log) if latest else self._rng.randint(lowest, len(partition.log))
        self._watermark(reader, partition, end, latest=latest)

    def _watermark(self, reader: str, partition: _Partition, end: int, *, latest: bool) -> None:
        self._watermarks[reader, partition.name] = end
        self._note(
            "watermark", process=reader, partition=partition.name, high_watermark=end,
            log_start_offset=partition.start, latest=latest, invoked=self._tick(), completed=self._tick(),
        )  # fmt: skip

    def _trim(self) -> None:
        partition = self._rng.choice(self._partitions)
        if self._rng.random() < 0.3 and len(partition.log) - partition.start > 3:
            partition.start += self._rng.randint(1, 3)

    # ------------------------------------------------------------------ so that the run is a proof
    def _progress(self) -> None:
        """One acknowledged send to each partition, one of them conditional, and something to read."""
        for number, partition in enumerate(self._partitions):
            self._counter += 1
            request = _Request(self._counter, "w9", partition, [f"w9-{self._counter}"], None)
            expected = len(partition.log) if number == 0 else None
            self._note(
                "send", id=request.id, process="w9", partition=partition.name, values=request.values,
                time=self._tick(), expected_offset=expected,
            )  # fmt: skip
            while (request.answer or {}).get("outcome") != "ok":
                self._decide(request)
            self._note("sent", id=request.id, time=self._tick(), **(request.answer or {}))
        reader = self._rng.choice(self._readers)
        self._assign(reader, {one.name: one.start for one in self._partitions})
        while not self._poll(reader, 10):
            pass

    def _finish(self) -> None:
        for request in list(self._requests):
            if not request.abandoned:
                if request.answer is None:
                    self._decide(request)
                self._requests.remove(request)
                self._note("sent", id=request.id, time=self._tick(), **(request.answer or {}))
        self._mark("final_read")
        for reader in self._readers:
            for partition in self._partitions:
                self._watermark(reader, partition, len(partition.log), latest=True)
            self._assign(reader, {one.name: one.start for one in self._partitions})
            while any(self._positions[reader][one.name] < len(one.log) for one in self._partitions):
                self._poll(reader, 10)
        for partition in self._partitions:
            for node in range(1, 4):
                self._note(
                    "replica", partition=partition.name, node=node, high_watermark=len(partition.log),
                    checksum=zlib.crc32("/".join(partition.log).encode()), time=self._tick(),
                )  # fmt: skip
