"""The way to one other node: a Hello, then one stream for control and one for bulk, for as long as they stand.

Each on a connection of its own, so that a heartbeat never waits behind a megabyte. What comes back arrives on the other
node's own link. When a stream breaks both are given up, what was queued is dropped (Raft sends again), and the port is
knocked at: refused means that the process is gone, which Raft may act on at once instead of waiting for an
election timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from grpc import aio

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.observability import get_logger
from fluxd.peer.channels import GRPC_NETWORK, Door, Network, PeerUnreachable, error_of, say_hello
from fluxd.peer.identity import Identity
from fluxd.peer.outbox import CONTROL_BYTES_MAX, Outbox
from fluxd.peer.proof import prove
from fluxlog.v1 import peer_pb2

RETRY_MIN = 0.05
RETRY_MAX = 1.0
OPEN_TIMEOUT = 2.0

log = get_logger()


class LinkEvents(Protocol):
    """What a link tells. Called on the loop; must not raise."""

    def link_up(self, peer: NodeId, hello: peer_pb2.HelloResponse) -> None:
        """Both streams stand."""

    def link_down(self, peer: NodeId, *, gone: bool) -> None:
        """The streams broke (gone=False), or (gone=True, also when there were none) nobody listens at the address."""

    def link_refused(self, peer: NodeId, error: FluxError) -> None:
        """The other node refuses us, or is not whom we expect. Told again at every attempt."""


class Link:
    """One peer. `send` may be called at any time; `run` is a task for the node's life."""

    def __init__(
        self, peer: NodeId, address: str, me: Identity, secret: bytes, network: Network = GRPC_NETWORK
    ) -> None:
        self.peer = peer
        self.address = address
        self.connected = False
        self.directory_id = b""
        """Of the node at the other end, while connected."""
        self._me = me
        self._secret = secret
        self._network = network
        self._gone = False
        self._retry_now = asyncio.Event()
        self.control = Outbox(CONTROL_BYTES_MAX)
        self.bulk = Outbox(limits.PEER_BULK_BYTES_MAX)

    def send(self, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """Queue one message; False when it was dropped."""
        bulk = frames or message.WhichOneof("body") == "copy_reply"
        return self.connected and (self.bulk if bulk else self.control).put(message, frames)

    def retry_now(self) -> None:
        """The peer was heard from: do not wait for the next attempt."""
        if not self.connected:
            self._retry_now.set()

    async def run(self, events: LinkEvents) -> None:
        """Connect, and connect again, until cancelled."""
        pause = RETRY_MIN
        while True:
            if await self._is_open(events) and await self._session(events):
                pause = RETRY_MIN
                await self._is_open(events)  # tells at once when the process has gone
            await self._pause(pause)
            pause = min(2 * pause, RETRY_MAX)

    async def _is_open(self, events: LinkEvents) -> bool:
        """Knock. That nobody is there is told once."""
        door = await self._network.knock(self.address)
        if door is Door.CLOSED and not self._gone:
            events.link_down(self.peer, gone=True)
        if door is not Door.SILENT:
            self._gone = door is Door.CLOSED
        return door is Door.OPEN

    async def _pause(self, seconds: float) -> None:
        self._retry_now.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._retry_now.wait()
        except TimeoutError:
            pass

    async def _session(self, events: LinkEvents) -> bool:
        """One connection, from Hello until it breaks. True when it had been up."""
        channels = tuple(self._network.open_channel(self.address) for _ in range(2))
        try:
            hello = await say_hello(channels[0], self._me, self._secret, self.peer)
            if hello.cluster_id != self._me.cluster_id:
                raise FluxError(Reason.NOT_READY, f"node {self.peer} has not joined the cluster yet")
            streams = [self._open(channel, name) for channel, name in zip(channels, ("Control", "Bulk"), strict=True)]
            async with asyncio.timeout(OPEN_TIMEOUT):
                for stream in streams:
                    if await stream.read() is aio.EOF:
                        raise PeerUnreachable("the stream ended at once")
            await self._stand(hello, streams, events)
            return True
        except FluxError as error:
            if error.reason is not Reason.NOT_READY:
                events.link_refused(self.peer, error)
        except aio.AioRpcError as rpc_error:
            failure = error_of(rpc_error)
            if isinstance(failure, FluxError):
                events.link_refused(self.peer, failure)
        except (PeerUnreachable, TimeoutError):
            pass
        finally:
            for channel in channels:
                await channel.close()
        return False

    def _open(self, channel: aio.Channel, name: str) -> aio.StreamStreamCall[bytes, bytes]:
        metadata = aio.Metadata(*prove(self._secret, self._me.call_to(self.peer)))
        method: aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/fluxlog.v1.Peer/{name}")
        return method(metadata=metadata)

    async def _stand(
        self, hello: peer_pb2.HelloResponse, streams: list[aio.StreamStreamCall[bytes, bytes]], events: LinkEvents
    ) -> None:
        """Both streams are open: send what is queued until one of them breaks."""
        tasks = [asyncio.ensure_future(stream.read()) for stream in streams]
        tasks += [
            asyncio.ensure_future(self._write(s, box))
            for s, box in zip(streams, (self.control, self.bulk), strict=True)
        ]
        self.directory_id = hello.directory_id
        self.connected = True
        log.info("peer_connected", peer=self.peer, address=self.address, process_id=hello.process_id)
        events.link_up(self.peer, hello)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.connected = False
            self.control.clear()
            self.bulk.clear()
            log.info("peer_disconnected", peer=self.peer, address=self.address)
            events.link_down(self.peer, gone=False)
            for stream in streams:
                stream.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, stream: aio.StreamStreamCall[bytes, bytes], box: Outbox) -> None:
        while True:
            await stream.write(await box.next_frame())
