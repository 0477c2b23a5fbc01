"""Channels to the nodes of one cluster, and calls that go to the next node when one does not answer.

Any node serves any request, so fail-over is no more than asking another address. Whether a call may be sent again after
an unclear answer depends on its effect.

Synchronous: made for command lines and tools. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc

from fluxlog import forks
from fluxlog.addresses import CHANNEL_OPTIONS, AddressBook, parse_bootstrap
from fluxlog.attempts import ROUND_PAUSE_MAX, ROUND_PAUSE_MIN, Attempts, Effect
from fluxlog.errors import FluxlogError, LocalError, Outcome, from_rpc_error
from fluxlog.v1 import admin_pb2, admin_pb2_grpc, groups_pb2_grpc, log_pb2_grpc

__all__ = ["Client", "Node", "parse_bootstrap"]

Request = TypeVar("Request")
Response = TypeVar("Response")

_PING = admin_pb2.DescribeClusterRequest()
_PING_TIMEOUT = 3.0


class Node:
    """One address: its channel and the generated stubs on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        forks.note_use()
        self.channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.log = log_pb2_grpc.LogStub(self.channel)
        self.admin = admin_pb2_grpc.AdminStub(self.channel)
        self.groups = groups_pb2_grpc.GroupsStub(self.channel)


class Client:
    """The way to one cluster.

    Args:
        bootstrap: "host:port" of one or more nodes; the others are learned from what they answer.
        on_retry: called with each failure that leads to another attempt.
    """

    def __init__(self, bootstrap: Sequence[str], *, on_retry: Callable[[FluxlogError], None] | None = None) -> None:
        self._on_retry = on_retry
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._book = AddressBook(bootstrap)
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
        """The channel to an address, opened when first asked for.

        Raises:
            LocalError: CANCELLED after `close`; FORKED.
        """
        forks.check_process()
        with self._lock:
            if self._closed:
                raise LocalError("CANCELLED", "the client is closed")
            if address not in self._nodes:
                self._nodes[address] = Node(address)
            return self._nodes[address]

    def addresses(self) -> list[str]:
        """Every address known, the one that answered last first."""
        with self._lock:
            return self._book.addresses()

    def remember(self, addresses: Iterable[str]) -> None:
        """Add addresses that a node told."""
        with self._lock:
            self._book.remember(addresses)

    def next_address(self, failed: str) -> str:
        """The address to try after one that failed (round robin; the same one where there is no other)."""
        with self._lock:
            return self._book.next_address(failed)

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
        effect: Effect = Effect.NONE,
    ) -> Response:
        """Make one call on any node that answers it.

        Args:
            method: picks the call of a node, for instance `lambda node: node.admin.ListTopics`.
            timeout: seconds for one attempt.
            patience: seconds in which to go round again while every failure is one that can pass.
            effect: of the call when it is sent again.

        Raises:
            FluxlogError: the most telling failure; outcome UNKNOWN if some attempt may have had its effect.
            UnreachableError: no node answered at all.
        """
        forks.check_process()
        give_up_at = time.monotonic() + patience
        pause = ROUND_PAUSE_MIN
        attempts = Attempts(effect)
        while True:
            for address in self.addresses():
                sent = False
                try:
                    if attempts.changes:
                        self.reach(address)
                    sent = True
                    return self.call_node(address, method, request, timeout=timeout)
                except FluxlogError as failure:
                    attempts.failed(failure, sent=sent)
                    self._note_retry(failure)
            failure_of_all = attempts.end_round()
            if time.monotonic() >= give_up_at:
                raise failure_of_all
            time.sleep(pause)
            pause = min(2 * pause, ROUND_PAUSE_MAX)

    def reach(self, address: str) -> None:
        """Have a node answer something that changes nothing, before it is sent what does.

        Raises:
            FluxlogError: it does not answer; outcome REJECTED.
        """
        try:
            self.call_node(address, lambda node: node.admin.DescribeCluster, _PING, timeout=_PING_TIMEOUT)
        except FluxlogError as failure:
            failure.outcome = Outcome.REJECTED
            raise

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
        except ValueError as error:  # closed meanwhile
            raise LocalError("CANCELLED", f"{address}: {error}") from error
        self._prefer(address)
        return response

    def start_call(
        self,
        address: str,
        method: Callable[[Node], grpc.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        timeout: float,
        on_end: Callable[[Response | FluxlogError], None],
    ) -> grpc.Future[Response]:
        """As `call_node`, without waiting for the answer.

        Args:
            on_end: called once with the answer or the failure, on a thread of gRPC's. Must not block.

        Raises:
            LocalError: CANCELLED: the client is closed; `on_end` is not called.
        """
        node = self.node(address)
        try:
            call = method(node).future(request, timeout=timeout)
        except ValueError as error:  # closed meanwhile
            raise LocalError("CANCELLED", f"{address}: {error}") from error

        def end(_: object) -> None:
            outcome = self._end_of(address, call)
            on_end(outcome)

        call.add_done_callback(end)
        return call

    def _end_of(self, address: str, call: grpc.Future[Response]) -> Response | FluxlogError:
        try:
            response = call.result()
        except grpc.RpcError as error:
            return from_rpc_error(error, address=address)
        except grpc.FutureCancelledError:
            return LocalError("CANCELLED", f"the call to {address} was cancelled")
        self._prefer(address)
        return response

    def _prefer(self, address: str) -> None:
        with self._lock:
            self._book.prefer(address)

    def _note_retry(self, failure: FluxlogError) -> None:
        if self._on_retry is not None:
            self._on_retry(failure)
