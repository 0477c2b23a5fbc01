"""The other nodes, as this one meets them: what their links and streams tell is passed to those whom it concerns, and
this node's status is told to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fluxd.broker.cluster import ClusterView
from fluxd.broker.forward import Forwarder
from fluxd.broker.founding import StartError, check_refusals
from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.types import GroupId, NodeId
from fluxd.observability import get_logger
from fluxd.peer.links import Links
from fluxd.raft.host import Host
from fluxlog.v1 import peer_pb2

log = get_logger()

_STATUS_PAUSE = 10


class Neighbours:
    """Implements `peer.link.LinkEvents` and `rpc.peer.Inbox`.

    Args:
        on_fatal: this node has no place in the cluster.
    """

    def __init__(
        self,
        links: Links,
        host: Host,
        view: ClusterView,
        forwarder: Forwarder,
        *,
        on_fatal: Callable[[StartError], None],
    ) -> None:
        self._links, self._host, self._view, self._forwarder = links, host, view, forwarder
        self._on_fatal = on_fatal
        self._refusals: dict[NodeId, FluxError] = {}
        self._ever_connected = False
        self._patience_ends = 0.0
        self._status_changed = asyncio.Event()
        view.watch_leaders(self._leader_changed)

    async def run(self) -> None:
        """Keep the links up and tell this node's status, until cancelled."""
        self._patience_ends = asyncio.get_running_loop().time() + limits.NODE_ID_PATIENCE
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._links.run(self))
            tasks.create_task(self._tell_status())

    # ---- what links tell

    def link_up(self, peer: NodeId, hello: peer_pb2.HelloResponse) -> None:
        """Both streams stand."""
        self._ever_connected = True
        self._refusals.clear()
        self._view.peer_joined(peer)
        self._forwarder.link_up(peer)
        self._host.peer_up(peer)
        self._status_changed.set()

    def link_down(self, peer: NodeId, *, gone: bool) -> None:
        """The streams broke, or (gone) nobody listens there."""
        if gone:
            log.info("peer_gone", peer=peer)
            self._view.peer_lost(peer)
        else:
            self._forwarder.link_down(peer)
        self._host.peer_down(peer, gone=gone)

    def link_refused(self, peer: NodeId, error: FluxError) -> None:
        """Another node does not want us. At start that may mean that this node is wrong."""
        known = self._refusals.get(peer)
        if known is None or known.message != error.message:
            log.error("peer_refused_us", peer=peer, reason=error.reason.name, message=error.message)
        self._refusals[peer] = error
        if not self._ever_connected:
            try:
                patient = asyncio.get_running_loop().time() < self._patience_ends
                check_refusals(self._refusals, len(self._links.peers), patient=patient)
            except StartError as fatal:
                self._on_fatal(fatal)

    # ---- what arrives

    def called_by(self, peer: NodeId) -> None:
        """A peer has opened a stream to us: it is there, so call back."""
        self._links.heard_from(peer)

    def receive_frame(self, peer: NodeId, frame: peer_pb2.PeerFrame) -> None:
        """Messages and status of a peer."""
        self._view.peer_seen(peer)
        if frame.messages:
            self._host.receive(peer, frame.messages)
        if frame.HasField("status") and frame.status.node_id == peer:
            self._view.observe_status(frame.status)

    # ---- what this node tells

    def _leader_changed(self, group_id: GroupId) -> None:
        if group_id in self._host.groups:
            self._status_changed.set()

    async def _tell_status(self) -> None:
        """This node's status to all others: twice a second, and when a leader has changed, but with pauses in which ten
        times as much else can be done: hundreds of leaders that change at once are told in a few messages."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(limits.STATUS_INTERVAL):
                    await self._status_changed.wait()
            except TimeoutError:
                pass
            self._status_changed.clear()
            began = loop.time()
            status = self._view.local_status()
            self._links.broadcast_status(status)
            self._view.heard_own(status)
            await asyncio.sleep(min(_STATUS_PAUSE * (loop.time() - began), limits.STATUS_INTERVAL))
