"""What all clients of a run share, and what a client is: a thread with its own history, which crashes and returns."""

from __future__ import annotations

import random
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from fluxlog.checker import Outcome
from fluxlog.checker.jsonl import Writer
from fluxlog.errors import FluxlogError
from fluxlog.errors import Outcome as Answer

OUTCOMES = {Answer.COMMITTED: Outcome.OK, Answer.REJECTED: Outcome.FAIL, Answer.UNKNOWN: Outcome.UNKNOWN}


@dataclass
class Scene:
    """One run."""

    topic: str
    partitions: int
    addresses: dict[int, str]
    """By node id."""
    seed: int
    histories: Path
    """Directory of the clients' histories."""
    failures: list[str]
    """What went wrong beside the history."""
    crash_every: float
    """Mean seconds between two crashes of a client."""
    stop_writing: threading.Event = field(default_factory=threading.Event)
    stop_reading: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ends = dict.fromkeys(range(self.partitions), 0)

    def name_of(self, partition: int) -> str:
        """As in histories."""
        return f"{self.topic}-{partition}"

    def saw(self, partition: int, end: int) -> None:
        """Some client knows of offsets below this."""
        with self._lock:
            self._ends[partition] = max(end, self._ends[partition])

    def ends(self) -> dict[int, int]:
        """Exclusive ends, as far as anybody knows."""
        with self._lock:
            return dict(self._ends)


class Worker(threading.Thread):
    """One client. It lives again after each crash, under its name, and knows nothing of its former life.

    Args:
        stop: ends it.
        crashes: whether it crashes now and then.
    """

    def __init__(self, name: str, scene: Scene, stop: threading.Event, *, crashes: bool = True) -> None:
        super().__init__(name=name, daemon=True)
        self.scene, self.stop = scene, stop
        self.rng = random.Random(f"{scene.seed} {name}")
        self._crashes, self._dies_at = crashes, 0.0
        self._file = (scene.histories / f"{name}.jsonl").open("w", buffering=1)
        self.history = Writer(self._file)
        self._counter = 0

    def run(self) -> None:
        """One life after the other."""
        try:
            while not self.stop.is_set():
                mean = self.scene.crash_every
                self._dies_at = time.monotonic() + (self.rng.expovariate(1 / mean) if self._crashes else 1e9)
                self.live()
                if not self.stop.is_set():
                    self.history.crash(self.name, time.monotonic())
        except Exception:
            self.scene.failures.append(f"client {self.name}: {traceback.format_exc()}")

    def live(self) -> None:
        """Until `alive` is false. When `stop` is not set then, it is a crash: what is under way is left alone."""
        raise NotImplementedError

    def close(self) -> None:
        """After its end: the history is complete."""
        self._file.close()

    @property
    def alive(self) -> bool:
        """Not stopped, and not to crash yet."""
        return not self.stop.is_set() and time.monotonic() < self._dies_at

    def rest(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        self.stop.wait(max(0.0, min(seconds, self._dies_at - time.monotonic())))

    def shuffled_addresses(self) -> list[str]:
        """All nodes, in random order."""
        return self.rng.sample(list(self.scene.addresses.values()), len(self.scene.addresses))

    def value(self, size: int = 0) -> tuple[str, bytes]:
        """A value that occurs once: as in histories, and as it is sent, with at least `size` bytes."""
        self._counter += 1
        text = f"{self.name}-{self._counter}"
        return text, f"{text}|".encode().ljust(size, b".")

    def random_size(self) -> int:
        """Mostly small, sometimes large."""
        return self.rng.choice((0, 0, 0, 100, 1_000, 10_000)) if self.rng.random() < 0.98 else 200_000


def text_of(value: bytes | None) -> str:
    """A value as in histories."""
    return (value or b"(null)").partition(b"|")[0].decode(errors="replace")


def outcome_of(failure: FluxlogError) -> Outcome:
    """What a failed write is."""
    return OUTCOMES[failure.outcome]
