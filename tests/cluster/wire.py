"""The simulated network: connections between processes, as TCP and HTTP/2 make them.

What is sent on a connection arrives in order, once, later or never. A cut link holds everything back until it is healed
or an end gives up, as keepalive does. The end of a process resets its connections; the loss of a machine's power
resets nothing: the other end has to notice. So duplicates and reordering come from where they come from in reality:
several connections, calls that are repeated, and answers that are lost (and, where the protocol of the peers allows
it, frames that are sent twice).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.cluster.process import SimHost, SimProcess
from tests.simulation.clock import Simulator

KEEPALIVE_EVERY = 0.5
SERVER_PATIENCE = 15.0
"""As the server's options say: it pings every 10 s and waits for 5."""
NODE_PATIENCE = 4.0
CLIENT_PATIENCE = 2.5
CONNECT_TIMEOUT = 2.0
_CONNECT_RETRY = 0.25


@dataclass(slots=True)
class Weather:
    """How bad the network is. Delays in seconds, the rest probabilities per message."""

    delay_low: float = 0.0001
    delay_high: float = 0.001
    slow: float = 0.0
    """Lost by the wire and sent again by TCP: what follows waits behind it."""
    duplicated: float = 0.0
    """Of peers' frames."""


class Pipe:
    """One direction of a connection: what is put in runs at the other end, in order."""

    def __init__(self, wire: Wire, source: SimProcess, target: SimProcess) -> None:
        self._wire, self.source, self.target = wire, source, target
        self._last = 0.0
        self._held: list[Callable[[], None]] = []
        self.closed = False

    def send(self, deliver: Callable[[], None]) -> None:
        """From a living process."""
        if self.closed or not self.source.alive:
            return
        self._wire.counts["messages"] += 1
        self._last = max(self._last, self._wire.simulator.now + self._wire.delay())
        self._wire.simulator.at(self._last, lambda: self._arrive(deliver))

    def _arrive(self, deliver: Callable[[], None]) -> None:
        if self.closed:
            return
        if self._held or self._wire.is_cut(self.source.host, self.target.host):
            if not self._held:
                self._wire.counts["messages_held"] += 1
            self._held.append(deliver)
        elif self.target.alive:
            self.target.loop.call_soon(deliver)

    def release(self) -> None:
        """The link may have been healed."""
        if self._held and not self._wire.is_cut(self.source.host, self.target.host):
            held, self._held = self._held, []
            for deliver in held:
                if self.target.alive and not self.closed:
                    self.target.loop.call_soon(deliver)


class Connection:
    """Between a client and a server. Each end is told once, by `on_broken`, when it is over for it."""

    def __init__(self, wire: Wire, client: SimProcess, server: SimProcess, patience: float) -> None:
        self._wire, self.client, self.server = wire, client, server
        self.up, self.down = Pipe(wire, client, server), Pipe(wire, server, client)
        self.client_open = self.server_open = True
        self.patience = patience
        self.well_at = wire.simulator.now
        wire.ports += 1
        self.peer = f"ipv4:{client.host.name}:{wire.ports}"
        self.service: Any = None
        """Who answers at the server's end: its listener."""
        self.on_client_broken: Callable[[str], None] = lambda why: None
        self.on_server_broken: Callable[[], None] = lambda: None

    def break_client(self, why: str) -> None:
        """The client's end is over; the server hears of it if it can."""
        if self.client_open:
            self.client_open = False
            self.down.closed = True
            self.up.send(self.break_server)
            self.on_client_broken(why)

    def break_server(self) -> None:
        """The server's end is over; the client hears of it if it can."""
        if self.server_open:
            self.server_open = False
            self.up.closed = True
            self.down.send(lambda: self.break_client("the connection was reset"))
            self.on_server_broken()

    def ended(self, process: SimProcess, *, silently: bool) -> None:
        """The process at one end is gone. Its system resets the connection, unless it is gone, too."""
        client = process is self.client
        other, pipe = (self.server, self.up) if client else (self.client, self.down)
        if client:
            self.client_open, self.down.closed = False, True
        else:
            self.server_open, self.up.closed = False, True
        if not silently and other.alive:
            self._reset(other, pipe)

    def _reset(self, other: SimProcess, pipe: Pipe) -> None:
        """Behind what was sent before, since the process's system sends it."""

        def arrive() -> None:
            if pipe.closed or not other.alive:
                return
            if self._wire.is_cut(pipe.source.host, pipe.target.host):
                self._wire.simulator.at(self._wire.simulator.now + _CONNECT_RETRY, arrive)
            else:
                self.break_other(other, "the connection was reset by the other end")

        self._wire.simulator.at(self._wire.simulator.now + self._wire.delay() + self._wire.weather.delay_high, arrive)

    def break_other(self, end: SimProcess, why: str) -> None:
        """Tell one end, in its own process."""
        end.loop.call_soon((lambda: self.break_client(why)) if end is self.client else self.break_server)

    @property
    def over(self) -> bool:
        """For both ends."""
        return not ((self.client_open and self.client.alive) or (self.server_open and self.server.alive))


class Wire:
    """All links and connections."""

    def __init__(self, simulator: Simulator, rng: random.Random, counts: Counter[str]) -> None:
        self.simulator, self.rng, self.counts = simulator, rng, counts
        self.weather = Weather()
        self.cuts: set[tuple[str, str]] = set()
        """Directed links, by hosts' names, that carry nothing."""
        self.connections: list[Connection] = []
        self.ports = 0
        self.listeners: dict[str, tuple[SimProcess, Callable[[Connection], None]]] = {}
        self.hosts: dict[str, SimHost] = {}
        """By address."""
        self.on_peer_frame: Callable[[SimProcess, str, bytes], None] = lambda source, address, frame: None
        simulator.at(KEEPALIVE_EVERY, self._keep_alive)

    def delay(self) -> float:
        """Of the next message."""
        weather = self.weather
        delay = weather.delay_low + (weather.delay_high - weather.delay_low) * self.rng.random()
        if weather.slow and self.rng.random() < weather.slow:
            self.counts["messages_slow"] += 1
            delay += 0.2 + self.rng.random() * 0.4
        return delay

    def duplicates(self) -> bool:
        """Whether the next peers' frame arrives twice."""
        return bool(self.weather.duplicated) and self.rng.random() < self.weather.duplicated

    def is_cut(self, source: SimHost, target: SimHost) -> bool:
        """Nothing gets through in this direction."""
        return (source.name, target.name) in self.cuts

    # ---- connecting

    def listen(self, address: str, process: SimProcess, accept: Callable[[Connection], None]) -> None:
        """A process listens. Raises OSError when another one does."""
        known = self.listeners.get(address)
        if known is not None and known[0].alive:
            raise OSError(f"{address} is in use")
        self.listeners[address] = (process, accept)

    def unlisten(self, process: SimProcess) -> None:
        """A process listens no more."""
        self.listeners = {address: known for address, known in self.listeners.items() if known[0] is not process}

    def reaches(self, client: SimHost, address: str) -> bool | None:
        """Whether a connection can be made: None: nobody answers."""
        host = self.hosts.get(address)
        if host is None or not host.powered or self.is_cut(client, host) or self.is_cut(host, client):
            return None
        return address in self.listeners and self.listeners[address][0].alive

    def connect(
        self, client: SimProcess, address: str, patience: float, done: Callable[[Connection | str], None]
    ) -> None:
        """Try to connect for CONNECT_TIMEOUT; `done` gets the connection, or why there is none."""
        give_up_at = self.simulator.now + CONNECT_TIMEOUT

        def attempt() -> None:
            reached = self.reaches(client.host, address)
            if reached is False:
                client.loop.call_soon(lambda: done("connection refused"))
            elif reached and not self.listeners[address][0].paused:
                client.loop.call_soon(lambda: self._connected(client, address, patience, done))
            elif self.simulator.now >= give_up_at:
                client.loop.call_soon(lambda: done("no answer"))
            else:
                self.simulator.at(self.simulator.now + _CONNECT_RETRY, attempt)

        self.simulator.at(self.simulator.now + 2 * self.delay(), attempt)

    def _connected(
        self, client: SimProcess, address: str, patience: float, done: Callable[[Connection | str], None]
    ) -> None:
        server, accept = self.listeners.get(address, (None, None))
        if server is None or accept is None or not server.alive:
            done("connection refused")
            return
        self.counts["connections"] += 1
        connection = Connection(self, client, server, patience)
        self.connections.append(connection)
        with server.loop.running():
            accept(connection)
        done(connection)

    # ---- what happens to connections

    def ended(self, process: SimProcess, *, silently: bool) -> None:
        """A process is gone."""
        self.unlisten(process)
        for connection in self.connections:
            if process in (connection.client, connection.server):
                connection.ended(process, silently=silently)

    def powered_up(self, host: SimHost) -> None:
        """A machine is back: it resets connections that it knows nothing of."""
        for connection in self.connections:
            for end, other in ((connection.client, connection.server), (connection.server, connection.client)):
                if end.host is host and not end.alive and other.alive and not self.is_cut(host, other.host):
                    connection.break_other(other, "the connection is not known any more")

    def healed(self) -> None:
        """Links carry again."""
        for connection in self.connections:
            connection.up.release()
            connection.down.release()

    def reset(self, connection: Connection) -> None:
        """Something on the way breaks a connection."""
        self.counts["connections_reset"] += 1
        for end in (connection.client, connection.server):
            if end.alive:
                connection.break_other(end, "the connection was reset")

    def _keep_alive(self) -> None:
        now = self.simulator.now
        self.simulator.at(now + KEEPALIVE_EVERY, self._keep_alive)
        self.connections = [connection for connection in self.connections if not connection.over]
        for connection in self.connections:
            client, server = connection.client, connection.server
            if (
                client.alive and server.alive and not client.paused and not server.paused
                and not self.is_cut(client.host, server.host) and not self.is_cut(server.host, client.host)
            ):  # fmt: skip
                connection.well_at = now
                continue
            silence = now - connection.well_at
            if client.alive and not client.paused and connection.client_open and silence > connection.patience:
                self.counts["keepalive_breaks"] += 1
                connection.break_other(client, "keepalive timed out")
            if server.alive and not server.paused and connection.server_open and silence > SERVER_PATIENCE:
                self.counts["keepalive_breaks"] += 1
                connection.break_other(server, "keepalive timed out")
