"""An idempotent, pipelined sender: what is acknowledged is written once and in order, through any number of failovers.

Every batch carries the sender's producer id and a sequence per partition. Up to 16 batches of a partition are in
flight; after any failure all that are not acknowledged go out again, the same bytes in the same order, to the leader
that the failure named or to another node, until each is acknowledged or its delivery timeout is over. The server
recognises what it has already.

One thread owns all state; streams hand it what they hear through a queue. Deliberately absent: a linger (the caller
makes the batches) and partitioning (the caller chooses).
"""

from __future__ import annotations

import itertools
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fluxlog.batch import BatchTooLargeError, encode_batch
from fluxlog.client import Client
from fluxlog.codec import Codec
from fluxlog.delivery import Batch, BatchResult, PartitionQueue, Pending, Retry
from fluxlog.errors import FluxlogError, LocalError, Outcome, from_error_message
from fluxlog.stream import ProduceStream, encode_produce
from fluxlog.v1 import log_pb2

IN_FLIGHT_MAX = 16
"""Batches of one partition; within what a server remembers of a producer."""
IN_FLIGHT_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of one partition in flight (one batch always is)."""
BUFFER_BYTES_DEFAULT = 32 * 1024 * 1024
DELIVERY_TIMEOUT_DEFAULT = 120.0
ATTEMPT_TIMEOUT = 5.0
"""Seconds without an answer for the oldest batch after which its node is taken for hung."""

_BACKOFF_MIN = 0.02
_LAST_ANSWER_GRACE = 1.0
"""Seconds beyond the delivery timeout for an answer under way: it may make the outcome certain."""
# A deposed leader or a node that has not heard the news answers these although another node knows better: believed only
# when repeated for this many seconds.
_DOUBTFUL = frozenset(
    {"OUT_OF_ORDER_SEQUENCE", "UNKNOWN_PRODUCER", "UNKNOWN_TOPIC", "UNKNOWN_PARTITION", "TOPIC_ID_MISMATCH"}
)
_DOUBT_SECONDS = 4.0


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
        backoff_max: float = 0.25,
    ) -> None:
        self._client, self._topic, self._topic_id, self._codec = client, topic, topic_id, codec
        self._on_result, self._on_retry = on_result, on_retry
        self._leaders = dict(leaders or {})
        self._delivery_timeout, self._buffer_bytes, self._backoff_max = delivery_timeout, buffer_bytes, backoff_max
        self._producer_id = secrets.token_bytes(16)
        self._partitions: dict[int, PartitionQueue] = {}
        self._streams: dict[str, ProduceStream] = {}
        self._pending: dict[ProduceStream, dict[int, Pending]] = {}
        self._correlation = itertools.count(1)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
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
                try:
                    timeout = max(0.0, self._next_deadline() - time.monotonic())
                    self._inbox.get(timeout=min(timeout, 60.0))()
                    while True:
                        self._inbox.get_nowait()()
                except queue.Empty:
                    pass
                self._check_deadlines()
                for partition in self._partitions.values():
                    self._pump(partition)
        finally:
            self._running = False
            for stream in list(self._streams.values()):
                stream.cancel()
            with self._room:
                self._room.notify_all()

    def _enqueue(self, number: int, batch: Batch) -> None:
        partition = self._partitions.get(number)
        if partition is None:
            target = self._leaders.get(number) or self._client.addresses()[0]
            partition = self._partitions[number] = PartitionQueue(number, self._producer_id, target)
        partition.batches.append(batch)

    def _next_deadline(self) -> float:
        deadline = float("inf")
        for partition in self._partitions.values():
            if partition.batches:
                head = partition.batches[0]
                deadline = min(deadline, self._give_up_at(head))
                deadline = min(
                    deadline, partition.progress_at + ATTEMPT_TIMEOUT if partition.sent else partition.retry_at
                )
        return deadline

    def _give_up_at(self, batch: Batch) -> float:
        grace = _LAST_ANSWER_GRACE if batch.unanswered else 0.0
        return batch.queued_at + self._delivery_timeout + grace

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for partition in self._partitions.values():
            while partition.batches and now >= self._give_up_at(partition.batches[0]):
                late = FluxlogError("DELIVERY_TIMEOUT", f"no acknowledgement within {self._delivery_timeout:g} s")
                self._give_up_head(partition, partition.batches[0].error or late)
            if partition.sent and now >= partition.progress_at + ATTEMPT_TIMEOUT:
                stream = self._streams.get(partition.target)
                if stream is not None:
                    hung = f"{stream.address} gave no answer within {ATTEMPT_TIMEOUT:g} s"
                    stream.cancel()
                    self._handle_broken(stream, FluxlogError("DEADLINE_EXCEEDED", hung, retriable=True))

    def _pump(self, partition: PartitionQueue) -> None:
        """Send what may be sent now."""
        if partition.leader and partition.leader != partition.target:
            if partition.sent:  # a batch sent elsewhere could overtake those in flight
                return
            partition.target = partition.leader
        if partition.sent == len(partition.batches) or time.monotonic() < partition.retry_at:
            return
        while partition.sent < min(len(partition.batches), IN_FLIGHT_MAX):
            batch = partition.batches[partition.sent]
            if not batch.encoded and not self._encode(partition, batch):
                if partition.sent:
                    return
                self._finish(partition, batch, Outcome.REJECTED, error=batch.refusal)
                continue
            if partition.sent and partition.sent_bytes + len(batch.encoded) > IN_FLIGHT_BYTES_MAX:
                return
            self._transmit(partition, batch)

    def _encode(self, partition: PartitionQueue, batch: Batch) -> bool:
        """Give a batch its sequence and its bytes. False: it has a refusal instead, and no sequence."""
        if batch.refusal is not None:
            return False
        try:
            encoded = encode_batch(
                batch.values,
                keys=batch.keys,
                producer_id=partition.producer_id,
                base_sequence=partition.next_sequence,
                codec=self._codec,
            )
        except (ValueError, TypeError) as error:
            reason = "BATCH_TOO_LARGE" if isinstance(error, BatchTooLargeError) else "INVALID_ARGUMENT"
            batch.refusal = LocalError(reason, str(error))
            return False
        batch.encoded = encoded
        partition.next_sequence += len(batch.values)
        return True

    def _transmit(self, partition: PartitionQueue, batch: Batch) -> None:
        stream = self._streams.get(partition.target)
        if stream is None:
            node = self._client.node(partition.target)
            stream = ProduceStream(node, self._post_answer, self._post_broken)
            self._streams[partition.target] = stream
            self._pending[stream] = {}
        correlation_id = next(self._correlation)
        self._pending[stream][correlation_id] = Pending(partition, batch, partition.attempt)
        batch.attempts += 1
        batch.unanswered += 1
        if not partition.sent:
            partition.progress_at = time.monotonic()
        partition.sent += 1
        partition.sent_bytes += len(batch.encoded)
        stream.send(
            correlation_id, encode_produce(self._topic, partition.number, batch.encoded, topic_id=self._topic_id)
        )

    # ---- what the streams tell

    def _post_answer(self, stream: ProduceStream, response: log_pb2.ProduceStreamResponse) -> None:
        self._inbox.put(lambda: self._handle_answer(stream, response))

    def _post_broken(self, stream: ProduceStream, failure: FluxlogError) -> None:
        self._inbox.put(lambda: self._handle_broken(stream, failure))

    def _handle_answer(self, stream: ProduceStream, response: log_pb2.ProduceStreamResponse) -> None:
        pending = self._pending.get(stream, {}).pop(response.correlation_id, None)
        if pending is None or pending.batch.result is not None:
            return
        partition, batch = pending.partition, pending.batch
        batch.unanswered -= 1
        if response.WhichOneof("result") == "committed":
            committed = response.committed
            partition.failures, partition.avoid, partition.progress_at = 0, "", time.monotonic()
            if committed.leader.address:
                self._client.remember([committed.leader.address])
                partition.leader = committed.leader.address
            self._finish(partition, batch, Outcome.COMMITTED, committed=committed)
            return
        error = from_error_message(response.error, address=stream.address)
        batch.unknown |= error.outcome is Outcome.UNKNOWN
        batch.error = error
        if pending.attempt == partition.attempt:
            self._handle_failure(partition, batch, error)

    def _handle_broken(self, stream: ProduceStream, failure: FluxlogError) -> None:
        pendings = self._pending.pop(stream, None)
        if pendings is None:  # already given up
            return
        if self._streams.get(stream.address) is stream:
            del self._streams[stream.address]
        failed: dict[int, PartitionQueue] = {}
        for pending in pendings.values():
            batch = pending.batch
            batch.unanswered -= 1
            batch.unknown |= failure.outcome is Outcome.UNKNOWN
            batch.error = batch.error or failure
            if pending.attempt == pending.partition.attempt and batch.result is None:
                failed[pending.partition.number] = pending.partition
        for partition in failed.values():
            self._handle_failure(partition, partition.batches[0], failure)

    def _handle_failure(self, partition: PartitionQueue, batch: Batch, error: FluxlogError) -> None:
        """An attempt of the partition's present round failed: send again, or give the oldest batch up."""
        now = time.monotonic()
        if batch is partition.batches[0]:
            if error.reason in _DOUBTFUL:
                batch.doubted_since = batch.doubted_since or now
                final = now - batch.doubted_since >= _DOUBT_SECONDS
            else:
                batch.doubted_since = 0.0
                final = error.from_server and not error.retriable
            if final or (not error.from_server and not error.retriable):
                self._give_up_head(partition, error)
                return
        partition.attempt += 1
        partition.sent = partition.sent_bytes = 0
        partition.failures += 1
        self._choose_target(partition, error)
        wait = min(_BACKOFF_MIN * 2 ** min(partition.failures - 1, 10), self._backoff_max)
        wait = max(wait, error.retry_after_ms / 1000)
        partition.retry_at = now + wait
        if self._on_retry is not None:
            self._on_retry(Retry(partition.number, len(partition.batches), error, partition.target, wait * 1000))

    def _choose_target(self, partition: PartitionQueue, error: FluxlogError) -> None:
        failed, partition.leader = partition.target, ""
        if error.reason == "OVERLOADED":
            return
        if not error.from_server:
            partition.avoid = failed
        if error.leader_address not in ("", failed, partition.avoid):
            self._client.remember([error.leader_address])
            partition.target = error.leader_address
        else:
            partition.target = self._client.next_address(failed)

    def _give_up_head(self, partition: PartitionQueue, error: FluxlogError) -> None:
        """End the oldest batch without an acknowledgement, and go on with those behind it.

        Its sequence stays unused, so the others need a producer id of their own. That is exact: if the head was
        surely not written, nothing behind it was (it would have been a gap); otherwise those that may have been
        written share its outcome.
        """
        head = partition.batches[0]
        outcome = Outcome.UNKNOWN if head.possibly_written else Outcome.REJECTED
        self._finish(partition, head, outcome, error=error)
        partition.attempt += 1
        partition.sent = partition.sent_bytes = 0
        partition.producer_id, partition.next_sequence = secrets.token_bytes(16), 0
        for batch in [batch for batch in partition.batches if batch.result is None]:
            if outcome is Outcome.UNKNOWN and batch.possibly_written:
                self._finish(partition, batch, Outcome.UNKNOWN, error=batch.error or error)
            else:
                batch.encoded, batch.unanswered, batch.unknown = b"", 0, False
        for pendings in self._pending.values():  # answers to the old bytes have nothing more to say
            for correlation_id in [number for number, pending in pendings.items() if pending.partition is partition]:
                del pendings[correlation_id]

    def _finish(
        self,
        partition: PartitionQueue,
        batch: Batch,
        outcome: Outcome,
        *,
        committed: log_pb2.ProduceResponse | None = None,
        error: FluxlogError | None = None,
    ) -> None:
        """Note an outcome, and report all that now are at the front of the partition's queue."""
        batch.result = BatchResult(
            partition=partition.number,
            outcome=outcome,
            record_count=len(batch.values),
            context=batch.context,
            base_offset=committed.base_offset if committed else -1,
            leader_epoch=committed.leader_epoch if committed else 0,
            copies_on_disk=committed.copies_on_disk if committed else 0,
            duplicate=committed.duplicate if committed else False,
            error=error,
            attempts=batch.attempts,
            elapsed_ms=(time.monotonic() - batch.queued_at) * 1000,
        )
        while partition.batches and partition.batches[0].result is not None:
            done = partition.batches.popleft()
            if partition.sent:
                partition.sent -= 1
                partition.sent_bytes -= len(done.encoded)
            self._report(done)

    def _report(self, batch: Batch) -> None:
        assert batch.result is not None
        self._on_result(batch.result)
        with self._room:
            self._buffered_bytes -= batch.size
            self._buffered_batches -= 1
            self._room.notify_all()

    def _stop(self) -> None:
        for partition in self._partitions.values():
            for batch in [batch for batch in partition.batches if batch.result is None]:
                outcome = Outcome.UNKNOWN if batch.possibly_written else Outcome.REJECTED
                error = batch.error or FluxlogError("CANCELLED", "given up before an answer came", outcome=outcome)
                self._finish(partition, batch, outcome, error=error)
        self._running = False
