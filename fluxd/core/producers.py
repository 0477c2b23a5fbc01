"""The producer table of a partition: a batch that was sent twice is written once.

A producer numbers its records per partition from 0, and a batch is known by (producer id, base sequence). The table has

* a committed part: what committed entries said (`core/committed_producers.py`, with the bounds of what is remembered);
* an overlay: batches in the log but not yet committed. It follows the log: `append`, `truncate`;
* the queue: batches that a leader has accepted and not yet appended.

A leader judges by all three together, so that a producer may have many batches on their way. A duplicate of what is not
yet committed must not be answered from the table, since the entry may still be truncated: it gets `DuplicatePending`,
and the caller waits for that commit.

A producer that was forgotten is told so when it goes on (UNKNOWN_PRODUCER). When it sends sequence 0 again it is taken
for a new one: a resend that old is beyond what is promised.

Only entries with a producer's batch change the table, so that it makes no difference whether it is told of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fluxd.core.batch import producer_of
from fluxd.core.committed_producers import CommittedBatch, CommittedProducers, Producer
from fluxd.core.entry import Stamp, split_batches
from fluxd.core.errors import CorruptDataError, FluxError, InvariantViolation, Reason
from fluxd.core.types import Offset, RaftIndex, Term


class Fresh(NamedTuple):
    """Not seen before, and next in its producer's order: append it."""


class DuplicateCommitted(NamedTuple):
    """Committed earlier, here."""

    base_offset: Offset
    leader_epoch: Term
    raft_index: RaftIndex


class DuplicatePending(NamedTuple):
    """On its way: wait for that copy and give its answer.

    `ticket` is what `enqueue` was given, or None for an entry that was appended by another leader, or before this one's
    leadership ended; then the commit of `raft_index` decides. The other three are None while the batch is queued.
    """

    ticket: object | None
    raft_index: RaftIndex | None
    base_offset: Offset | None
    leader_epoch: Term | None


Verdict = Fresh | DuplicateCommitted | DuplicatePending

Item = tuple[bytes, int, int, Offset, Term, object | None]
"""producer_id, base_sequence, record_count, base_offset, leader_epoch, ticket."""

_FRESH = Fresh()


@dataclass(slots=True)
class _Batch:
    """One batch of the overlay or the queue; index, offset and epoch are None while it is queued."""

    producer_id: bytes
    base_sequence: int
    record_count: int
    ticket: object | None
    raft_index: RaftIndex | None = None
    base_offset: Offset | None = None
    leader_epoch: Term | None = None


class _Entry(NamedTuple):
    """One entry of the overlay."""

    raft_index: RaftIndex
    append_time_ms: int
    batches: list[_Batch]


def items_of_frame(frame: bytes | memoryview, stamp: Stamp) -> list[Item]:
    """What `ProducerTable.append` wants to know of an entry: its batches that have a producer id.

    Args:
        frame: verified, with this stamp.

    Raises:
        CorruptDataError: the batches are not what the stamp says.
    """
    out: list[Item] = []
    offset = stamp.base_offset
    for data in split_batches(frame):
        count, producer_id, base_sequence = producer_of(data)
        if producer_id:
            out.append((producer_id, base_sequence, count, offset, stamp.leader_epoch, None))
        offset = Offset(offset + count)
    if offset != stamp.next_offset:
        raise CorruptDataError(
            f"entry {stamp.raft_index} has {offset - stamp.base_offset} records, its stamp says {stamp.record_count}"
        )
    return out


class ProducerTable:
    """See the module."""

    __slots__ = ("_committed", "_entries", "_pending")

    def __init__(self, committed: CommittedProducers | None = None) -> None:
        self._committed = CommittedProducers() if committed is None else committed
        self._entries: list[_Entry] = []
        """The overlay, ascending by index; entries without a producer's batch are left out."""
        self._pending: dict[bytes, dict[int, _Batch]] = {}
        """Overlay and queue by producer and base sequence, in the order of arrival; no empty ones."""

    # ---- a leader's questions

    def check(self, producer_id: bytes, base_sequence: int, record_count: int) -> Verdict:
        """Judge a batch that arrived at the leader. Changes nothing.

        Args:
            producer_id: 16 bytes; empty is always Fresh.

        Raises:
            FluxError: OUT_OF_ORDER_SEQUENCE (metadata expected_sequence) or UNKNOWN_PRODUCER: a gap.
                DUPLICATE_FORGOTTEN: written earlier, no longer remembered where.
                INVALID_ARGUMENT: a resend in other bounds than the first copy.
        """
        if not producer_id:
            return _FRESH
        producer = self._committed.get(producer_id)
        pending = self._pending.get(producer_id)
        if pending:
            last = pending[next(reversed(pending))]
            expected = last.base_sequence + last.record_count
        elif producer:
            expected = producer.next_sequence
        elif base_sequence:
            raise _unknown_producer(producer_id, base_sequence)
        else:
            return _FRESH
        if base_sequence == expected:
            return _FRESH
        if base_sequence > expected:
            raise _out_of_order(producer_id, base_sequence, expected)
        return _judge_resend(producer, pending or {}, producer_id, base_sequence, record_count)

    def enqueue(self, producer_id: bytes, base_sequence: int, record_count: int, ticket: object) -> None:
        """A batch judged Fresh was accepted; the `append` that has its ticket, or `drop_queue`, ends that state."""
        if producer_id:
            batch = _Batch(producer_id, base_sequence, record_count, ticket)
            self._pending.setdefault(producer_id, {})[base_sequence] = batch

    def drop_queue(self) -> None:
        """Leadership ended. What is queued is forgotten; what is in the log stays, but its tickets are void."""
        for pending in list(self._pending.values()):
            for batch in list(pending.values()):
                batch.ticket = None
                if batch.raft_index is None:
                    self._forget_pending(batch)

    # ---- following the log

    def append(self, raft_index: int, items: Sequence[Item], append_time_ms: int) -> None:
        """An entry was appended to the log, by this leader or another.

        Args:
            items: the entry's batches in order; those without a producer id may be left out.

        Raises:
            InvariantViolation: the index is not above those before.
        """
        if self._entries and raft_index <= self._entries[-1].raft_index:
            raise InvariantViolation(f"entry {raft_index} after {self._entries[-1].raft_index} in the producer table")
        batches = [self._place(RaftIndex(raft_index), item) for item in items if item[0]]
        if batches:
            self._entries.append(_Entry(RaftIndex(raft_index), append_time_ms, batches))

    def _place(self, raft_index: RaftIndex, item: Item) -> _Batch:
        producer_id, base_sequence, record_count, base_offset, leader_epoch, ticket = item
        pending = self._pending.setdefault(producer_id, {})
        queued = pending.get(base_sequence)
        if queued is not None and queued.raft_index is None and queued.ticket is ticket:
            queued.raft_index, queued.base_offset, queued.leader_epoch = raft_index, base_offset, leader_epoch
            return queued
        batch = _Batch(producer_id, base_sequence, record_count, ticket, raft_index, base_offset, leader_epoch)
        pending.pop(base_sequence, None)  # the new one is the last in order
        pending[base_sequence] = batch
        return batch

    def truncate(self, first_removed_index: int) -> None:
        """The log was cut: entries from this index on are gone. Only a follower truncates: `drop_queue` came before."""
        while self._entries and self._entries[-1].raft_index >= first_removed_index:
            for batch in self._entries.pop().batches:
                self._forget_pending(batch)

    def commit(self, raft_index: int) -> None:
        """Entries up to this index (inclusive) are committed."""
        while self._entries and self._entries[0].raft_index <= raft_index:
            index, append_time_ms, batches = self._entries.pop(0)
            self._committed.expire(append_time_ms)
            for batch in batches:
                self._forget_pending(batch)
                assert batch.base_offset is not None and batch.leader_epoch is not None
                done = CommittedBatch(batch.record_count, batch.base_offset, batch.leader_epoch, index)
                self._committed.remember(batch.producer_id, batch.base_sequence, done, append_time_ms)

    def _forget_pending(self, batch: _Batch) -> None:
        pending = self._pending.get(batch.producer_id)
        if pending is not None and pending.get(batch.base_sequence) is batch:
            del pending[batch.base_sequence]
            if not pending:
                del self._pending[batch.producer_id]

    # ---- snapshot

    def snapshot(self) -> bytes:
        """Encode the committed part; the same on every replica that committed the same entries.

        Returns:
            At most committed_producers.SNAPSHOT_BYTES_MAX bytes.
        """
        return self._committed.snapshot()

    @staticmethod
    def restore(data: bytes) -> ProducerTable:
        """Inverse of `snapshot`; overlay and queue are empty.

        Raises:
            CorruptDataError: not a snapshot.
        """
        return ProducerTable(CommittedProducers.restore(data))


def _judge_resend(
    producer: Producer | None,
    pending: dict[int, _Batch],
    producer_id: bytes,
    base_sequence: int,
    record_count: int,
) -> DuplicateCommitted | DuplicatePending:
    """Judge a sequence below the expected one."""
    waiting = pending.get(base_sequence)
    if waiting is not None:
        if waiting.record_count == record_count:
            return DuplicatePending(waiting.ticket, waiting.raft_index, waiting.base_offset, waiting.leader_epoch)
        raise _other_bounds(producer_id, base_sequence, record_count)
    if producer is not None:
        done = producer.window.get(base_sequence)
        if done is not None and done.record_count == record_count:
            return DuplicateCommitted(done.base_offset, done.leader_epoch, done.raft_index)
    oldest = producer.oldest_sequence if producer is not None else next(iter(pending))
    if base_sequence >= oldest:
        raise _other_bounds(producer_id, base_sequence, record_count)
    raise FluxError(
        Reason.DUPLICATE_FORGOTTEN,
        f"sequence {base_sequence} of producer {producer_id.hex()} was written earlier; the oldest that is remembered "
        f"is {oldest}",
        metadata={"oldest_remembered_sequence": str(oldest)},
    )


def _unknown_producer(producer_id: bytes, base_sequence: int) -> FluxError:
    return FluxError(
        Reason.UNKNOWN_PRODUCER,
        f"producer {producer_id.hex()} is not known (or no longer) and begins at sequence {base_sequence}, not at 0",
    )


def _out_of_order(producer_id: bytes, base_sequence: int, expected: int) -> FluxError:
    return FluxError(
        Reason.OUT_OF_ORDER_SEQUENCE,
        f"sequence {base_sequence} of producer {producer_id.hex()} leaves a gap: {expected} is expected",
        metadata={"expected_sequence": str(expected)},
    )


def _other_bounds(producer_id: bytes, base_sequence: int, record_count: int) -> FluxError:
    return FluxError(
        Reason.INVALID_ARGUMENT,
        f"sequences {base_sequence}..{base_sequence + record_count - 1} of producer {producer_id.hex()} were sent "
        "before in batches of other bounds; a resend must be the same batch",
    )
