"""The edge: a FluxError ends a call with its status and details."""

from __future__ import annotations

import grpc
from grpc import aio

from fluxd.core.errors import TRAITS, FluxError
from fluxd.core.status import MESSAGE_CHARS_MAX, status_bytes

DETAILS_KEY = "grpc-status-details-bin"

STATUS_CODES = {reason: grpc.StatusCode[traits.status] for reason, traits in TRAITS.items()}


def set_error(context: aio.ServicerContext[bytes, bytes], error: FluxError, *, writes: bool) -> None:
    """Make the call end with the error's status once its handler returns."""
    context.set_code(STATUS_CODES[error.reason])
    context.set_details(error.message[:MESSAGE_CHARS_MAX])
    context.set_trailing_metadata(((DETAILS_KEY, status_bytes(error, writes=writes)),))
