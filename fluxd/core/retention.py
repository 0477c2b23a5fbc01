"""Which records a partition may let go of, by age and by size. A pure decision from summaries of its segments.

Whole segments only. Age is the leader's append time, never the producer's; whether anybody has read a record plays no
part. The active segment's file stays in any case, but when all that it holds is too old the log start moves to its
end, so that nobody reads what retention has given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.types import Offset

FOREVER = -1


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """One segment as retention sees it.

    Args:
        end_offset: exclusive.
        last_append_time_ms: of its last entry, or a little later: where it is not known, of the first entry behind.
    """

    base_offset: Offset
    end_offset: Offset
    size_bytes: int
    last_append_time_ms: int


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long records are kept, and how many bytes of them; FOREVER is no bound."""

    retention_ms: int = limits.RETENTION_MS_DEFAULT
    retention_bytes: int = FOREVER


def retained_from(
    segments: Sequence[SegmentSummary], policy: RetentionPolicy, *, now_ms: int, high_watermark: Offset
) -> Offset:
    """The log start that a policy asks for: at most the high watermark, and not above what size or age condemn.

    Args:
        segments: all, in order; the last is the active one.

    Returns:
        The first offset to keep; the first segment's base offset where nothing may go.
    """
    start = segments[0].base_offset
    size = sum(segment.size_bytes for segment in segments)
    for number, segment in enumerate(segments):
        too_old = policy.retention_ms != FOREVER and now_ms - segment.last_append_time_ms > policy.retention_ms
        active = number == len(segments) - 1
        # without this segment there is still as much as must be kept
        too_many = policy.retention_bytes != FOREVER and size - segment.size_bytes >= policy.retention_bytes
        if not too_old and (active or not too_many):
            break
        if segment.end_offset > high_watermark:
            break
        start = segment.end_offset
        size -= segment.size_bytes
    return start
