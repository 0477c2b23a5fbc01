"""The library's producer at work while nodes die: a load at a steady rate, and probes that note when each write was
acknowledged. At the end everything is read back and compared with what was acknowledged.

One thread with one loop has all of it, so that the caller may wait for processes meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from array import array
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from fluxlog import Delivered, Delivery, Producer
from fluxlog.client import Client
from fluxlog.errors import FluxlogError
from fluxlog.offsets import latest_offsets
from fluxlog.reader import Reader, iter_until

T = TypeVar("T")
Where = tuple[str, int]
"""Topic and partition."""

_TICK_S = 0.01
_RECORD_BYTES = 100
_READ_TIMEOUT_S = 120.0
_ENOUGH_S = 120.0
"""For a write to be acknowledged again; and for what is on its way at the end."""


@dataclass(frozen=True, slots=True)
class Write:
    """One acknowledged write of a probe; times of time.monotonic()."""

    began: float
    ended: float
    leader_epoch: int


@dataclass(slots=True)
class Acked:
    """Of one partition: which record got which offset."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def note(self, number: int, delivered: Delivered) -> None:
        """One more."""
        self.offsets.append(delivered.offset)
        self.numbers.append(number)


@dataclass(slots=True)
class Verdict:
    """What reading back showed."""

    acknowledged: int = 0
    in_log: int = 0
    lost: int = 0
    """Acknowledged, and not at the offset that was told."""
    duplicated: int = 0
    """In the log once more than it should be."""
    failed: int = 0
    """Sends that ended without an acknowledgement."""


class Writers:
    """See the module. A context manager; leaving it waits for what is on its way.

    Args:
        addresses: of the nodes.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="writers", daemon=True)
        self._acked: defaultdict[Where, Acked] = defaultdict(Acked)
        self._writes: defaultdict[Where, list[Write]] = defaultdict(list)
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._failed = 0
        self.acknowledged = 0
        """Records so far."""
        self.last_error: FluxlogError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._close(flush=error is None))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._producer = Producer(self._addresses)
        self._producer.open()
        self._hurry = asyncio.Event()

    async def _close(self, *, flush: bool) -> None:
        self._stopping = True
        self._hurry.set()
        async with asyncio.timeout(_ENOUGH_S):
            if flush:
                await asyncio.gather(*self._tasks)
        for task in self._tasks:
            task.cancel()
        await self._producer.close(flush=flush)

    # ---- what is written

    def load(self, topic: str, records_per_s: int) -> None:
        """Write records of 100 bytes to all partitions of a topic at this rate, until the end."""

        async def begin() -> None:
            await self._producer.prepare(topic)
            self._tasks.append(asyncio.create_task(self._load(topic, records_per_s)))

        self._call(begin())

    def probe(self, topic: str, partitions: Iterable[int], pause_s: float) -> None:
        """Write one record after another to each of these partitions, each a pause after the answer to the last one,
        until the end.
        """

        async def begin() -> None:
            await self._producer.prepare(topic)
            self._tasks.extend(
                asyncio.create_task(self._probe((topic, number), pause_s * (1 + (n % 10) / 10)))
                for n, number in enumerate(partitions)
            )

        self._call(begin())

    async def _load(self, topic: str, records_per_s: int) -> None:
        on_way: deque[tuple[int, Delivery]] = deque()
        began, sent = time.monotonic(), 0
        while not self._stopping:
            due = int((time.monotonic() - began) * records_per_s)
            for _ in range(min(due - sent, records_per_s)):
                if self._producer.buffered_bytes > self._producer.buffer_bytes // 2:
                    break  # the rate is an aim: what an outage holds up is not made good without bound
                number = next(self._numbers)
                on_way.append((number, self._producer.send_nowait(topic, _value(number))))
            sent = due
            while on_way and on_way[0][1].done():
                self._note_delivery(topic, *on_way.popleft())
            await asyncio.sleep(_TICK_S)
        for number, delivery in on_way:
            with contextlib.suppress(FluxlogError):  # told by result() below
                await delivery
            self._note_delivery(topic, number, delivery)

    def _note_delivery(self, topic: str, number: int, delivery: Delivery) -> None:
        try:
            delivered = delivery.result()
        except FluxlogError as error:
            self._failed, self.last_error = self._failed + 1, error
            return
        self.acknowledged += 1
        self._acked[topic, delivered.partition].note(number, delivered)

    async def _probe(self, where: Where, pause_s: float) -> None:
        topic, partition = where
        while not self._stopping:
            number, began = next(self._numbers), time.monotonic()
            try:
                delivered = await self._producer.send(topic, _value(number), partition=partition)
            except FluxlogError as error:
                self._failed, self.last_error = self._failed + 1, error
            else:
                self._acked[where].note(number, delivered)
                self._writes[where].append(Write(began, time.monotonic(), delivered.leader_epoch))
            try:
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    # ---- what became of it

    def epochs(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The leader epoch in which each partition's probe was last acknowledged."""
        return {number: self._writes[topic, number][-1].leader_epoch for number in partitions}

    def written_since(self, topic: str, partitions: Iterable[int], moment: float) -> bool:
        """Every one of these partitions took a write that began after a moment."""
        return all((w := self._writes[topic, number]) and w[-1].began >= moment for number in partitions)

    def all_at_once(self) -> None:
        """Every probe that pauses writes now."""

        def hurry() -> None:
            self._hurry.set()
            self._hurry = asyncio.Event()

        self._loop.call_soon_threadsafe(hurry)

    def unavailable_s(self, topic: str, epochs: dict[int, int], moment: float) -> dict[int, float]:
        """For each partition the longest wait for an acknowledgement from a moment on, until one proves a new leader.

        A write that was under way at that moment counts from then on. Waits until every partition has a new leader.

        Args:
            epochs: of the leaders before, which may go on for a while; -1: they cannot answer any more what begins now.

        Raises:
            TimeoutError: some partition has none within two minutes.
        """
        deadline = time.monotonic() + _ENOUGH_S
        out: dict[int, float] = {}
        while len(out) < len(epochs):
            for number in epochs.keys() - out.keys():
                longest = longest_wait_s(self._writes[topic, number], epochs[number], moment)
                if longest is not None:
                    out[number] = longest
            if time.monotonic() > deadline:
                raise TimeoutError(self._without_leader(topic, {n: e for n, e in epochs.items() if n not in out}))
            time.sleep(0.01)
        return out

    def _without_leader(self, topic: str, epochs: dict[int, int]) -> str:
        now = time.monotonic()
        told = [
            f"{topic}-{number}: epoch {epoch} before, {last.leader_epoch} acknowledged {now - last.ended:.1f} s ago"
            for number, epoch in epochs.items()
            for last in self._writes[topic, number][-1:]
        ]
        return f"no new leader of {len(epochs)} partitions; last error {self.last_error}; {'; '.join(told[:5])}"

    def slowest_s(self, topic: str, partitions: Iterable[int], since: float) -> float:
        """The longest wait for an acknowledgement of what was written since."""
        waits = [w.ended - w.began for n in partitions for w in self._writes[topic, n] if w.began >= since]
        return max(waits, default=0.0)

    def check(self) -> Verdict:
        """Read everything and compare. After the end only."""
        verdict = Verdict(failed=self._failed)
        with Client(self._addresses) as client:
            for topic in {topic for topic, _ in self._acked}:
                acked = {number: acked for (name, number), acked in self._acked.items() if name == topic}
                for number, found in _read_numbers(client, topic, list(acked)).items():
                    compare(acked[number], found, verdict)
        return verdict


def longest_wait_s(writes: Sequence[Write], epoch: int, moment: float) -> float | None:
    """The longest wait for an acknowledgement from a moment on, until one came from a later epoch (-1: to a write that
    began after that moment); None: not yet.
    """
    longest = 0.0
    before = next((n for n, write in enumerate(reversed(writes)) if write.ended < moment), len(writes))
    for write in writes[len(writes) - before :]:
        longest = max(longest, write.ended - max(write.began, moment))
        if write.leader_epoch > epoch and (epoch >= 0 or write.began >= moment):
            return longest
    return None


def _value(number: int) -> bytes:
    return b"%0*d" % (_RECORD_BYTES, number)


def _read_numbers(client: Client, topic: str, partitions: Sequence[int]) -> dict[int, array[int]]:
    """The numbers of all records, by their offsets."""
    ends = {number: end for number, end in latest_offsets(client, topic, partitions).items() if end}
    out = {number: array("q") for number in partitions}
    with Reader(client, topic, dict.fromkeys(ends, 0), max_bytes=3 << 20) as reader:
        for fetched in iter_until(reader, ends, timeout=_READ_TIMEOUT_S):
            numbers = out[fetched.partition]
            for batch in fetched.batches():
                values = batch.decode().values()
                numbers.extend(int(value or b"-1") for value in values[max(0, len(numbers) - batch.base_offset) :])
    return out


def compare(acked: Acked, found: array[int], verdict: Verdict) -> None:
    """Add what one partition shows.

    Args:
        found: the number of each record in the log, by offset.
    """
    verdict.acknowledged += len(acked.numbers)
    verdict.in_log += len(found)
    verdict.duplicated += len(found) - len(set(found))
    verdict.lost += sum(
        not (offset < len(found) and found[offset] == number)
        for offset, number in zip(acked.offsets, acked.numbers, strict=True)
    )
