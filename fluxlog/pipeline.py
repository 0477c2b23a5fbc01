"""The rules by which batches get an outcome: written once and in order, through any number of failovers.

Every batch carries a producer id and a sequence per partition. Up to 16 batches of a partition are in flight; after any
failure all that are not acknowledged go out again, the same bytes in the same order, to the leader that the failure
named or to another node, until each is acknowledged or its delivery timeout is over. The server recognises what it has
already.

No I/O, no clock, no threads and no event loop of its own: whoever owns a Pipeline calls it from one place at a time,
tells it what streams heard, and calls `advance` afterwards and when `deadline` has come. Shared by the threaded Sender
and the asyncio Producer.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Iterable
from typing import Protocol

from fluxlog.batch import BatchTooLargeError, encode_batch
from fluxlog.codec import Codec
from fluxlog.delivery import Batch, BatchResult, PartitionQueue, Pending, Retry
from fluxlog.errors import FluxlogError, LocalError, Outcome, from_error_message
from fluxlog.framing import encode_produce
from fluxlog.leader_search import has_lost_leader
from fluxlog.v1 import log_pb2

IN_FLIGHT_MAX = 16
"""Batches of one partition; within what a server remembers of a producer."""
IN_FLIGHT_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of one partition in flight (one batch always is)."""
STREAM_BYTES_MAX = 12 * 1024 * 1024
"""Bytes in flight to one node (one batch always is): below what a server takes from one connection."""
DELIVERY_TIMEOUT_DEFAULT = 120.0
ATTEMPT_TIMEOUT = 5.0
"""Seconds without any answer after which a node is taken for hung. One that answers others is not: a slow link has
them wait their turn, and a server answers each request within 30 s of its own."""
BACKOFF_MAX_DEFAULT = 0.25

_BACKOFF_MIN = 0.02
_LAST_ANSWER_GRACE = 1.0
"""Seconds beyond the delivery timeout for an answer under way: it may make the outcome certain."""
# A deposed leader or a node that has not heard the news answers these although another node knows better: believed only
# when repeated for this many seconds.
_ABSENT = frozenset({"UNKNOWN_TOPIC", "UNKNOWN_PARTITION", "TOPIC_ID_MISMATCH"})
"""Say the same of every batch of the partition."""
_DOUBTFUL = _ABSENT | {"OUT_OF_ORDER_SEQUENCE", "UNKNOWN_PRODUCER"}
_DOUBT_SECONDS = 4.0


class Stream(Protocol):
    """A way to one node: requests leave in the order of `send`."""

    @property
    def address(self) -> str:
        """ "host:port"."""

    def send(self, correlation_id: int, request: bytes) -> None:
        """Queue one encoded ProduceRequest. Must not call back at once."""

    def cancel(self) -> None:
        """End it at once."""


class Nodes(Protocol):
    """What is known of the cluster's addresses."""

    def remember(self, addresses: Iterable[str]) -> None:
        """Add some."""

    def next_address(self, failed: str) -> str:
        """The one to try after one that failed."""


class Pipeline:
    """Batches of one producer on their way, to any number of partitions.

    Args:
        nodes: whom to ask next.
        open_stream: a stream to an address; what it hears goes to `take_answer` and `take_broken`. A FluxlogError that
            it raises is a failed attempt, in which nothing was sent; not retriable: the batches end.
        on_result: called once for each batch with its result set, in order within a partition.
        on_retry: called whenever batches go out again.
        clock: seconds, monotonic.
        delivery_timeout: seconds from a batch's `queued_at` after which it is given up.
        backoff_max: longest pause between attempts, seconds.
    """

    def __init__(
        self,
        nodes: Nodes,
        open_stream: Callable[[str], Stream],
        *,
        on_result: Callable[[Batch], None],
        on_retry: Callable[[Retry], None] | None,
        clock: Callable[[], float],
        codec: Codec = Codec.NONE,
        delivery_timeout: float = DELIVERY_TIMEOUT_DEFAULT,
        backoff_max: float = BACKOFF_MAX_DEFAULT,
    ) -> None:
        self._nodes, self._open_stream = nodes, open_stream
        self._on_result, self._on_retry, self._clock = on_result, on_retry, clock
        self._codec, self._delivery_timeout, self._backoff_max = codec, delivery_timeout, backoff_max
        self._producer_id = secrets.token_bytes(16)
        self._partitions: dict[tuple[str, int], PartitionQueue] = {}
        self._streams: dict[str, Stream] = {}
        self._pending: dict[Stream, dict[int, Pending]] = {}
        self._pending_bytes: dict[Stream, int] = {}
        self._heard_at: dict[Stream, float] = {}
        """When each stream answered anything last."""
        self._correlation = itertools.count(1)
        self._ready: dict[PartitionQueue, None] = {}
        """Something may be sent or finished; a dict for its order."""
        self._no_room: dict[PartitionQueue, None] = {}
        """Held back by STREAM_BYTES_MAX."""
        self._leaderless: dict[PartitionQueue, None] = {}
        """The last attempt failed, and nothing said where the leader is."""
        self._told = False
        """Somebody has them told (`leader_told`): until the next attempt they wait as long as they may."""
        self.deadline = math.inf
        """When `advance` is to be called at the latest, by the clock. Never later than needed, perhaps earlier."""

    def partition(self, topic: str, number: int, *, target: str, topic_id: bytes = b"") -> PartitionQueue:
        """The queue of a partition.

        Args:
            target: address to begin with, the first time.
            topic_id: 16 bytes: refuse to write to another topic of this name. Taken for what is sent from now on.
        """
        queue = self._partitions.get((topic, number))
        if queue is None:
            queue = PartitionQueue(number, self._producer_id, target, topic=topic)
            self._partitions[topic, number] = queue
        if queue.topic_id != topic_id:
            queue.topic_id = topic_id
            if queue.batches:
                queue.batches[0].doubted_since = 0.0  # that was about another topic
        return queue

    def add(self, partition: PartitionQueue, batch: Batch) -> None:
        """Queue a batch behind those that the partition has."""
        partition.batches.append(batch)
        self._ready[partition] = None

    def advance(self) -> None:
        """Do all that can be done now."""
        if self._clock() >= self.deadline:
            self._check_deadlines()
        while self._ready:
            partition = next(iter(self._ready))
            del self._ready[partition]
            self._pump(partition)
            if partition.batches:
                self.deadline = min(self.deadline, self._deadline_of(partition))

    def stop(self) -> None:
        """Give every batch an outcome (REJECTED when it was surely never taken, else UNKNOWN) and end the streams."""
        for partition in self._partitions.values():
            for batch in [batch for batch in partition.batches if batch.result is None]:
                outcome = Outcome.UNKNOWN if batch.possibly_written else Outcome.REJECTED
                error = batch.error or FluxlogError("CANCELLED", "given up before an answer came", outcome=outcome)
                self._finish(partition, batch, outcome, error=error)
        self._pending.clear()
        for stream in self._streams.values():
            stream.cancel()
        self._streams.clear()

    # ---- leaders

    def leaderless(self, count_max: int) -> list[PartitionQueue]:
        """Partitions with something to be written whose leader nobody knows. What is in flight is not among them: the
        node that has it waits for the same news.
        """
        waiting = (partition for partition in self._leaderless if partition.batches and not partition.sent)
        return list(itertools.islice(waiting, count_max))

    def leader_told(self, topic: str, number: int, *, address: str, epoch: int) -> None:
        """A node said who leads a partition: what waits for that goes out at once."""
        partition = self._partitions.get((topic, number))
        if (
            partition is None
            or partition not in self._leaderless
            or partition.sent
            or epoch <= partition.leader_epoch
            or not address
        ):
            return
        del self._leaderless[partition]
        self._nodes.remember([address])
        partition.leader_epoch = epoch
        partition.leader, partition.avoid, partition.retry_at = address, "", 0.0
        self._ready[partition] = None

    def somebody_tells(self) -> None:
        """What loses its leader is told the new one: others are tried only after the longest pause."""
        self._told = True

    def nobody_tells(self) -> None:
        """No node says who leads: from now on the nodes are tried, one after the other, with the usual pauses."""
        self._told = False
        for partition in self._leaderless:
            partition.retry_at = 0.0
            self._ready[partition] = None

    # ---- time

    def _deadline_of(self, partition: PartitionQueue) -> float:
        waiting = self._hung_at(partition) if partition.sent else partition.retry_at or math.inf
        return min(waiting, self._give_up_at(partition.batches[0]))

    def _hung_at(self, partition: PartitionQueue) -> float:
        stream = self._streams.get(partition.target)
        heard_at = self._heard_at[stream] if stream is not None else 0.0
        return max(partition.progress_at, heard_at) + ATTEMPT_TIMEOUT

    def _give_up_at(self, batch: Batch) -> float:
        grace = _LAST_ANSWER_GRACE if batch.unanswered else 0.0
        return batch.queued_at + self._delivery_timeout + grace

    def _check_deadlines(self) -> None:
        now, self.deadline = self._clock(), math.inf
        for partition in self._partitions.values():
            while partition.batches and now >= self._give_up_at(partition.batches[0]):
                late = FluxlogError("DELIVERY_TIMEOUT", f"no acknowledgement within {self._delivery_timeout:g} s")
                self._give_up_head(partition, partition.batches[0].error or late)
            if partition.sent and now >= self._hung_at(partition):
                stream = self._streams.get(partition.target)
                if stream is not None:
                    hung = f"{stream.address} gave no answer within {ATTEMPT_TIMEOUT:g} s"
                    stream.cancel()
                    self.take_broken(stream, FluxlogError("DEADLINE_EXCEEDED", hung, retriable=True))
            if partition.batches:
                self._ready[partition] = None

    # ---- sending

    def _pump(self, partition: PartitionQueue) -> None:
        """Send what may be sent now."""
        if partition.leader and partition.leader != partition.target:
            if partition.sent:  # a batch sent elsewhere could overtake those in flight
                return
            partition.target = partition.leader
        if partition.sent == len(partition.batches) or self._clock() < partition.retry_at:
            return
        partition.retry_at = 0.0
        while partition.sent < min(len(partition.batches), IN_FLIGHT_MAX):
            batch = partition.batches[partition.sent]
            if not batch.encoded and not self._encode(partition, batch):
                if partition.sent:
                    return
                self._finish(partition, batch, Outcome.REJECTED, error=batch.refusal)
                continue
            if partition.sent and partition.sent_bytes + len(batch.encoded) > IN_FLIGHT_BYTES_MAX:
                return
            stream = self._streams.get(partition.target) or self._open(partition)
            if stream is None:
                return
            if not self._transmit(stream, partition, batch):
                self._no_room[partition] = None
                return

    def _open(self, partition: PartitionQueue) -> Stream | None:
        """A stream to where the partition's batches go next. None: it cannot be had, and this attempt has failed."""
        try:
            stream = self._open_stream(partition.target)
        except FluxlogError as failure:  # the connection is closed, for instance
            self._handle_failure(partition, partition.batches[0], failure)
            return None
        self._streams[partition.target] = stream
        self._pending[stream], self._pending_bytes[stream], self._heard_at[stream] = {}, 0, 0.0
        return stream

    def _encode(self, partition: PartitionQueue, batch: Batch) -> bool:
        """Give a batch its sequence and its bytes. False: it has a refusal instead, and no sequence."""
        if batch.refusal is not None:
            return False
        try:
            encoded = encode_batch(
                batch.values,
                keys=batch.keys,
                headers=batch.headers,
                timestamps_ms=batch.timestamps_ms,
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

    def _transmit(self, stream: Stream, partition: PartitionQueue, batch: Batch) -> bool:
        """Hand a batch to the stream; False: too much is in flight there."""
        in_flight = self._pending_bytes[stream]
        if in_flight and in_flight + len(batch.encoded) > STREAM_BYTES_MAX:
            return False
        self._pending_bytes[stream] = in_flight + len(batch.encoded)
        correlation_id = next(self._correlation)
        self._pending[stream][correlation_id] = Pending(partition, batch, partition.attempt, len(batch.encoded))
        batch.attempts += 1
        batch.unanswered += 1
        if not partition.sent:
            partition.progress_at = self._clock()
        partition.sent += 1
        partition.sent_bytes += len(batch.encoded)
        stream.send(
            correlation_id,
            encode_produce(
                partition.topic,
                partition.number,
                batch.encoded,
                topic_id=partition.topic_id,
                expected_offset=batch.expected_offset,
            ),
        )
        return True

    # ---- what the streams tell

    def take_answer(self, stream: Stream, response: log_pb2.ProduceStreamResponse) -> None:
        """A stream got an answer."""
        pending = self._pending.get(stream, {}).pop(response.correlation_id, None)
        if pending is None:
            return
        self._heard_at[stream] = self._clock()
        self._release_room(stream, pending)
        partition, batch = pending.partition, pending.batch
        if batch.result is not None or pending.stale:
            return
        self._ready[partition] = None
        batch.unanswered -= 1
        if response.WhichOneof("result") == "committed":
            committed = response.committed
            partition.failures, partition.avoid, partition.progress_at = 0, "", self._clock()
            if committed.leader.address:
                self._nodes.remember([committed.leader.address])
                partition.leader = committed.leader.address
            partition.leader_epoch = max(partition.leader_epoch, committed.leader.leader_epoch)
            self._leaderless.pop(partition, None)
            self._finish(partition, batch, Outcome.COMMITTED, committed=committed)
            return
        error = from_error_message(response.error, address=stream.address)
        batch.unknown |= error.outcome is Outcome.UNKNOWN
        batch.error = error
        if pending.attempt == partition.attempt:
            self._handle_failure(partition, batch, error)

    def take_broken(self, stream: Stream, failure: FluxlogError) -> None:
        """A stream has ended. Unless the outcome is REJECTED, what it had not answered is UNKNOWN."""
        pendings = self._pending.pop(stream, None)
        if pendings is None:  # already given up
            return
        del self._pending_bytes[stream], self._heard_at[stream]
        if self._streams.get(stream.address) is stream:
            del self._streams[stream.address]
        self._wake_those_without_room()
        failed: dict[PartitionQueue, None] = {}
        for pending in pendings.values():
            batch = pending.batch
            if pending.stale:
                continue
            batch.unanswered -= 1
            batch.unknown |= failure.outcome is Outcome.UNKNOWN
            batch.error = batch.error or failure
            if pending.attempt == pending.partition.attempt and batch.result is None:
                failed[pending.partition] = None
        for partition in failed:
            self._handle_failure(partition, partition.batches[0], failure)
            self._ready[partition] = None

    def _release_room(self, stream: Stream, pending: Pending) -> None:
        self._pending_bytes[stream] -= pending.size
        self._wake_those_without_room()

    def _wake_those_without_room(self) -> None:
        if self._no_room:
            self._ready |= self._no_room
            self._no_room.clear()

    def _handle_failure(self, partition: PartitionQueue, batch: Batch, error: FluxlogError) -> None:
        """An attempt of the partition's present round failed: send again, or give the oldest batch up."""
        now = self._clock()
        if batch is partition.batches[0]:
            if error.reason == "UNKNOWN_PRODUCER" and not batch.possibly_written and not batch.doubted_since:
                batch.doubted_since = now  # once: a number 0 cannot be answered so
                self._renumber(partition, Outcome.REJECTED, error)
                return
            if error.reason in _DOUBTFUL:
                batch.doubted_since = batch.doubted_since or now
                final = now - batch.doubted_since >= _DOUBT_SECONDS
            else:
                batch.doubted_since = 0.0
                final = error.from_server and not error.retriable
            if final or (not error.from_server and not error.retriable):
                self._give_up_head(partition, error)
                if error.reason in _ABSENT and partition.batches:  # once answered like this, it is believed, too
                    partition.batches[0].doubted_since = batch.doubted_since
                return
        partition.attempt += 1
        partition.sent = partition.sent_bytes = 0
        partition.failures += 1
        self._choose_target(partition, error)
        wait = min(_BACKOFF_MIN * 2 ** min(partition.failures - 1, 10), self._backoff_max)
        if self._told and partition in self._leaderless:
            wait = self._backoff_max
        wait = max(wait, error.retry_after_ms / 1000)
        partition.retry_at = now + wait
        self.deadline = min(self.deadline, partition.retry_at)
        if self._on_retry is not None:
            waiting = len(partition.batches)
            self._on_retry(Retry(partition.number, waiting, error, partition.target, wait * 1000, partition.topic))

    def _choose_target(self, partition: PartitionQueue, error: FluxlogError) -> None:
        failed, partition.leader = partition.target, ""
        self._leaderless.pop(partition, None)
        if error.reason == "OVERLOADED":
            return
        if not error.from_server:
            partition.avoid = failed
        if error.leader_address not in ("", failed, partition.avoid):
            self._nodes.remember([error.leader_address])
            partition.target = error.leader_address
        else:
            partition.target = self._nodes.next_address(failed)
            if partition.target == partition.avoid:
                partition.target = self._nodes.next_address(partition.target)
            if has_lost_leader(error):
                self._leaderless[partition] = None

    # ---- outcomes

    def _give_up_head(self, partition: PartitionQueue, error: FluxlogError) -> None:
        """End the oldest batch without an acknowledgement, and go on with those behind it, whose sequence is broken."""
        head = partition.batches[0]
        outcome = Outcome.UNKNOWN if head.possibly_written else Outcome.REJECTED
        self._finish(partition, head, outcome, error=error)
        self._renumber(partition, outcome, error)

    def _renumber(self, partition: PartitionQueue, outcome: Outcome, error: FluxlogError) -> None:
        """Go on under another producer id, with sequence 0: one is not used, or the server has forgotten them.

        That is exact: if the head was surely not written, nothing behind it was (it would have been a gap); otherwise
        those that may have been written share its outcome.

        Args:
            outcome: of the head until now: REJECTED or UNKNOWN. When UNKNOWN it was ended.
        """
        partition.attempt += 1
        partition.sent = partition.sent_bytes = 0
        partition.producer_id, partition.next_sequence = secrets.token_bytes(16), 0
        for batch in [batch for batch in partition.batches if batch.result is None]:
            if outcome is Outcome.UNKNOWN and batch.possibly_written:
                self._finish(partition, batch, Outcome.UNKNOWN, error=batch.error or error)
            else:
                batch.encoded, batch.unanswered, batch.unknown = b"", 0, False
        for pendings in self._pending.values():  # answers to the old bytes have nothing more to say
            for pending in pendings.values():
                pending.stale |= pending.partition is partition
        self._ready[partition] = None

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
            elapsed_ms=(self._clock() - batch.queued_at) * 1000,
            topic=partition.topic,
        )
        while partition.batches and partition.batches[0].result is not None:
            done = partition.batches.popleft()
            if partition.sent:
                partition.sent -= 1
                partition.sent_bytes -= len(done.encoded)
            self._on_result(done)
