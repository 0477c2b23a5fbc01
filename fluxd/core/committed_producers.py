"""What the committed entries of a partition said about its producers: a function of the log, the same on every replica.

Bounds: the last limits.PRODUCER_WINDOW_BATCHES batches of each producer, of at most limits.PRODUCERS_PER_PARTITION_MAX
producers; over it the one whose last append is oldest is forgotten. So is one whose last append is more than
limits.PRODUCER_EXPIRY_MS older than the entry being committed: time here is the log's append time.

Layout of a snapshot, little-endian: version u8 = 1, producers u32; each producer, the one with the oldest last append
first: id 16 bytes, last append time i64 (ms), batches u16 (1..limits.PRODUCER_WINDOW_BATCHES); each batch, oldest
first: base sequence u64, records u32, base offset u64, leader epoch u64, raft index u64.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import PRODUCER_ID_BYTES, Offset, RaftIndex, Term

_VERSION = 1
_TABLE = struct.Struct("<BI")
_PRODUCER = struct.Struct(f"<{PRODUCER_ID_BYTES}sqH")
_BATCH = struct.Struct("<QIQQQ")

SNAPSHOT_BYTES_MAX: Final = _TABLE.size + limits.PRODUCERS_PER_PARTITION_MAX * (
    _PRODUCER.size + limits.PRODUCER_WINDOW_BATCHES * _BATCH.size
)


class CommittedBatch(NamedTuple):
    """One remembered batch."""

    record_count: int
    base_offset: Offset
    leader_epoch: Term
    raft_index: RaftIndex


@dataclass(slots=True)
class Producer:
    """One remembered producer."""

    next_sequence: int
    last_append_ms: int
    window: dict[int, CommittedBatch]
    """By base sequence, in log order; never empty."""

    @property
    def oldest_sequence(self) -> int:
        """Base sequence of the oldest batch that is remembered."""
        return next(iter(self.window))


class CommittedProducers:
    """See the module."""

    __slots__ = ("_producers",)

    def __init__(self) -> None:
        self._producers: OrderedDict[bytes, Producer] = OrderedDict()
        """In the order of their last append in the log, oldest first."""

    def __len__(self) -> int:
        return len(self._producers)

    def get(self, producer_id: bytes) -> Producer | None:
        """What is remembered of a producer; not to be changed."""
        return self._producers.get(producer_id)

    def expire(self, now_ms: int) -> None:
        """An entry with this append time is being committed."""
        while self._producers:
            oldest = next(iter(self._producers.values()))
            if oldest.last_append_ms + limits.PRODUCER_EXPIRY_MS >= now_ms:
                return
            self._producers.popitem(last=False)

    def remember(self, producer_id: bytes, base_sequence: int, batch: CommittedBatch, append_time_ms: int) -> None:
        """A batch was committed. Called in log order.

        A sequence that does not go on where the last one ended is taken as it is: when the leader judged the batch, it
        knew more producers than are remembered now.
        """
        producer = self._producers.get(producer_id)
        if producer is None:
            producer = self._producers[producer_id] = Producer(0, 0, {})
            if len(self._producers) > limits.PRODUCERS_PER_PARTITION_MAX:
                self._producers.popitem(last=False)
        else:
            self._producers.move_to_end(producer_id)
        producer.next_sequence = base_sequence + batch.record_count
        producer.last_append_ms = append_time_ms
        window = producer.window
        window.pop(base_sequence, None)
        window[base_sequence] = batch
        if len(window) > limits.PRODUCER_WINDOW_BATCHES:
            del window[producer.oldest_sequence]

    def snapshot(self) -> bytes:
        """Encode; the same bytes on every replica that committed the same entries, at most SNAPSHOT_BYTES_MAX."""
        parts = [_TABLE.pack(_VERSION, len(self._producers))]
        for producer_id, producer in self._producers.items():
            parts.append(_PRODUCER.pack(producer_id, producer.last_append_ms, len(producer.window)))
            parts += (_BATCH.pack(base_sequence, *batch) for base_sequence, batch in producer.window.items())
        return b"".join(parts)

    @staticmethod
    def restore(data: bytes) -> CommittedProducers:
        """Inverse of `snapshot`.

        Raises:
            CorruptDataError: not a snapshot.
        """
        out = CommittedProducers()
        try:
            version, count = _TABLE.unpack_from(data)
            if version != _VERSION or count > limits.PRODUCERS_PER_PARTITION_MAX:
                raise CorruptDataError(f"a producer table of version {version} with {count} producers")
            position = _TABLE.size
            for _ in range(count):
                position = out._restore_producer(data, position)
        except struct.error as error:
            raise CorruptDataError("the producer table is cut off") from error
        if position != len(data) or len(out) != count:
            raise CorruptDataError(f"a producer table of {count} producers cannot have {len(data)} bytes")
        return out

    def _restore_producer(self, data: bytes, position: int) -> int:
        producer_id, last_append_ms, count = _PRODUCER.unpack_from(data, position)
        position += _PRODUCER.size
        if not 1 <= count <= limits.PRODUCER_WINDOW_BATCHES:
            raise CorruptDataError(f"a producer with {count} batches")
        window: dict[int, CommittedBatch] = {}
        next_sequence = 0
        for _ in range(count):
            base_sequence, record_count, offset, epoch, index = _BATCH.unpack_from(data, position)
            position += _BATCH.size
            window[base_sequence] = CommittedBatch(record_count, Offset(offset), Term(epoch), RaftIndex(index))
            next_sequence = base_sequence + record_count
        if len(window) != count:
            raise CorruptDataError("a producer has one batch twice")
        self._producers[producer_id] = Producer(next_sequence, last_append_ms, window)
        return position
