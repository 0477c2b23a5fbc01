"""What retention lets go of: whole segments, by append time and by size."""

from __future__ import annotations

import pytest

from fluxd.core.retention import FOREVER, RetentionPolicy, SegmentSummary, retained_from
from fluxd.core.types import Offset

SEGMENTS = [
    SegmentSummary(Offset(0), Offset(10), 100, 1_000),
    SegmentSummary(Offset(10), Offset(20), 100, 2_000),
    SegmentSummary(Offset(20), Offset(30), 100, 3_000),
    SegmentSummary(Offset(30), Offset(40), 50, 4_000),
]


def start(policy: RetentionPolicy, now_ms: int, high_watermark: int = 40) -> int:
    return retained_from(SEGMENTS, policy, now_ms=now_ms, high_watermark=Offset(high_watermark))


@pytest.mark.parametrize(
    ("now_ms", "expected"), [(2_000, 0), (2_001, 10), (3_001, 20), (4_001, 30), (5_001, 40), (99_999, 40)]
)
def test_by_age(now_ms: int, expected: int) -> None:
    """A segment goes when its last entry is too old; when even the active one is, nothing may be read any more."""
    assert start(RetentionPolicy(retention_ms=1_000), now_ms) == expected


@pytest.mark.parametrize(
    ("retention_bytes", "expected"), [(351, 0), (350, 0), (250, 10), (249, 10), (150, 20), (50, 30), (0, 30)]
)
def test_by_size(retention_bytes: int, expected: int) -> None:
    """As much as the bound stays at least; the active segment always."""
    assert start(RetentionPolicy(FOREVER, retention_bytes), 99_999) == expected


def test_no_bound_keeps_everything() -> None:
    """-1 and -1."""
    assert start(RetentionPolicy(FOREVER, FOREVER), 1 << 60) == 0


def test_never_above_the_high_watermark() -> None:
    """What is not committed is nobody's to give up."""
    assert start(RetentionPolicy(0, 0), 99_999, high_watermark=29) == 20
