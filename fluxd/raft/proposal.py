"""What is asked of a group, and the one answer that it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fluxd.core.errors import FluxError
from fluxd.core.types import Offset, RaftIndex, Term


@dataclass(frozen=True, slots=True)
class Committed:
    """On disk on a majority of the replicas."""

    base_offset: Offset
    record_count: int
    leader_epoch: Term
    copies_on_disk: int
    """Replicas that had it on disk when this was answered, the leader included: at least a majority."""
    duplicate: bool = False
    """Written by an earlier request with the same producer id and sequence."""


AppendResult = Committed | FluxError
"""Committed, or an error whose traits say REJECTED or UNKNOWN."""


@dataclass(slots=True)
class Append:
    """One producer's batch on its way.

    Args:
        batch: encoded RecordBatch, checked by the caller (`core/batch.py`); its bytes are stored as they are.
        record_count: 1..limits.BATCH_RECORDS_MAX.
        producer_id: 16 bytes, or empty: no duplicate detection.
        base_sequence: of the first record; only with a producer id.
        expected_offset: append only if the first record gets exactly this offset.
        done: called exactly once, on the loop, possibly before `Group.submit` returns.
    """

    batch: bytes | memoryview
    record_count: int
    done: Callable[[AppendResult], None]
    producer_id: bytes = b""
    base_sequence: int = 0
    expected_offset: Offset | None = None


@dataclass(slots=True)
class Waiting:
    """A batch that was accepted, and who waits for it: its sender, and senders of duplicates."""

    append: Append
    base_offset: Offset
    index: RaftIndex
    duplicates: list[Append]
