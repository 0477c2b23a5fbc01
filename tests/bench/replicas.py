"""Three replicas of some groups in one process: the production hosts, logs and disks, and links without gRPC.

Messages are encoded and decoded as on a link (`fluxd/peer/outbox.py`), control and bulk apart, and handed over on the
loop. Everything else is what a node runs: `raft/host.py` with its threads, `storage/real.py` with its fdatasync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxd.core import limits
from fluxd.core.types import GroupId, NodeId
from fluxd.peer.outbox import CONTROL_BYTES_MAX, Outbox
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.spec import GroupSpec, Role
from fluxd.reactor import AsyncReactor
from fluxd.storage.real import RealFileSystem
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2

NODES = (NodeId(1), NodeId(2), NodeId(3))
_TOPIC_ID = bytes(range(16))
_VOTES = "votes"
_SETTLED_WITHIN_S = 20.0


class _Links:
    """One node's way to the others. Implements `raft.transport.Transport`."""

    def __init__(self) -> None:
        self.boxes: dict[NodeId, tuple[Outbox, Outbox]] = {}
        self.frames_sent = 0
        """Entries handed over, each counted for each follower and as often as it was sent."""

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """See `Transport`."""
        self.frames_sent += len(frames)
        control, bulk = self.boxes[peer]
        return (bulk if frames else control).put(message, frames)

    def is_connected(self, peer: NodeId) -> bool:
        """All links stand."""
        return peer in self.boxes


@dataclass(slots=True)
class _Node:
    host: Host
    reactor: AsyncReactor
    links: _Links


class Replicas:
    """Use as an async context manager: groups 0..`groups` - 1 have a leader then.

    Args:
        root: a directory for the three data directories.
        groups: how many; they share the nodes.
    """

    def __init__(self, root: Path, groups: int = 1) -> None:
        self._root, self._group_ids = root, [GroupId(_TOPIC_ID, number) for number in range(groups)]
        self._nodes: dict[NodeId, _Node] = {}
        self._pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Replicas:
        loop = asyncio.get_running_loop()
        for node_id in NODES:
            fs = RealFileSystem(self._root / str(node_id))
            VoteFile.create(fs, _VOTES)
            reactor, links = AsyncReactor(loop), _Links()
            host = Host(
                node_id, bytes((node_id,)) * 16, reactor=reactor, fs=fs, votes=VoteFile.open(fs, _VOTES),
                transport=links, log_event=lambda event, **fields: None,
            )  # fmt: skip
            self._nodes[node_id] = _Node(host, reactor, links)
        for node_id, node in self._nodes.items():
            for peer in NODES:
                if peer != node_id:
                    node.links.boxes[peer] = boxes = Outbox(CONTROL_BYTES_MAX), Outbox(limits.PEER_BULK_BYTES_MAX)
                    self._pumps += [loop.create_task(_pump(node_id, box, self._nodes[peer].host)) for box in boxes]
        for node_id, node in self._nodes.items():
            for group_id in self._group_ids:
                node.host.open(GroupSpec(group_id, 0, NODES, bytes((node_id,)) * 16))
        await self._until(lambda: all(self._leader(group_id) for group_id in self._group_ids), "a leader of each group")
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self._nodes.values():
            node.host.stop()
            node.reactor.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    @property
    def leaders(self) -> list[Group]:
        """Of each group."""
        return [leader for group_id in self._group_ids if (leader := self._leader(group_id))]

    def _leader(self, group_id: GroupId) -> Group | None:
        for group in self._replicas(group_id):
            if group.role is Role.LEADER and group.commit_index >= group.guard.leading.term_start:
                return group
        return None

    def replicas(self) -> list[Group]:
        """Of all groups."""
        return [replica for group_id in self._group_ids for replica in self._replicas(group_id)]

    def _replicas(self, group_id: GroupId) -> list[Group]:
        found = [node.host.groups[group_id] for node in self._nodes.values()]
        return [replica for replica in found if isinstance(replica, Group)]

    async def sends_per_entry(self) -> float:
        """How often each entry was sent to each follower, once all have everything: 1 is as it should be."""

        def equal() -> bool:
            return all(len({g.log.synced_index for g in self._replicas(group_id)}) == 1 for group_id in self._group_ids)

        await self._until(equal, "all replicas have the same")
        entries = sum(leader.log.last_index - 1 for leader in self.leaders)  # the birth entry is everyone's own
        sent = sum(node.links.frames_sent for node in self._nodes.values())
        return sent / (entries * (len(NODES) - 1))

    @staticmethod
    async def _until(condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_SETTLED_WITHIN_S):
                while not condition():  # noqa: ASYNC110 - a look now and then disturbs what is measured least
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise RuntimeError(f"not within {_SETTLED_WITHIN_S:g} s: {what}") from None


async def _pump(sender: NodeId, box: Outbox, receiver: Host) -> None:
    """A link's stream: what was queued arrives in order, in a later turn of the loop."""
    while True:
        frame = peer_pb2.PeerFrame.FromString(await box.next_frame())
        receiver.receive(sender, frame.messages)
