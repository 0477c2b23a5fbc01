"""How this node connects to others: channel options, a plain probe of the port, and Hello."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from fluxd.config import split_address
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_from_status
from fluxd.core.types import NodeId
from fluxd.peer.identity import Identity
from fluxd.peer.proof import PROOF_KEY, prove, verify_answer
from fluxlog.v1 import peer_pb2

PEER_MESSAGE_BYTES_MAX = 2 * limits.GRPC_MESSAGE_BYTES_MAX
"""What one message of a link may have: a frame of a link holds at least one Raft message, however large."""

HELLO_TIMEOUT = 2.0
_KNOCK_TIMEOUT = 1.0
_DETAILS_KEY = "grpc-status-details-bin"
_HELLO = "/fluxlog.v1.Peer/Hello"

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", PEER_MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", PEER_MESSAGE_BYTES_MAX),
    # A connection of its own for each channel: control never waits behind bulk's bytes.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # so long may one attempt to connect take, whatever its name says
    ("grpc.max_reconnect_backoff_ms", 500),
    # A peer that is silent without having closed its connection is noticed within these.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # a minute otherwise, whatever keepalive says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


class PeerUnreachable(Exception):
    """A call to another node failed without an answer of ours. Whether it was carried out is not known."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Door(Enum):
    """What knocking at a port showed."""

    OPEN = 1
    CLOSED = 2
    """Refused: no process listens there."""
    SILENT = 3
    """No answer in time, no route, or no such name."""


class Network(Protocol):
    """How nodes reach each other: handed in, so that a simulation can have its own."""

    def open_channel(self, address: str) -> aio.Channel:
        """A channel to another node, with a connection of its own. It connects when it is first used."""

    async def knock(self, address: str) -> Door:
        """Connect and hang up: the one way to tell at once a process that is gone from one that is slow."""


class GrpcNetwork:
    """The real one."""

    def open_channel(self, address: str) -> aio.Channel:
        """See `Network`."""
        return aio.insecure_channel(address, options=OPTIONS)

    async def knock(self, address: str) -> Door:
        """See `Network`. Waits _KNOCK_TIMEOUT at most."""
        host, port = split_address(address)
        try:
            async with asyncio.timeout(_KNOCK_TIMEOUT):
                _, writer = await asyncio.open_connection(host.strip("[]"), port)
        except ConnectionRefusedError:
            return Door.CLOSED
        except (OSError, TimeoutError):
            return Door.SILENT
        writer.close()
        return Door.OPEN


GRPC_NETWORK = GrpcNetwork()


def error_of(error: aio.AioRpcError) -> FluxError | PeerUnreachable:
    """What a failed call means: the other node's judgement where it gave one."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            known = error_from_status(value)
            if known is not None:
                return known
    timed_out = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return PeerUnreachable(f"{error.code().name}: {error.details()}", timed_out=timed_out)


async def say_hello(
    channel: aio.Channel, me: Identity, secret: bytes, peer: NodeId, timeout_s: float = HELLO_TIMEOUT
) -> peer_pb2.HelloResponse:
    """Ask the node behind a channel who it is, and check that it knows the secret and is the one expected.

    Raises:
        FluxError: it refused us, or it is not whom we expect (UNAUTHENTICATED, WRONG_CLUSTER, NODE_ID_IN_USE, …).
        PeerUnreachable: no answer.
    """
    caller = me.call_to(peer)
    method: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_HELLO)
    call = method(
        me.hello_request().SerializeToString(),
        metadata=aio.Metadata(*prove(secret, caller)),
        timeout=timeout_s,
    )
    try:
        data = await call
        trailers = {key: value for key, value in await call.trailing_metadata() or () if isinstance(value, str)}
    except aio.AioRpcError as error:
        raise error_of(error) from None
    if not verify_answer(secret, trailers.get(PROOF_KEY, ""), caller.nonce, peer):
        raise FluxError(Reason.UNAUTHENTICATED, f"node {peer} did not prove that it knows the cluster secret")
    try:
        answer = peer_pb2.HelloResponse.FromString(data)
    except DecodeError as error:
        raise PeerUnreachable(f"node {peer} answered what cannot be read: {error}") from None
    if answer.cluster_id and me.cluster_id and answer.cluster_id != me.cluster_id:
        raise FluxError(
            Reason.WRONG_CLUSTER, f"node {peer} belongs to cluster {answer.cluster_id}, this node to {me.cluster_id}"
        )
    return answer
