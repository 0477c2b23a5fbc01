"""The three forms of an error say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core import status
from fluxd.core.errors import FluxError, Reason
from fluxlog.v1 import errors_pb2


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_both_forms(reason: Reason) -> None:
    """status_bytes and error_message lose nothing of reason, message, metadata and delay."""
    error = FluxError(reason, "offset 41 of orders-3", metadata={"high_watermark": "40"}, retry_after_ms=150)
    for back in (
        status.error_from_status(status.status_bytes(error, writes=True)),
        status.error_from_message(status.error_message(error, writes=True)),
    ):
        assert back is not None
        assert (back.reason, back.message, back.metadata, back.retry_after_ms) == (
            reason, "offset 41 of orders-3", {"high_watermark": "40"}, 150,
        )  # fmt: skip


def test_outcome_is_said_of_writes_only() -> None:
    """A read has no outcome; a write's is its reason's."""
    error = FluxError(Reason.NO_QUORUM, "x")
    assert status.error_message(error, writes=False).outcome == errors_pb2.OUTCOME_UNSPECIFIED
    assert status.error_message(error, writes=True).outcome == errors_pb2.OUTCOME_REJECTED
    assert b"REJECTED" in status.status_bytes(error, writes=True)
    assert b"outcome" not in status.status_bytes(error, writes=False)


def test_long_texts_are_cut() -> None:
    """Details stay far below the 8 KiB that HTTP/2 peers accept as trailers."""
    error = FluxError(Reason.INTERNAL, "x" * 100_000, metadata={"a": "y" * 10_000})
    assert len(status.status_bytes(error, writes=True)) < 2_000


@given(st.binary())
def test_foreign_details_are_not_ours(data: bytes) -> None:
    """Any bytes are either an error of ours or None, never an exception."""
    status.error_from_status(data)


def test_unknown_reason_is_unknown_outcome() -> None:
    """A newer node's reason leaves the outcome open."""
    assert status.error_from_message(errors_pb2.Error(reason=99)).reason is Reason.OUTCOME_UNKNOWN  # type: ignore[arg-type]
