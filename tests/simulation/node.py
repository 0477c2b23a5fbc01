"""One simulated node: a disk that outlives its processes, and at most one process with the production Host on it."""

from __future__ import annotations

import random
from collections.abc import Callable

from fluxd.core import limits
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.spec import GroupSpec
from fluxd.storage.copies import MARK
from fluxd.storage.errors import VotesCorrupt, VotesMissing
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2
from tests.simulation.clock import DiskSpeed, SimReactor, Simulator
from tests.simulation.disk import SimDisk
from tests.simulation.network import Network, SimTransport

GROUP = GroupId(bytes(range(16)), 0)
DIRECTORY = f"partitions/{GROUP.directory_name}"
VOTES = "votes"


class SimNode:
    """A node of one group.

    Args:
        on_event: called with this node after everything that its process did.
    """

    def __init__(
        self,
        node_id: NodeId,
        voters: tuple[NodeId, ...],
        *,
        simulator: Simulator,
        network: Network,
        rng: random.Random,
        on_event: Callable[[SimNode], None],
        segment_bytes: int = limits.SEGMENT_BYTES_MIN,
    ) -> None:
        self.node_id, self._voters = node_id, voters
        self._simulator, self._network, self._rng, self._on_event = simulator, network, rng, on_event
        self._segment_bytes = segment_bytes
        self.disk = SimDisk(random.Random(rng.random()))
        self.speed = DiskSpeed()
        self.bound_directory = self.directory_id = self._new_directory()
        self.damaged = False
        """Some file of it is not what was written; until it was copied."""
        self.votes_lost = False
        """Its votes may be damaged: then it stays out."""
        self.incarnation = 0
        self.reactor: SimReactor | None = None
        self.host: Host | None = None
        self.events: list[str] = []
        self.cannot_log: Exception | None = None
        """What logging raises."""
        self.callback_failed = ""
        """What a client found wrong with its answer: the replica goes on, the run must not."""

    def _new_directory(self) -> bytes:
        VoteFile.create(self.disk, VOTES)
        return self._rng.randbytes(16)

    # ------------------------------------------------------------------ life
    @property
    def alive(self) -> bool:
        """A process runs."""
        return self.host is not None

    def start(self) -> None:
        """Start a process on the disk as it is."""
        assert self.host is None
        self.incarnation += 1
        self.reactor = _WatchedReactor(self._simulator, self._rng, self.speed, lambda: self._on_event(self))
        votes, why = self._open_votes()
        self.host = Host(
            self.node_id, self.directory_id, reactor=self.reactor, fs=self.disk, votes=votes,
            transport=SimTransport(self._network, self.node_id, self.reactor), log_event=self._log, votes_why=why,
        )  # fmt: skip
        self.host.bind = self._bind
        self.host.open(GroupSpec(GROUP, 0, self._voters, self.bound_directory, self._segment_bytes))
        self._network.attach(self.node_id, self._deliver)

    def _bind(self, spec: GroupSpec, done: Callable[[], None]) -> None:
        """As if the metadata committed it."""
        assert self.reactor is not None

        def commit() -> None:
            self.bound_directory, self.damaged = self.directory_id, False
            done()

        self.reactor.call_at(self._simulator.now + 0.05 * self._rng.random(), commit)

    def _open_votes(self) -> tuple[VoteFile | None, str]:
        try:
            with self.disk.calm():  # a node that cannot read them does not start, and is started again
                return VoteFile.open(self.disk, VOTES), ""
        except (VotesMissing, VotesCorrupt) as error:
            return None, str(error)

    def _end(self) -> None:
        assert self.reactor is not None
        self.reactor.die()
        self.reactor = self.host = None
        self._network.detach(self.node_id)

    def kill(self) -> None:
        """SIGKILL: what was written stays."""
        self._end()
        self.disk.kill()

    def cut_power(self) -> None:
        """What was not synced is lost, or not, or torn."""
        if self.host is not None:
            self._end()
        self.disk.power_cut()

    def wipe(self) -> None:
        """The disk is replaced by an empty one, with a new directory."""
        if self.host is not None:
            self._end()
        self.disk.wipe()
        self.votes_lost = False
        self.directory_id = self._new_directory()

    @property
    def has_holes(self) -> bool:
        """A failed sync has left holes that a new process could not tell from damage."""
        return any(name == VOTES or name.endswith(".seg") for name in self.disk.lossy_files())

    @property
    def wiped(self) -> bool:
        """The replica's vote is bound to a disk that is gone, or damaged, or its copy is not finished."""
        return self.damaged or self.directory_id != self.bound_directory or MARK in self.disk.names(DIRECTORY)

    # ------------------------------------------------------------------ inside
    @property
    def replica(self) -> Group | OfflineGroup | None:
        """Of a living process."""
        return self.host.groups.get(GROUP) if self.host else None

    @property
    def group(self) -> Group | None:
        """The replica, if it takes part."""
        replica = self.replica
        return replica if isinstance(replica, Group) else None

    @property
    def step_is_due(self) -> bool:
        """Of the group, by the host."""
        return self.host is not None and GROUP in self.host._ready

    def _deliver(self, source: NodeId, data: bytes) -> None:
        reactor, host = self.reactor, self.host
        assert reactor is not None and host is not None
        if self._simulator.now < reactor.paused_until:
            self._simulator.at(
                reactor.paused_until, lambda: self._deliver(source, data) if self.reactor is reactor else None
            )
            return
        host.receive(source, [peer_pb2.GroupMessage.FromString(data)])
        self._on_event(self)

    def _log(self, event: str, **fields: object) -> None:
        if self.cannot_log is not None:
            raise self.cannot_log
        if event == "callback_failed":
            self.callback_failed = str(fields["why"])
        self.events.append(f"{self._simulator.now:9.4f} {self.node_id}.{self.incarnation} {event} {fields}")


class _WatchedReactor(SimReactor):
    """Reports after each callback, so that invariants are checked after every step."""

    def __init__(self, simulator: Simulator, rng: random.Random, disk: DiskSpeed, report: Callable[[], None]) -> None:
        super().__init__(simulator, rng, disk)
        self._report = report

    def call_at(self, when: float, callback: Callable[[], None]):  # type: ignore[no-untyped-def]
        """As the reactor's."""

        def run() -> None:
            callback()
            if self.alive:
                self._report()

        return super().call_at(when, run)
