"""`fluxd health`: asks the node on this machine whether it serves, by the gRPC health service.

Made for a container's health check, which runs it every few seconds: `python -m fluxd.health` imports nothing but grpc
(0.1 s of one core), where the whole server would cost four times as much. The service name is empty, so the request
is the empty message and SERVING is two bytes: no stubs are needed.
"""

from __future__ import annotations

import os
import sys
from typing import cast

import grpc

LISTEN_VARIABLE = "FLUXD_LISTEN"
DEFAULT_PORT = "9640"
TIMEOUT_S = 2.0
_METHOD = "/grpc.health.v1.Health/Check"
_STATUS_FIELD = 0x08  # field 1, varint
_STATUS_NAMES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING"}


def check(address: str, timeout_s: float = TIMEOUT_S) -> str:
    """Ask a node once.

    Args:
        address: host:port; a wildcard host means this machine.

    Returns:
        SERVING, NOT_SERVING (it starts, or stops, or waits for its cluster), or why there is no answer.
    """
    with grpc.insecure_channel(_reachable(address), options=[("grpc.enable_http_proxy", 0)]) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        try:
            answer = call(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            failed = cast(grpc.Call, error)
            return f"{failed.code().name}: {failed.details()}"
    return _STATUS_NAMES.get(_status_of(answer), "UNKNOWN")


def _reachable(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("", "0.0.0.0", "[::]") else address


def _status_of(answer: bytes) -> int:
    """Field 1 of a HealthCheckResponse; a default value is not on the wire."""
    return answer[1] if len(answer) == 2 and answer[0] == _STATUS_FIELD else 0


def default_address() -> str:
    """$FLUXD_LISTEN, or the default port of this machine."""
    return os.environ.get(LISTEN_VARIABLE) or f"127.0.0.1:{DEFAULT_PORT}"


def run(address: str = "") -> int:
    """Print the answer; 0 when it is SERVING, 1 otherwise."""
    said = check(address or default_address())
    print(said)  # noqa: T201 - the engine keeps it as the health check's output
    return 0 if said == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:2]))
