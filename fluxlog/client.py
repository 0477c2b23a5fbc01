"""Channels to the nodes of one cluster, and calls that go to the next node when one does not answer.

Any node serves any request, so fail-over is no more than asking another address. Whether a call may be sent again after
an unclear answer is the caller's choice (`safe`).

Synchronous: made for command lines and tools. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc

from fluxlog.errors import FluxlogError, LocalError, Outcome, UnreachableError, from_rpc_error
from fluxlog.v1 import admin_pb2, admin_pb2_grpc, log_pb2_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")

_CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    # A node that comes back must be found within moments; the default grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A node that has fallen silent (stopped, cut off, without power) is noticed within moments, not when a call's own
    # time is up: only then another one is asked.
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_500),
    ("grpc.http2.ping_timeout_ms", 1_500),  # a minute otherwise, whatever keepalive says
    ("grpc.http2.max_pings_without_data", 0),
    # Retries are ours, since only we know which are safe.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_ROUND_PAUSE_MIN = 0.05
_ROUND_PAUSE_MAX = 0.5
_PING = admin_pb2.DescribeClusterRequest()
_PING_TIMEOUT = 3.0


class Node:
    """One address: its channel and the generated stubs on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self.log = log_pb2_grpc.LogStub(self.channel)
        self.admin = admin_pb2_grpc.AdminStub(self.channel)


def parse_bootstrap(text: str) -> list[str]:
    """Split "host:port,host:port".

    Raises:
        LocalError: empty, or an item without a port in 1..65,535.
    """
    addresses = [item.strip() for item in text.split(",") if item.strip()]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
            raise LocalError("INVALID_ARGUMENT", f"not host:port: {address!r}")
    if not addresses:
        raise LocalError("INVALID_ARGUMENT", "no bootstrap address")
    return addresses


class Client:
    """The way to one cluster.

    Args:
        bootstrap: "host:port" of one or more nodes; the others are learned from what they answer.
        on_retry: called with each failure that leads to another attempt.
    """

    def __init__(self, bootstrap: Sequence[str], *, on_retry: Callable[[FluxlogError], None] | None = None) -> None:
        if not bootstrap:
            raise LocalError("INVALID_ARGUMENT", "no bootstrap address")
        self._on_retry = on_retry
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._order: list[str] = list(dict.fromkeys(bootstrap))
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every channel; calls under way end with CANCELLED."""
        with self._lock:
            self._closed = True
            nodes, self._nodes = list(self._nodes.values()), {}
        for node in nodes:
            node.channel.close()

    def node(self, address: str) -> Node:
        """The channel to an address, opened when first asked for."""
        with self._lock:
            if self._closed:
                raise LocalError("CANCELLED", "the client is closed")
            if address not in self._nodes:
                self._nodes[address] = Node(address)
            return self._nodes[address]

    def addresses(self) -> list[str]:
        """Every address known, the one that answered last first."""
        with self._lock:
            return list(self._order)

    def remember(self, addresses: Iterable[str]) -> None:
        """Add addresses that a node told."""
        with self._lock:
            self._order += [address for address in dict.fromkeys(addresses) if address and address not in self._order]

    def next_address(self, failed: str) -> str:
        """The address to try after one that failed (round robin; the same one where there is no other)."""
        order = self.addresses()
        return order[(order.index(failed) + 1) % len(order)] if failed in order else order[0]

    def learn_nodes(self, *, timeout: float = 5.0) -> admin_pb2.DescribeClusterResponse:
        """Ask for the cluster's nodes and remember their addresses."""
        answer = self.call(lambda node: node.admin.DescribeCluster, admin_pb2.DescribeClusterRequest(), timeout=timeout)
        self.remember(node.address for node in answer.nodes)
        return answer

    def call(
        self,
        method: Callable[[Node], grpc.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        timeout: float = 10.0,
        patience: float = 0.0,
        safe: bool = True,
    ) -> Response:
        """Make one call on any node that answers it.

        Args:
            method: picks the call of a node, for instance `lambda node: node.admin.ListTopics`.
            timeout: seconds for one attempt.
            patience: seconds in which to go round again while every failure is one that can pass.
            safe: the call may be sent again although an earlier attempt may have had its effect.

        Raises:
            FluxlogError: the most telling failure. UnreachableError: no node answered at all.
        """
        give_up_at = time.monotonic() + patience
        pause = _ROUND_PAUSE_MIN
        while True:
            failures: list[FluxlogError] = []
            for address in self.addresses():
                sent = safe
                try:
                    if not safe:  # a dead address must not leave the call's effect in doubt
                        self.call_node(address, lambda node: node.admin.DescribeCluster, _PING, timeout=_PING_TIMEOUT)
                    sent = True
                    return self.call_node(address, method, request, timeout=timeout)
                except FluxlogError as failure:
                    if sent and not _may_go_on(failure, safe=safe):
                        raise
                    failures.append(failure)
                    self._note_retry(failure)
            if time.monotonic() >= give_up_at:
                raise _most_telling(failures, Outcome.UNKNOWN if safe else Outcome.REJECTED)
            time.sleep(pause)
            pause = min(2 * pause, _ROUND_PAUSE_MAX)

    def call_node(
        self,
        address: str,
        method: Callable[[Node], grpc.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        timeout: float = 10.0,
    ) -> Response:
        """Make one call on one node, once.

        Raises:
            FluxlogError: whatever went wrong.
        """
        node = self.node(address)
        try:
            response = method(node)(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=address) from error
        self._prefer(address)
        return response

    def _prefer(self, address: str) -> None:
        with self._lock:
            if self._order[0] != address:
                self._order = [address, *(other for other in self._order if other != address)]

    def _note_retry(self, failure: FluxlogError) -> None:
        if self._on_retry is not None:
            self._on_retry(failure)


def _may_go_on(failure: FluxlogError, *, safe: bool) -> bool:
    """Another attempt can help, and cannot do harm."""
    return failure.retriable and (safe or (failure.from_server and failure.outcome is Outcome.REJECTED))


def _most_telling(failures: Sequence[FluxlogError], outcome: Outcome) -> FluxlogError:
    for failure in failures:
        if failure.from_server:
            return failure
    addresses = ", ".join(failure.address for failure in failures)
    return UnreachableError(
        "UNREACHABLE",
        f"no node answers at {addresses}: {failures[0].message}",
        outcome=outcome,
        retriable=True,
    )
