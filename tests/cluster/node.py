"""One simulated node: a disk that outlives its processes, and at most one process that runs the production `Node`."""

from __future__ import annotations

import random
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, cast

import grpc
from pydantic import SecretStr

from fluxd.broker.cluster import ClusterView
from fluxd.broker.founding import StartError
from fluxd.config import Settings
from fluxd.core import limits
from fluxd.core.metadata import Image
from fluxd.core.types import NodeId
from fluxd.machine import Machine
from fluxd.node import Node
from fluxd.raft.host import Host
from tests.cluster.calls import SimNetwork
from tests.cluster.listener import SimListener
from tests.cluster.machine import ProcessDisk, ProcessReactor
from tests.cluster.process import SimHost, SimProcess
from tests.cluster.wire import NODE_PATIENCE, Wire
from tests.simulation.clock import DiskSpeed, Simulator
from tests.simulation.disk import SimDisk

_NOWHERE = Path("/simulated")
_DEFECTS = frozenset({"rpc_failed", "node_failed", "library_logged", "replica_failed", "callback_failed"})
"""Events that say that something is wrong with the code; a replica may stop for an error of its disk."""


class SimNode:
    """A node of the cluster.

    Args:
        seeds: addresses of all nodes, by id.
        on_event: called with this node after everything that its process did.
        on_defect: called with a line for people.
    """

    def __init__(
        self,
        node_id: NodeId,
        seeds: dict[int, str],
        wire: Wire,
        simulator: Simulator,
        rng: random.Random,
        *,
        on_event: Callable[[SimNode], None],
        on_defect: Callable[[str], None],
    ) -> None:
        self.on_gave_up: Callable[[], None] = lambda: None
        """It could not use its disk, and has ended."""
        self.node_id, self._seeds, self._wire, self._rng = node_id, seeds, wire, rng
        self._simulator = simulator
        self._on_event, self._on_defect = on_event, on_defect
        self.host = SimHost(f"n{node_id}", simulator, rng)
        wire.hosts[self.host.address] = self.host
        self.disk = SimDisk(random.Random(rng.random()))
        self.speed = DiskSpeed()
        self.scrub_interval = limits.SCRUB_INTERVAL_DEFAULT
        """Of the processes that are started from now on."""
        self.node: Node | None = None
        self.wiped = False
        """A disk that belonged to the cluster is gone, or was damaged."""
        self.events: list[str] = []
        self.alarms: list[str] = []

    # ---- life

    @property
    def process(self) -> SimProcess | None:
        """The one that runs."""
        return self.host.process

    @property
    def alive(self) -> bool:
        """A process runs."""
        return self.host.process is not None

    @property
    def incarnation(self) -> int:
        """Number of the newest process."""
        return self.host.processes

    def start(self) -> None:
        """Start a process on the disk as it is."""
        assert self.host.process is None
        self.host.powered = True
        process = SimProcess(
            self.host, on_event=lambda _: self._on_event(self), on_defect=lambda p, text: self._defect(p, text),
            on_log=self._log, on_end=lambda p: self._ended(p),
        )  # fmt: skip
        self.host.process = process
        self._wire.powered_up(self.host)
        process.start(lambda: self._main(process))

    async def _main(self, process: SimProcess) -> None:
        settings = Settings(
            node_id=self.node_id, listen=self.host.address, seeds=self._seeds, data_dir=_NOWHERE,
            cluster_secret=SecretStr("the cluster's secret"), allow_remote_stop=True,
            scrub_interval=self.scrub_interval,
        )  # fmt: skip
        try:
            self.node = Node(settings, ProcessReactor(process, self._rng, self.speed), self._machine(process))
            await self.node.run()
        except StartError as error:
            if not self.disk.errors or "cannot be used" not in str(error):
                raise
            self._note(process, f"gave up: {error}")
            self._simulator.at(self._simulator.now, self.on_gave_up)

    def _machine(self, process: SimProcess) -> Machine:
        def listener(address: str, handlers: Sequence[grpc.GenericRpcHandler]) -> SimListener:
            return SimListener(self._wire, process, address, handlers, self._defect)

        return Machine(
            filesystem=lambda _: cast(Any, ProcessDisk(self.disk, process)),
            locks_directories=False,
            network=SimNetwork(self._wire, process, NODE_PATIENCE),
            listener=listener,
            random_bytes=self._rng.randbytes,
            process_id=lambda: process.number,
            kill=lambda: self._kill_soon(process),
        )

    def _kill_soon(self, process: SimProcess) -> None:
        simulator = self.host.simulator
        simulator.at(simulator.now, lambda: self.kill() if self.host.process is process else None)

    def _ended(self, process: SimProcess) -> None:
        self.node = None
        self.disk.kill()
        self._wire.ended(process, silently=not self.host.powered)

    def kill(self) -> None:
        """SIGKILL: what was written stays."""
        assert self.host.process is not None
        self.host.process.end()

    def cut_power(self) -> None:
        """What was not synced is lost, or not, or torn; nobody answers for the machine any more."""
        self.host.powered = False
        if self.host.process is not None:
            self.host.process.end()
        self.disk.power_cut()

    def wipe(self) -> None:
        """The disk is replaced by an empty one."""
        if self.host.process is not None:
            self.host.process.end()
        self.disk.wipe()
        self.wiped = True

    def stop(self) -> None:
        """SIGTERM."""
        process, node = self.host.process, self.node
        if process is not None and node is not None:
            process.loop.call_soon(node.stop)

    # ---- inside

    @property
    def raft(self) -> Host | None:
        """All replicas of the running process."""
        return self.node._host if self.node is not None else None

    @property
    def view(self) -> ClusterView | None:
        """What the running process knows of the cluster."""
        return self.node._view if self.node is not None else None

    @property
    def image(self) -> Image | None:
        """The metadata as the running process knows it."""
        return self.node._view.image if self.node is not None else None

    @property
    def serving(self) -> bool:
        """As its health service would say."""
        return self.node is not None and cast(SimListener, self.node._server).serving

    def _defect(self, process: SimProcess, text: str) -> None:
        self._note(process, f"DEFECT {text}")
        self._on_defect(f"{process}: {text}")

    def _log(self, process: SimProcess, level: str, fields: MutableMapping[str, Any]) -> None:
        if level == "debug":
            return
        event = str(fields.pop("event"))
        fields.pop("duration_ms", None)
        text = f"{level} {event} {dict(fields)}"
        self._note(process, text)
        why = str(fields.get("why", "")) if event == "replica_failed" else ""
        of_the_disk = (why.startswith("its disk failed: ") and self.disk.errors) or (
            why.startswith("its log is damaged: ") and self.wiped
        )
        if event in _DEFECTS and not of_the_disk:
            self._on_defect(f"{process}: {text}")

    def _note(self, process: SimProcess, text: str) -> None:
        self.events.append(f"{self.host.simulator.now:9.4f} {process} {text}")
