"""An idempotent, pipelined sender for threads: the rules stand in fluxlog/pipeline.py.

One thread owns all state; streams hand it what they hear through a queue. Deliberately absent: a linger (the caller
makes the batches) and partitioning (the caller chooses). Programs on asyncio use `fluxlog.Producer`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fluxlog.client import Client
from fluxlog.codec import Codec
from fluxlog.delivery import Batch, BatchResult, Retry
from fluxlog.errors import FluxlogError, LocalError
from fluxlog.leader_watch import LeaderWatch
from fluxlog.pipeline import BACKOFF_MAX_DEFAULT, DELIVERY_TIMEOUT_DEFAULT, Pipeline
from fluxlog.stream import ProduceStream
from fluxlog.v1 import log_pb2

BUFFER_BYTES_DEFAULT = 32 * 1024 * 1024


class Sender:
    """Sends batches to the partitions of one topic.

    Args:
        client: shared; not closed here.
        topic: its name.
        on_result: called once for each batch, in order within a partition, on the sender's thread. Must not block.
        on_retry: called whenever batches go out again, on the sender's thread.
        leaders: address of each partition's leader, where known.
        topic_id: 16 bytes: refuse to write to another topic of this name.
        codec: compression.
        delivery_timeout: seconds from `send` after which a batch is given up.
        buffer_bytes: of values and keys that are not acknowledged; `send` waits above it.
        backoff_max: longest pause between attempts, seconds.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        on_result: Callable[[BatchResult], None],
        on_retry: Callable[[Retry], None] | None = None,
        leaders: Mapping[int, str] | None = None,
        topic_id: bytes = b"",
        codec: Codec = Codec.NONE,
        delivery_timeout: float = DELIVERY_TIMEOUT_DEFAULT,
        buffer_bytes: int = BUFFER_BYTES_DEFAULT,
        backoff_max: float = BACKOFF_MAX_DEFAULT,
    ) -> None:
        self._client, self._topic, self._topic_id = client, topic, topic_id
        self._on_result, self._leaders, self._buffer_bytes = on_result, dict(leaders or {}), buffer_bytes
        self._pipeline = Pipeline(
            client, self._open_stream, on_result=self._report, on_retry=on_retry, clock=time.monotonic, codec=codec,
            delivery_timeout=delivery_timeout, backoff_max=backoff_max,
        )  # fmt: skip
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._leader_watch = LeaderWatch(client, self._pipeline, self._inbox.put)
        self._room = threading.Condition()
        self._buffered_bytes = 0
        self._buffered_batches = 0
        self._running = True
        self._thread = threading.Thread(target=self._run, name=f"sender {topic}", daemon=True)
        self._thread.start()

    # ---- callers' threads

    def send(
        self,
        partition: int,
        values: Sequence[bytes | None],
        *,
        keys: Sequence[bytes | None] | None = None,
        context: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Queue one batch; its outcome comes to `on_result`. Waits while the buffer is full.

        Args:
            partition: from 0.
            values: 1..65,536; None is a tombstone. Not copied, not to be changed.
            keys: as many, or None.
            context: handed back with the result.
            timeout: seconds to wait for room; None: for ever.

        Raises:
            FluxlogError: BUFFER_FULL after the timeout, CANCELLED when the sender is closed; nothing was queued.
        """
        size = sum(len(value) for value in values if value) + sum(len(key) for key in keys or () if key)
        batch = Batch(values, keys, context, size, time.monotonic())
        with self._room:
            if not self._room.wait_for(lambda: not self._running or self._has_room(size), timeout):
                raise LocalError("BUFFER_FULL", f"{self._buffered_bytes} bytes wait for their acknowledgement")
            if not self._running:
                raise LocalError("CANCELLED", "the sender is closed")
            self._buffered_bytes += size
            self._buffered_batches += 1
            # Inside the lock, so that batches of several threads are queued in the order in which they got their room.
            self._inbox.put(lambda: self._enqueue(partition, batch))

    def _has_room(self, size: int) -> bool:
        return not self._buffered_batches or self._buffered_bytes + size <= self._buffer_bytes

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every batch has its outcome; False when the timeout (seconds) came first."""
        with self._room:
            done = self._room.wait_for(lambda: self._buffered_batches == 0 or not self._running, timeout)
            if self._buffered_batches and not self._running:
                raise LocalError("CANCELLED", "the sender was closed with batches in it")
            return done

    def close(self) -> None:
        """Give up what has no outcome yet (REJECTED when it was surely never taken, else UNKNOWN) and end the
        thread."""
        self._inbox.put(self._stop)
        self._thread.join()

    # ---- the sender's thread

    def _run(self) -> None:
        try:
            while self._running:
                self._pipeline.advance()
                self._leader_watch.look()
                self._take_calls(min(max(0.0, self._pipeline.deadline - time.monotonic()), 60.0))
        finally:
            with self._room:  # from here on `send` refuses
                self._running = False
            try:
                self._leader_watch.close()
                self._take_calls(0.0)  # what it had taken by then is answered, too
            finally:
                self._give_up()

    def _take_calls(self, timeout: float) -> None:
        """Do what others ask for, waiting so many seconds for the first."""
        try:
            self._inbox.get(timeout=timeout)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _give_up(self) -> None:
        try:
            self._pipeline.stop()
        finally:
            with self._room:
                self._room.notify_all()

    def _enqueue(self, number: int, batch: Batch) -> None:
        target = self._leaders.get(number) or self._client.addresses()[0]
        partition = self._pipeline.partition(self._topic, number, target=target, topic_id=self._topic_id)
        self._pipeline.add(partition, batch)

    def _open_stream(self, address: str) -> ProduceStream:
        return ProduceStream(self._client.node(address), self._post_answer, self._post_broken)

    def _post_answer(self, stream: ProduceStream, response: log_pb2.ProduceStreamResponse) -> None:
        self._inbox.put(lambda: self._pipeline.take_answer(stream, response))

    def _post_broken(self, stream: ProduceStream, failure: FluxlogError) -> None:
        self._inbox.put(lambda: self._pipeline.take_broken(stream, failure))

    def _report(self, batch: Batch) -> None:
        assert batch.result is not None
        self._on_result(batch.result)
        with self._room:
            self._buffered_bytes -= batch.size
            self._buffered_batches -= 1
            self._room.notify_all()

    def _stop(self) -> None:
        self._running = False
