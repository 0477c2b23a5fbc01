"""The library for scripts without asyncio: the same producer and consumer, on an event loop in a background thread.

    with Producer("127.0.0.1:9101") as producer:
        producer.send("orders", b"value", key=b"key")

There is one such thread, however many objects are open. Every call waits for its result; for throughput use
`send_many`, or asyncio. What runs on that thread itself (an `on_event` handler, an iterable given to `send_many`) must
not call: it would wait for itself, so LocalError is raised there, reason WRONG_THREAD.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from fluxlog import admin as _admin
from fluxlog import forks
from fluxlog.addresses import parse_bootstrap
from fluxlog.aio import consumer as _consumer
from fluxlog.aio import producer as _producer
from fluxlog.aio.bulk import BulkResult
from fluxlog.aio.consumed import ConsumedBatch, ConsumedRecord, TopicPartition
from fluxlog.aio.hand import Chunk
from fluxlog.aio.lanes import Delivered
from fluxlog.batch import Headers
from fluxlog.client import Client
from fluxlog.errors import LocalError

__all__ = ["Admin", "Consumer", "Producer"]

T = TypeVar("T")


class _Background:
    """A thread with an event loop, for as long as somebody uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> None:
        """One user more.

        Raises:
            LocalError: WRONG_THREAD, FORKED.
        """
        self.check_caller()
        with self._lock:
            self._users += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name="fluxlog", daemon=True)
                self._thread.start()

    def leave(self) -> None:
        """One less; the last one ends the thread."""
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = self._thread = None

    def check_caller(self) -> None:
        """Before the lock is taken: whoever ends the thread holds it, and it does not survive a fork.

        Raises:
            LocalError: WRONG_THREAD: on the thread itself, which would wait for itself. FORKED: there is none here.
        """
        forks.check_process()
        if threading.current_thread() is self._thread:
            raise LocalError("WRONG_THREAD", "fluxlog.sync was called from its own background thread, which would wait "
                             "for itself: from an on_event handler, or an iterable that send_many reads")  # fmt: skip

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait; an interrupt (Ctrl-C) cancels it. Until then the loop has a user more: whoever closes
        what is called may be another thread.

        Raises:
            LocalError: CANCELLED: nobody uses it any more. WRONG_THREAD, FORKED.
        """
        try:
            loop = self._begin_call()
        except LocalError:
            coroutine.close()
            raise
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
            try:
                return future.result()
            except BaseException:
                future.cancel()
                raise
        finally:
            self.leave()

    def _begin_call(self) -> asyncio.AbstractEventLoop:
        self.check_caller()
        with self._lock:
            if self._loop is None:
                raise LocalError("CANCELLED", "used after it was closed")
            self._users += 1
            return self._loop

    def post(self, call: Callable[[], None]) -> None:
        """Have it called there, unless nobody uses the loop any more. Does not wait, nor take the lock: it may be
        called wherever an iterator that was left is collected."""
        loop = self._loop
        if loop is not None and not forks.was_forked():
            with suppress(RuntimeError):  # closed just now
                loop.call_soon_threadsafe(call)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


_background = _Background()


class _InBackground(ABC, Generic[T]):
    """Something of the event loop's, open inside a with statement."""

    def __init__(self) -> None:
        self._opened: T | None = None

    @abstractmethod
    async def _open(self) -> T: ...

    @abstractmethod
    async def _close(self, opened: T, *, flush: bool) -> None: ...

    def __enter__(self) -> Self:
        _background.enter()
        try:
            self._opened = _background.call(self._open())
        except BaseException:
            _background.leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if forks.was_forked():  # it is the parent's to close
            return
        _background.check_caller()  # then it is still in use
        try:
            _background.call(self._close(self._inner, flush=kind is None or issubclass(kind, Exception)))
        finally:
            _background.leave()

    @property
    def _inner(self) -> T:
        assert self._opened is not None, "use it in a with statement"
        return self._opened


class Producer(_InBackground[_producer.Producer]):
    """Writes records to topics; arguments as of fluxlog.Producer. Thread-safe."""

    def __init__(self, cluster: str | Sequence[str], **options: Any) -> None:
        super().__init__()
        self._make: Callable[[], _producer.Producer] = lambda: _producer.Producer(cluster, **options)

    async def _open(self) -> _producer.Producer:
        producer = self._make()
        producer.open()
        return producer

    async def _close(self, opened: _producer.Producer, *, flush: bool) -> None:
        await opened.close(flush=flush)

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
        expected_offset: int | None = None,
    ) -> Delivered:
        """Write one record and wait for its acknowledgement; see fluxlog.Producer.send."""
        return _background.call(
            self._inner.send(
                topic, value, key=key, partition=partition, headers=headers, timestamp_ms=timestamp_ms,
                expected_offset=expected_offset,
            )
        )  # fmt: skip

    def send_many(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        keys: Iterable[bytes | None] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> BulkResult:
        """Write many records and wait for all; see fluxlog.Producer.send_many. Iterables are read in the background
        thread."""
        return _background.call(
            self._inner.send_many(topic, values, keys=keys, partition=partition, timestamp_ms=timestamp_ms)
        )


class Consumer(_InBackground[_consumer.Consumer]):
    """Reads records of topics; arguments as of fluxlog.Consumer. What counts as handled is the same, too. One thread at
    a time may iterate."""

    def __init__(self, cluster: str | Sequence[str], topics: str | Sequence[str], **options: Any) -> None:
        super().__init__()
        self._make: Callable[[], _consumer.Consumer] = lambda: _consumer.Consumer(cluster, topics, **options)

    async def _open(self) -> _consumer.Consumer:
        return await self._make().__aenter__()

    async def _close(self, opened: _consumer.Consumer, *, flush: bool) -> None:
        await opened.close()

    def __iter__(self) -> Iterator[ConsumedRecord]:
        for chunk in self._chunks():
            yield from chunk.records()

    def batches(self) -> Iterator[ConsumedBatch]:
        """Whole batches: one counts as handled when the next one is asked for."""
        for chunk in self._chunks():
            if (batch := chunk.remainder()) is not None:
                yield batch

    def _chunks(self) -> Iterator[Chunk]:
        """What to step through on this thread: the loop is asked once for each batch."""
        iteration = self._inner.iterate()
        try:
            while (chunk := _background.call(iteration.next_chunk())) is not None:
                yield chunk
        finally:
            _background.post(iteration.end)

    def commit(self) -> None:
        """Commit everything that was handed out, with the record (or batch) in hand; see fluxlog.Consumer.commit."""
        _background.call(self._inner.commit())

    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read."""
        return _background.call(self._ask(lambda: self._inner.assignment()))

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on at an offset; the record (or batch) in hand was the last one before."""
        _background.call(self._ask(lambda: self._inner.seek(topic, partition, offset)))

    @staticmethod
    async def _ask(question: Callable[[], T]) -> T:
        return question()


class Admin(_admin.Admin):
    """Topics, nodes and the cluster; see fluxlog.admin.Admin. Needs no thread."""

    def __init__(self, cluster: str | Sequence[str]) -> None:
        self._own_client = Client(parse_bootstrap(cluster) if isinstance(cluster, str) else list(cluster))
        super().__init__(self._own_client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own_client.close()
