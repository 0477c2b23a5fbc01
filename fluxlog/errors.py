"""What can go wrong, as the client sees it.

A server's refusal carries google.rpc.ErrorInfo (see errors.proto). Everything that does not (a broken connection, a
deadline, a proxy's answer) is an error too, but says nothing about whether a write happened: its outcome is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from fluxlog.v1 import errors_pb2

ERROR_DOMAIN = "fluxlog"
_DETAILS_KEY = "grpc-status-details-bin"

# Statuses that, without details of ours, come from the way to the server rather than from its judgement of the call.
_TRANSPORT_STATUSES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "ABORTED"})


class Outcome(Enum):
    """What became of a write. Never blurred."""

    COMMITTED = errors_pb2.OUTCOME_COMMITTED
    REJECTED = errors_pb2.OUTCOME_REJECTED
    UNKNOWN = errors_pb2.OUTCOME_UNKNOWN


class FluxlogError(Exception):
    """A call failed.

    Attributes:
        reason: name of an ErrorReason without its prefix ("NOT_LEADER"); for a failure without details of the server
            the name of the gRPC status ("UNAVAILABLE"), see `from_server`.
        outcome: REJECTED: nothing was written. UNKNOWN: it may have been. Means something for calls that write only.
        retriable: the same call can succeed later without change.
        message: for people.
        metadata: named values of the condition, for instance missing_nodes.
        retry_after_ms: above 0: do not retry sooner.
        from_server: the reason is a server's, not the transport's.
        address: "host:port" of the node that was asked, where known.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        retriable: bool = False,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int = 0,
        from_server: bool = False,
        address: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.outcome = outcome
        self.retriable = retriable
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_ms = retry_after_ms
        self.from_server = from_server
        self.address = address

    def __str__(self) -> str:
        return self.message

    @property
    def leader_address(self) -> str:
        """ "host:port" of the leader as the server knows it, or empty."""
        return self.metadata.get("leader_address", "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason}, {self.outcome.name}, {self.message!r}, {self.metadata!r})"


class OffsetOutOfRangeError(FluxlogError):
    """The offset is below the log start or above the high watermark. Not retriable unchanged."""

    @property
    def log_start_offset(self) -> int:
        """First offset that is still kept."""
        return int(self.metadata.get("log_start_offset", "0"))

    @property
    def high_watermark(self) -> int:
        """First offset that is not committed yet (exclusive)."""
        return int(self.metadata.get("high_watermark", "0"))


class UnreachableError(FluxlogError):
    """None of the addresses answered. Retriable. `outcome` is UNKNOWN where some node was sent what changes something,
    and its answer did not come."""


class LocalError(FluxlogError):
    """Refused by this library before anything was sent: nothing was written. Never retriable unchanged."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, outcome=Outcome.REJECTED)


class DeliveryError(FluxlogError):
    """A record was not acknowledged. `outcome` and the class say the same."""

    def __init__(self, cause: FluxlogError, topic: str, partition: int) -> None:
        super().__init__(
            cause.reason,
            cause.message,
            outcome=self.kind,
            retriable=cause.retriable,
            metadata=cause.metadata,
            retry_after_ms=cause.retry_after_ms,
            from_server=cause.from_server,
            address=cause.address,
        )
        self.topic = topic
        self.partition = partition

    kind = Outcome.UNKNOWN


class RejectedError(DeliveryError):
    """The record was not written, and will not be. It may be sent again, at the price of its order."""

    kind = Outcome.REJECTED


class UnknownOutcomeError(DeliveryError):
    """The record may have been written, or may still be. Sending it again may write it twice."""


class BufferFullError(LocalError):
    """More records wait for their acknowledgement than the producer may hold: nothing was taken."""

    def __init__(self, message: str) -> None:
        super().__init__("BUFFER_FULL", message)


def _build(reason: str, message: str, **fields: object) -> FluxlogError:
    kind = OffsetOutOfRangeError if reason == "OFFSET_OUT_OF_RANGE" else FluxlogError
    return kind(reason, message, **fields)  # type: ignore[arg-type]


def from_rpc_error(error: Exception, *, address: str = "") -> FluxlogError:
    """Map a failed call.

    Args:
        error: the grpc.RpcError as it was raised (it is a grpc.Call too, or an aio.AioRpcError).
        address: of the node that was asked.

    Returns:
        The server's reason where its details are there and are ours; otherwise the bare status, outcome UNKNOWN.
    """
    status, text = "UNKNOWN", str(error)
    if isinstance(error, grpc.Call | aio.AioRpcError):
        status, text = getattr(error.code(), "name", "UNKNOWN"), error.details() or text
    rich = _rich_status(error)
    if rich is not None:
        info, retry_after_ms, message = rich
        metadata = dict(info.metadata)
        return _build(
            info.reason,
            message or text,
            outcome=Outcome.REJECTED if metadata.get("outcome") == "REJECTED" else Outcome.UNKNOWN,
            retriable=metadata.get("retriable") == "true",
            metadata=metadata,
            retry_after_ms=retry_after_ms,
            from_server=True,
            address=address,
        )
    where = f"{address}: " if address else ""
    return FluxlogError(status, f"{where}{text}", retriable=status in _TRANSPORT_STATUSES, address=address)


def _rich_status(error: Exception) -> tuple[error_details_pb2.ErrorInfo, int, str] | None:
    """ErrorInfo of ours, retry delay in milliseconds, message; None when the call's details hold no such thing."""
    if not isinstance(error, grpc.Call | aio.AioRpcError):
        return None
    blob = next((value for key, value in error.trailing_metadata() or () if key == _DETAILS_KEY), None)
    if not isinstance(blob, bytes):
        return None
    status, info, retry = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found, retry_after_ms = False, 0
    try:
        status.ParseFromString(blob)
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
                found = info.domain == ERROR_DOMAIN
            elif detail.Is(retry.DESCRIPTOR):
                detail.Unpack(retry)
                retry_after_ms = retry.retry_delay.ToMilliseconds()
    except ValueError:  # protobuf's DecodeError: these are not details of ours
        return None
    return (info, retry_after_ms, status.message) if found else None


def from_error_message(error: errors_pb2.Error, *, address: str = "") -> FluxlogError:
    """Map an Error inside a response (ProduceStream, ListOffsets, DescribeTopics)."""
    try:
        reason = errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    except ValueError:  # a newer server's reason
        reason = f"REASON_{error.reason}"
    return _build(
        reason,
        error.message or reason,
        outcome=Outcome.REJECTED if error.outcome == errors_pb2.OUTCOME_REJECTED else Outcome.UNKNOWN,
        retriable=error.retriable,
        metadata=dict(error.metadata),
        retry_after_ms=error.retry_after_ms,
        from_server=True,
        address=address,
    )
