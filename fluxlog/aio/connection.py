"""Channels to the nodes of one cluster, one per node, and calls that go to the next node when one does not answer.

The asyncio counterpart of fluxlog/client.py. Belongs to the loop on which it was made; not thread-safe.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc import aio

from fluxlog import forks
from fluxlog.addresses import CHANNEL_OPTIONS, AddressBook, parse_bootstrap
from fluxlog.aio.tasks import was_cancelled
from fluxlog.attempts import ROUND_PAUSE_MAX, ROUND_PAUSE_MIN, Attempts, Effect
from fluxlog.errors import FluxlogError, LocalError, Outcome, from_rpc_error
from fluxlog.v1 import admin_pb2, admin_pb2_grpc, groups_pb2_grpc, log_pb2_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")

_PING = admin_pb2.DescribeClusterRequest()
_PING_TIMEOUT = 3.0


class Node:
    """One address: its channel and the generated stubs on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        forks.note_use()
        self.channel = aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.log: log_pb2_grpc.LogAsyncStub = log_pb2_grpc.LogStub(self.channel)
        self.admin: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(self.channel)
        self.groups: groups_pb2_grpc.GroupsAsyncStub = groups_pb2_grpc.GroupsStub(self.channel)


class Connection:
    """The way to one cluster. Producers, consumers and admins may share one.

    Args:
        bootstrap: "host:port" of one or more nodes, as a list or with commas; the others are learned.
        on_retry: called with each failure that leads to another attempt.

    Raises:
        LocalError: no address, or one that is none.
    """

    def __init__(
        self, bootstrap: str | Sequence[str], *, on_retry: Callable[[FluxlogError], None] | None = None
    ) -> None:
        addresses = parse_bootstrap(bootstrap if isinstance(bootstrap, str) else ",".join(bootstrap))
        self._book = AddressBook(addresses)
        self._on_retry = on_retry
        self._nodes: dict[str, Node] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every channel; calls under way end with CANCELLED."""
        self._closed = True
        nodes, self._nodes = list(self._nodes.values()), {}
        for node in nodes:
            await node.channel.close()

    def node(self, address: str) -> Node:
        """The channel to an address, opened when first asked for.

        Raises:
            LocalError: CANCELLED after `close`; FORKED.
        """
        forks.check_process()
        node = self._nodes.get(address)
        if node is None:
            if self._closed:
                raise LocalError("CANCELLED", "the connection is closed")
            node = self._nodes[address] = Node(address)
        return node

    def addresses(self) -> list[str]:
        """Every address known, the one that answered last first."""
        return self._book.addresses()

    def remember(self, addresses: Iterable[str]) -> None:
        """Add addresses that a node told."""
        self._book.remember(addresses)

    def next_address(self, failed: str) -> str:
        """The address to try after one that failed (round robin; the same one where there is no other)."""
        return self._book.next_address(failed)

    async def learn_nodes(self, *, timeout_s: float = 5.0) -> admin_pb2.DescribeClusterResponse:
        """Ask for the cluster's nodes and remember their addresses."""
        answer = await self.call(lambda node: node.admin.DescribeCluster, _PING, timeout_s=timeout_s)
        self.remember(node.address for node in answer.nodes)
        return answer

    async def call(
        self,
        method: Callable[[Node], aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        timeout_s: float = 10.0,
        patience: float = 0.0,
        effect: Effect = Effect.NONE,
    ) -> Response:
        """Make one call on any node that answers it.

        Args:
            method: picks the call of a node, for instance `lambda node: node.admin.ListTopics`.
            timeout_s: seconds for one attempt.
            patience: seconds in which to go round again while every failure is one that can pass.
            effect: of the call when it is sent again.

        Raises:
            FluxlogError: the most telling failure; outcome UNKNOWN if some attempt may have had its effect.
            UnreachableError: no node answered at all.
        """
        forks.check_process()
        give_up_at, pause = time.monotonic() + patience, ROUND_PAUSE_MIN
        attempts = Attempts(effect)
        while True:
            for address in self.addresses():
                sent = False
                try:
                    if attempts.changes:
                        await self.reach(address)
                    sent = True
                    return await self.call_node(address, method, request, timeout_s=timeout_s)
                except FluxlogError as failure:
                    attempts.failed(failure, sent=sent)
                    if self._on_retry is not None:
                        self._on_retry(failure)
            failure_of_all = attempts.end_round()
            if time.monotonic() >= give_up_at:
                raise failure_of_all
            await asyncio.sleep(pause)
            pause = min(2 * pause, ROUND_PAUSE_MAX)

    async def reach(self, address: str) -> None:
        """Have a node answer something that changes nothing, before it is sent what does.

        Raises:
            FluxlogError: it does not answer; outcome REJECTED.
        """
        try:
            await self.call_node(address, lambda node: node.admin.DescribeCluster, _PING, timeout_s=_PING_TIMEOUT)
        except FluxlogError as failure:
            failure.outcome = Outcome.REJECTED
            raise

    async def call_node(
        self,
        address: str,
        method: Callable[[Node], aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        timeout_s: float = 10.0,
    ) -> Response:
        """Make one call on one node, once.

        Raises:
            FluxlogError: whatever went wrong.
        """
        node = self.node(address)
        try:
            response = await method(node)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=address) from error
        except aio.UsageError as error:  # closed before it was made
            raise LocalError("CANCELLED", f"{address}: {error}") from error
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            closed = f"the connection to {address} was closed during a call"
            raise FluxlogError("CANCELLED", closed, address=address) from None
        self._book.prefer(address)
        return response


def connection_of(cluster: str | Sequence[str] | Connection, **options: Any) -> tuple[Connection, bool]:
    """A connection, and whether it was made here and is to be closed by whom asked."""
    if isinstance(cluster, Connection):
        return cluster, False
    return Connection(cluster, **options), True
