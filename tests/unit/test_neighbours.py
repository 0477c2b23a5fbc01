"""What a node tells the others of itself."""

from __future__ import annotations

import asyncio
from typing import cast

from fluxd.broker.cluster import ClusterView
from fluxd.broker.forward import Forwarder
from fluxd.broker.neighbours import Neighbours
from fluxd.peer.links import Links
from fluxd.raft.host import Host
from fluxlog.v1 import peer_pb2
from tests.unit.broker_fakes import Clock, local_node


class NoLinks:
    """Nobody is there."""

    peers = ()

    def broadcast_status(self, status: peer_pb2.NodeStatus) -> None:
        """Nobody hears it."""

    async def run(self, events: object) -> None:
        """For as long as it is let."""
        await asyncio.Event().wait()


def test_a_node_hears_its_own_status() -> None:
    """It may be the controller, and looks after its own replicas as after those of the others."""

    async def scene() -> peer_pb2.NodeStatus:
        view = ClusterView(Clock().reactor, local_node(), {})
        heard: asyncio.Future[peer_pb2.NodeStatus] = asyncio.get_running_loop().create_future()
        view.on_status(lambda status: None if heard.done() else heard.set_result(status))
        neighbours = Neighbours(
            cast(Links, NoLinks()), cast(Host, None), view, cast(Forwarder, None), on_fatal=lambda error: None
        )
        running = asyncio.ensure_future(neighbours.run())
        try:
            async with asyncio.timeout(10):
                return await heard
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    assert asyncio.run(scene()).node_id == local_node().node_id
