"""One node's data path on a real disk, without a network: the metadata is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fluxd.broker.admission import Admission
from fluxd.broker.cluster import ClusterView
from fluxd.broker.fetch import FetchCall, Fetching
from fluxd.broker.forward import Forwarder
from fluxd.broker.offsets import ListingOffsets
from fluxd.broker.produce import ProduceCall, Producing
from fluxd.broker.routes import Routes
from fluxd.broker.waiting import WaitingRoom
from fluxd.core.batch import batch_from_records
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.peer.identity import Identity
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.spec import GroupSpec, Role
from fluxd.reactor import AsyncReactor
from fluxd.storage.directory import VOTES_NAME, open_directory
from fluxd.storage.real import RealFileSystem
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2, record_pb2
from tests.unit.broker_fakes import ME, Metadata, directory, local_node, partition


class Nobody:
    """Links to nodes that are not there."""

    def is_connected(self, peer: NodeId) -> bool:
        return False

    def address_of(self, peer: NodeId) -> str | None:
        return None

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        return False


class Lone:
    """Topic "solo" has its one replica here, "pair" one of two, "away" none."""

    def __init__(self, root: Path, admission: Admission) -> None:
        self.reactor = AsyncReactor(asyncio.get_running_loop(), seed=1)
        fs = RealFileSystem(root)
        self._directory = open_directory(fs, root, ME, lambda size: directory(ME)[:size])
        self.host = Host(
            ME, directory(ME), reactor=self.reactor, fs=fs, votes=VoteFile.open(fs, VOTES_NAME), transport=Nobody(),
            log_event=lambda event, **fields: None,
        )  # fmt: skip
        self.view = ClusterView(self.reactor, local_node(), self.host.groups)
        self.metadata = Metadata((1, 2))
        self.metadata.create("solo", partition(1))
        self.metadata.create("pair", partition(1, 2))
        self.metadata.create("away", partition(2))
        self.confirmed = True
        """The metadata can be confirmed with a majority."""
        self.confirmations = 0
        """Asked for."""
        me = Identity(ME, directory(ME), (), "host1:7000", 1, "0", False)
        self.routes = Routes(self.view, self.host.groups, self._confirm, lambda node: False)
        forwarder = Forwarder(me, b"", Nobody(), [ME, NodeId(2)])
        self.room = WaitingRoom()
        self.admission = admission
        self.producing = Producing(self.reactor, self.routes, forwarder, admission)
        self.fetching = Fetching(self.reactor, self.routes, forwarder, self.room)
        self.offsets = ListingOffsets(self.reactor, self.routes, forwarder)

    async def _confirm(self) -> None:
        self.confirmations += 1
        if not self.confirmed:
            raise FluxError(Reason.NO_CONTROLLER, "nobody to ask")

    async def open(self) -> None:
        """Open the replicas; wait until "solo" is led."""
        self.view.image = self.metadata.image
        for name in ("solo", "pair"):
            self.open_replica(name)
        led = asyncio.Event()
        solo = self.group("solo")
        solo.on_role.append(led.set)
        async with asyncio.timeout(10):
            while solo.role is not Role.LEADER:
                led.clear()
                await led.wait()

    def open_replica(self, name: str) -> None:
        """As the metadata says."""
        topic = self.view.image.topic(name)
        assert topic is not None
        placed = topic.partitions[0]
        self.view.attach(self.host.open(GroupSpec(topic.group_id(0), placed.generation, placed.voters, directory(ME))))

    def group(self, name: str) -> Group:
        """This node's replica."""
        topic = self.view.image.topic(name)
        assert topic is not None
        group = self.host.groups[topic.group_id(0)]
        assert isinstance(group, Group)
        return group

    def close(self) -> None:
        """Let go of everything."""
        self.host.stop()
        self._directory.close()
        self.reactor.close()


@asynccontextmanager
async def lone(root: Path, admission: Admission | None = None) -> AsyncIterator[Lone]:
    """A node for one test."""
    node = Lone(root, admission or Admission())
    try:
        await node.open()
        yield node
    finally:
        node.close()


def batch(values: Sequence[bytes], producer_id: bytes = b"", base_sequence: int = 0) -> bytes:
    """An encoded RecordBatch."""
    records = [record_pb2.Record(value=value, timestamp_ms=1) for value in values]
    return batch_from_records(records, producer_id, base_sequence, 1)


def produce_call(topic: str, data: bytes = b"", **fields: object) -> ProduceCall:
    """A request with a batch."""
    known: dict[str, object] = {
        "topic": topic, "partition": 0, "batch": data, "batch_crc32c": None, "expected_offset": None, "timeout_ms": 0,
        "topic_id": b"", "records": [], "producer_id": b"", "base_sequence": 0, "raw": data, "connection": "c",
        "forwarded": False,
    }  # fmt: skip
    return ProduceCall(**(known | fields))  # type: ignore[arg-type]


def fetch_call(topic: str, offset: int = 0, **fields: object) -> FetchCall:
    """A request for entries."""
    known: dict[str, object] = {
        "topic": topic, "partition": 0, "offset": offset, "max_bytes": 0, "max_wait_ms": 0, "min_bytes": 0,
        "as_records": False, "topic_id": b"", "raw": b"", "forwarded": False,
    }  # fmt: skip
    return FetchCall(**(known | fields))  # type: ignore[arg-type]
