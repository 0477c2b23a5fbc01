"""Load while something happens: a writer for each partition and a reader, all of it recorded, and judged in the end.

A writer sends its next batch when the one before has its answer, so the longest time between two answers is the time
for which the partition was not available to it: failing over, finding the new leader and everything else included.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from itertools import count, pairwise
from types import TracebackType
from typing import Self

from fluxlog.checker import History, Outcome, Phase, Verdict, check
from fluxlog.client import Client
from fluxlog.delivery import BatchResult
from fluxlog.errors import Outcome as Told
from fluxlog.offsets import latest_offsets
from fluxlog.reader import Fetched, Reader, iter_until
from fluxlog.sender import Sender
from tests.docker.engine import wait_until

PARTITIONS = 3
_OUTCOMES = {Told.COMMITTED: Outcome.OK, Told.REJECTED: Outcome.FAIL, Told.UNKNOWN: Outcome.UNKNOWN}
_BATCH_RECORDS_MAX = 8
_PAUSE = 0.01
_DELIVERY_TIMEOUT = 90.0
_READ_TIMEOUT = 30.0


class Load:
    """Writes and reads one topic while its context is open.

    Args:
        addresses: of the nodes, by node id.
        topic: exists, with PARTITIONS partitions, empty.
    """

    def __init__(self, addresses: Mapping[int, str], topic: str) -> None:
        self._addresses, self._topic = dict(addresses), topic
        self._client = Client(list(addresses.values()))
        self._history, self._lock = History(), threading.Lock()
        self._stopping = threading.Event()
        self._answers: dict[int, list[float]] = {number: [time.monotonic()] for number in range(PARTITIONS)}
        self._results: dict[int, queue.SimpleQueue[BatchResult]] = {n: queue.SimpleQueue() for n in range(PARTITIONS)}
        self._sender = Sender(
            self._client, topic, on_result=lambda result: self._results[result.partition].put(result),
            delivery_timeout=_DELIVERY_TIMEOUT, backoff_max=0.05,
        )  # fmt: skip
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._guarded, args=(self._write, n)) for n in range(PARTITIONS)]
        self._threads.append(threading.Thread(target=self._guarded, args=(self._read,)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_progress()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._client.close()

    # ---- what a test asks

    @property
    def acknowledged(self) -> int:
        """Batches."""
        return sum(len(answers) - 1 for answers in self._answers.values())

    def phase(self, phase: Phase) -> None:
        """A part of the run begins."""
        with self._lock:
            self._history.phase(phase, time.monotonic())

    def wait_progress(self) -> None:
        """Until several batches of each partition were acknowledged from now on."""
        before = {number: len(answers) for number, answers in self._answers.items()}
        wait_until(
            lambda: all(len(self._answers[number]) >= had + 5 for number, had in before.items()),
            f"writes to {self._topic} are acknowledged again",
        )

    def unavailable_ms(self, since: float) -> float:
        """The longest time without an answer on any one partition that ended after a moment (monotonic)."""
        longest = 0.0
        for answers in self._answers.values():
            gaps = [later - max(earlier, since) for earlier, later in pairwise(answers) if later > since]
            longest = max([longest, *gaps])
        return longest * 1000

    def finish(self, nodes: Iterable[int]) -> Verdict:
        """Stop, read everything from each of these nodes, and judge."""
        self._stop()
        self.phase(Phase.FINAL_READ)
        ends = latest_offsets(self._client, self._topic, range(PARTITIONS))
        for node in nodes:
            self._read_all(node, ends)
        return check(self._history)

    # ---- threads

    def _stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(_DELIVERY_TIMEOUT)
        self._sender.close()
        assert not self._failures, self._failures

    def _guarded(self, work: object, *arguments: int) -> None:
        assert callable(work)
        try:
            work(*arguments)
        except BaseException as error:  # a thread's failure is the test's
            self._failures.append(error)
            self._stopping.set()

    def _write(self, partition: int) -> None:
        writer, name = f"writer-{partition}", self._name(partition)
        for number in count():
            if self._stopping.is_set():
                return
            texts = [f"{writer}:{number}:{record}" for record in range(1 + number % _BATCH_RECORDS_MAX)]
            values: list[bytes | None] = [text.encode() for text in texts]
            with self._lock:
                send = self._history.send(writer, name, texts, time.monotonic())
            self._sender.send(partition, values)
            result = self._results[partition].get(timeout=_DELIVERY_TIMEOUT + 10)
            self._note(send, result)
            self._stopping.wait(_PAUSE)

    def _note(self, send: int, result: BatchResult) -> None:
        now, committed = time.monotonic(), result.outcome is Told.COMMITTED
        with self._lock:
            self._history.sent(
                send, now, _OUTCOMES[result.outcome],
                offset=result.base_offset if committed else None,
                leader_epoch=result.leader_epoch if committed else None,
            )  # fmt: skip
        if committed:
            self._answers[result.partition].append(now)

    def _read(self) -> None:
        positions = dict.fromkeys(range(PARTITIONS), 0)
        self._assign("reader")
        invoked = time.monotonic()
        with Reader(self._client, self._topic, positions, patience=None, max_wait_ms=200) as reader:
            while not self._stopping.is_set():
                fetched = reader.poll(0.2)
                if fetched is not None:
                    invoked = self._take("reader", fetched, invoked)

    def _read_all(self, node: int, ends: Mapping[int, int]) -> None:
        name = f"final-{node}"
        self._assign(name)
        invoked = time.monotonic()
        with (
            Client([self._addresses[node]]) as client,
            Reader(client, self._topic, dict.fromkeys(ends, 0), max_wait_ms=200) as reader,
        ):
            for fetched in iter_until(reader, ends, timeout=_READ_TIMEOUT):
                assert fetched.served_by == node
                invoked = self._take(name, fetched, invoked)

    def _assign(self, process: str) -> None:
        with self._lock:
            positions = {self._name(number): 0 for number in range(PARTITIONS)}
            self._history.assign(process, positions, time.monotonic())

    def _take(self, process: str, fetched: Fetched, invoked: float) -> float:
        completed, runs = time.monotonic(), []
        for batch in fetched.batches():
            texts = [(value or b"").decode() for value in batch.decode().values()]
            skipped = max(0, fetched.wanted_offset - batch.base_offset)
            if texts[skipped:]:
                runs.append((self._name(fetched.partition), batch.base_offset + skipped, texts[skipped:]))
        with self._lock:
            self._history.poll_runs(process, invoked, completed, runs)
        return completed

    def _name(self, partition: int) -> str:
        return f"{self._topic}-{partition}"
