"""One form of an error for each place: `FluxError` in the code, google.rpc.Status as the details of a failed call, and
Error of errors.proto inside a response. All three carry the same content, and the forms are inverse to each other.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from fluxd.core.errors import FluxError, Reason
from fluxlog.v1 import errors_pb2

ERROR_DOMAIN = "fluxlog"
MESSAGE_CHARS_MAX = 1_000
"""Trailers are bounded by HTTP/2 peers (8 KiB by default), and the message stands in them twice."""
VALUE_CHARS_MAX = 300
_OWN_KEYS = frozenset({"outcome", "retriable"})


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _values(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(value, VALUE_CHARS_MAX) for key, value in metadata.items() if key not in _OWN_KEYS}


def status_bytes(error: FluxError, *, writes: bool) -> bytes:
    """Encode as google.rpc.Status, the value of the trailer `grpc-status-details-bin`.

    Args:
        writes: the call writes, so that its outcome is said.
    """
    traits = error.traits
    info = error_details_pb2.ErrorInfo(reason=error.reason.name, domain=ERROR_DOMAIN, metadata=_values(error.metadata))
    info.metadata["retriable"] = "true" if traits.retriable else "false"
    if writes:
        info.metadata["outcome"] = traits.outcome.name
    status = status_pb2.Status(code=code_pb2.Code.Value(traits.status), message=_cut(error.message, MESSAGE_CHARS_MAX))
    status.details.add().Pack(info)
    if error.retry_after_ms > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        status.details.add().Pack(retry)
    encoded: bytes = status.SerializeToString()
    return encoded


def error_from_status(data: bytes) -> FluxError | None:
    """Inverse of `status_bytes`; None when the details are not ours or name a reason that is not known here."""
    status, info, retry = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    try:
        status.ParseFromString(data)
        found = False
        for detail in status.details:
            found = detail.Unpack(info) or found
            detail.Unpack(retry)
    except DecodeError:
        return None
    if not found or info.domain != ERROR_DOMAIN or info.reason not in Reason.__members__:
        return None
    return FluxError(
        Reason[info.reason],
        status.message,
        metadata=_values(info.metadata),
        retry_after_ms=retry.retry_delay.ToMilliseconds(),
    )


def error_message(error: FluxError, *, writes: bool) -> errors_pb2.Error:
    """The same inside a response that spans partitions or requests."""
    traits = error.traits
    outcome = traits.outcome.value if writes else errors_pb2.OUTCOME_UNSPECIFIED
    return errors_pb2.Error(
        reason=errors_pb2.ErrorReason.ValueType(error.reason.value),
        outcome=errors_pb2.Outcome.ValueType(outcome),
        retriable=traits.retriable,
        message=_cut(error.message, MESSAGE_CHARS_MAX),
        metadata=_values(error.metadata),
        retry_after_ms=error.retry_after_ms,
    )


def error_from_message(message: errors_pb2.Error) -> FluxError:
    """Inverse of `error_message`; a reason that is not known here becomes OUTCOME_UNKNOWN."""
    known = {reason.value: reason for reason in Reason}
    return FluxError(
        known.get(int(message.reason), Reason.OUTCOME_UNKNOWN),
        message.message,
        metadata=dict(message.metadata),
        retry_after_ms=message.retry_after_ms,
    )
