"""A network that delays, reorders, duplicates, loses and cuts; messages cross it as bytes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fluxd.core.types import NodeId
from fluxlog.v1 import peer_pb2
from tests.simulation.clock import SimReactor, Simulator

Deliver = Callable[[NodeId, bytes], None]


@dataclass(slots=True)
class Weather:
    """How bad the network is. Delays in seconds, the rest probabilities per message."""

    delay_low: float = 0.0001
    delay_high: float = 0.002
    slow: float = 0.0
    """Takes up to a hundred times longer, and so is overtaken."""
    lost: float = 0.0
    duplicated: float = 0.0


class Network:
    """All links. A link is a directed pair of nodes."""

    def __init__(self, simulator: Simulator, rng: random.Random, counts: Counter[str]) -> None:
        self._simulator, self._rng, self.counts = simulator, rng, counts
        self.weather = Weather()
        self.silent: set[tuple[NodeId, NodeId]] = set()
        """Directed links that eat everything without telling anybody."""
        self.down: set[frozenset[NodeId]] = set()
        """Pairs that know that they are not connected."""
        self._nodes: dict[NodeId, Deliver] = {}
        self.on_send: Callable[[NodeId, NodeId, peer_pb2.GroupMessage], None] = lambda source, target, message: None

    def attach(self, node: NodeId, deliver: Deliver) -> None:
        """A process listens."""
        self._nodes[node] = deliver

    def detach(self, node: NodeId) -> None:
        """A process ended."""
        self._nodes.pop(node, None)

    def is_connected(self, source: NodeId, target: NodeId) -> bool:
        """As the two ends know it."""
        return target in self._nodes and source in self._nodes and frozenset((source, target)) not in self.down

    def send(self, source: NodeId, target: NodeId, message: peer_pb2.GroupMessage) -> bool:
        """From a living process."""
        if not self.is_connected(source, target):
            return False
        self.on_send(source, target, message)
        self.counts["messages"] += 1
        data = message.SerializeToString()
        if (source, target) in self.silent or self._rng.random() < self.weather.lost:
            self.counts["messages_lost"] += 1
            return True
        copies = 1
        if self._rng.random() < self.weather.duplicated:
            self.counts["messages_duplicated"] += 1
            copies = 2
        for _ in range(copies):
            self._simulator.at(self._simulator.now + self._delay(), lambda: self._deliver(source, target, data))
        return True

    def _delay(self) -> float:
        weather = self.weather
        delay = weather.delay_low + (weather.delay_high - weather.delay_low) * self._rng.random()
        if self._rng.random() < weather.slow:
            self.counts["messages_slow"] += 1
            delay *= 100 * self._rng.random() + 1
        return delay

    def _deliver(self, source: NodeId, target: NodeId, data: bytes) -> None:
        deliver = self._nodes.get(target)
        if deliver is not None and (source, target) not in self.silent:
            deliver(source, data)


class SimTransport:
    """One process's raft.transport.Transport."""

    def __init__(self, network: Network, node: NodeId, reactor: SimReactor) -> None:
        self._network, self._node, self._reactor = network, node, reactor

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """A dead process sends nothing."""
        if frames:
            message.append_entries.frames.extend(frames)
        return self._reactor.alive and self._network.send(self._node, peer, message)

    def is_connected(self, peer: NodeId) -> bool:
        """As this end knows it."""
        return self._network.is_connected(self._node, peer)
