"""All links of this node: the transport that Raft is handed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from fluxd.core.types import NodeId
from fluxd.peer.channels import GRPC_NETWORK, Network
from fluxd.peer.identity import Identity
from fluxd.peer.link import Link, LinkEvents
from fluxlog.v1 import peer_pb2


class Links:
    """One link to every other node. Implements `raft.transport.Transport`."""

    def __init__(
        self, me: Identity, secret: bytes, addresses: Mapping[NodeId, str], network: Network = GRPC_NETWORK
    ) -> None:
        self._links = {
            peer: Link(peer, address, me, secret, network) for peer, address in addresses.items() if peer != me.node_id
        }

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """Queue one message; False when it was dropped: not connected, or the queue is full."""
        link = self._links.get(peer)
        return link is not None and link.send(message, frames)

    def is_connected(self, peer: NodeId) -> bool:
        """Both streams to that peer stand."""
        link = self._links.get(peer)
        return link is not None and link.connected

    def directory_of(self, peer: NodeId) -> bytes | None:
        """Directory id of the node that this node is connected to under that number; None when it is not connected."""
        link = self._links.get(peer)
        return link.directory_id if link is not None and link.connected else None

    def address_of(self, peer: NodeId) -> str | None:
        """Where that peer is, as configured."""
        link = self._links.get(peer)
        return link.address if link is not None else None

    def heard_from(self, peer: NodeId) -> None:
        """The peer called us: try at once to call back, if there is no link."""
        link = self._links.get(peer)
        if link is not None:
            link.retry_now()

    @property
    def peers(self) -> tuple[NodeId, ...]:
        """All other nodes, connected or not."""
        return tuple(self._links)

    def broadcast_status(self, status: peer_pb2.NodeStatus) -> None:
        """Queue this node's status to every connected peer."""
        data = status.SerializeToString()
        for link in self._links.values():
            if link.connected:
                link.control.put_status(data)

    async def run(self, events: LinkEvents) -> None:
        """Keep all links up until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for link in self._links.values():
                tasks.create_task(link.run(events))
