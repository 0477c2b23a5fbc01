"""The Peer service: Hello, and the two streams on which another node's Raft messages arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.peer.proof import PROOF_KEY
from fluxd.peer.reception import Reception
from fluxd.rpc.handling import Context, bidi_stream, parse, unary
from fluxlog.v1 import peer_pb2

_OPENED = peer_pb2.StreamOpened().SerializeToString()


class Inbox(Protocol):
    """Where frames go. Called on the loop; must not raise anything else."""

    def receive_frame(self, peer: NodeId, frame: peer_pb2.PeerFrame) -> None:
        """Messages and status of that peer.

        Raises:
            FluxError: a part of it is malformed.
        """

    def called_by(self, peer: NodeId) -> None:
        """That peer has opened a connection."""


class PeerService:
    """Handlers of fluxlog.v1.Peer."""

    def __init__(self, reception: Reception, inbox: Inbox) -> None:
        self._reception = reception
        self._inbox = inbox

    def handlers(self) -> grpc.GenericRpcHandler:
        """For a server."""
        return grpc.method_handlers_generic_handler(
            "fluxlog.v1.Peer",
            {
                "Hello": unary("Peer/Hello", self._hello),
                "Control": bidi_stream("Peer/Control", self._stream),
                "Bulk": bidi_stream("Peer/Bulk", self._stream),
            },
        )

    async def _hello(self, request: bytes, context: Context) -> bytes:
        caller = self._reception.admit(context.invocation_metadata() or (), context.peer())
        parse(peer_pb2.HelloRequest, request)
        response, proof = self._reception.answer(caller)
        context.set_trailing_metadata(((PROOF_KEY, proof),))
        return response.SerializeToString()

    async def _stream(self, frames: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        caller = self._reception.admit_member(context.invocation_metadata() or (), context.peer())
        self._inbox.called_by(caller.node_id)
        yield _OPENED
        async for data in frames:
            try:
                frame = peer_pb2.PeerFrame.FromString(data)
            except DecodeError as error:
                raise FluxError(Reason.INVALID_ARGUMENT, f"{len(data)} bytes are not a PeerFrame") from error
            self._inbox.receive_frame(caller.node_id, frame)
