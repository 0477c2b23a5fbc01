"""What a sender remembers of batches on their way, and what it tells about them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxlog.batch import Headers
from fluxlog.errors import FluxlogError, Outcome


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one batch."""

    partition: int
    outcome: Outcome
    record_count: int
    context: Any
    """As given to `send`."""
    base_offset: int = -1
    """COMMITTED: offset of the first record; the others follow without a hole."""
    leader_epoch: int = 0
    copies_on_disk: int = 0
    duplicate: bool = False
    """COMMITTED by an earlier attempt, whose answer was lost."""
    error: FluxlogError | None = None
    """REJECTED and UNKNOWN: the last failure."""
    attempts: int = 0
    elapsed_ms: float = 0.0
    """From `send` to the answer."""
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """The batches of a partition go out again."""

    partition: int
    batches: int
    error: FluxlogError
    next_address: str
    wait_ms: float
    topic: str = ""


@dataclass(slots=True, eq=False)
class Batch:
    """A batch without an outcome yet."""

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None
    context: Any
    size: int
    queued_at: float
    headers: Sequence[Headers] | None = None
    timestamps_ms: int | Sequence[int] | None = None
    """None: when it is encoded."""
    expected_offset: int | None = None
    encoded: bytes = b""
    attempts: int = 0
    unanswered: int = 0
    unknown: bool = False
    error: FluxlogError | None = None
    refusal: FluxlogError | None = None
    """It cannot be encoded; said when its turn comes, so that outcomes stay in order."""
    doubted_since: float = 0.0
    result: BatchResult | None = None

    @property
    def possibly_written(self) -> bool:
        """Some attempt may have had its effect."""
        return self.unknown or self.unanswered > 0


@dataclass(slots=True, eq=False)
class PartitionQueue:
    """What is to be written to one partition."""

    number: int
    producer_id: bytes
    target: str
    topic: str = ""
    topic_id: bytes = b""
    next_sequence: int = 0
    batches: deque[Batch] = field(default_factory=deque)
    """Not acknowledged, in order; the first `sent` of them are in flight."""
    sent: int = 0
    sent_bytes: int = 0
    progress_at: float = 0.0
    """When something was last acknowledged, or the first of those in flight was sent."""
    attempt: int = 1
    failures: int = 0
    retry_at: float = 0.0
    """Not before; 0: at once."""
    leader: str = ""
    """Where an answer said that the leader is; taken up when nothing is in flight."""
    leader_epoch: int = 0
    """The newest one that was told; 0: none."""
    avoid: str = ""
    """Address that did not answer last: a hint to it is old news."""


@dataclass(slots=True, eq=False)
class Pending:
    """One request that waits for its answer."""

    partition: PartitionQueue
    batch: Batch
    attempt: int
    size: int
    """Encoded bytes."""
    stale: bool = False
    """The batch was given up or encoded anew since: the answer says nothing of it."""
