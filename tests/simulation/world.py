"""One seeded run: nodes, clients, a schedule of faults, invariants after every step, and a reckoning at the end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.entry import EntryKind, split_batches
from fluxd.core.errors import FluxError
from fluxd.core.types import NodeId, Offset, RaftIndex
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2, record_pb2
from tests.simulation.clients import Client, History, Sent
from tests.simulation.clock import Simulator
from tests.simulation.disk import WELL
from tests.simulation.disk_faults import DiskFaults
from tests.simulation.invariants import Invariants, Violation
from tests.simulation.network import Network
from tests.simulation.node import SimNode

FAULT_SECONDS = 12.0
HEAL_SECONDS = 60.0
SETTLE_SECONDS = 3.0
QUIET_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides before the run."""

    nodes: int
    wipes: bool
    pace: float
    """Longest time between two faults, seconds."""
    segment_bytes: int = limits.SEGMENT_BYTES_MIN
    trims: bool = False
    stragglers: bool = False
    """Syncs that are overtaken by a truncation, and fail."""

    @staticmethod
    def of(seed: int) -> Plan:
        """Mostly three nodes."""
        rng = random.Random(seed)
        return Plan(
            nodes=rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 5)), wipes=rng.random() < 0.5, pace=rng.choice((0.5, 1.0, 2.5)),
            segment_bytes=rng.choice((4, 4, 16, 64)) * limits.KIB, trims=rng.random() < 0.7,
            stragglers=rng.randrange(6) == 5,
        )  # fmt: skip


def _up(peer: NodeId) -> Callable[[Host], None]:
    return lambda host: host.peer_up(peer)


class World:
    """The simulated cluster of one group.

    Args:
        seed: decides everything.
    """

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed, self.plan = seed, plan or Plan.of(seed)
        self.rng = random.Random(seed * 2_654_435_761 % 2**32)
        self.counts: Counter[str] = Counter()
        self.simulator = Simulator()
        self.network = Network(self.simulator, self.rng, self.counts)
        voters = tuple(NodeId(n) for n in range(1, self.plan.nodes + 1))
        self.nodes = {
            node_id: SimNode(
                node_id,
                voters,
                simulator=self.simulator,
                network=self.network,
                rng=self.rng,
                on_event=self._stepped,
                segment_bytes=self.plan.segment_bytes,
            )
            for node_id in voters
        }
        self.invariants = Invariants(self.nodes, self.counts)
        self.network.on_send = self._sent
        self.history = History()
        self.clients = [self._client(f"p{n}", idempotent=True) for n in range(2)]
        self.clients += [self._client("once", idempotent=False)]
        self.faulty = False
        self._away: set[NodeId] = set()
        self.disks = DiskFaults(self)

    def _client(self, name: str, *, idempotent: bool) -> Client:
        return Client(name, self.nodes, self.simulator, self.rng, self.history, self.counts, idempotent=idempotent)

    def _stepped(self, node: SimNode) -> None:
        if node.alive:
            self.invariants.after_step(node)

    def _sent(self, source: NodeId, target: NodeId, message: peer_pb2.GroupMessage) -> None:
        self.invariants.on_send(source, target, message)

    # ------------------------------------------------------------------ the run
    def run(self) -> None:
        """All of it.

        Raises:
            Violation: a promise was broken.
        """
        for node in self.nodes.values():
            self.start(node)
        self._every(0.02, 0.1, self._client_acts)
        self._every(0.05, self.plan.pace, self._fault)
        self._every(0.2, 0.4, self._read)
        if self.plan.trims:
            self._every(0.3, 1.0, self._trim)
        if self.plan.stragglers:
            self._every(0.5, 4.0, self.disks.straggle)
        self.faulty = True
        self.run_until(lambda: self.simulator.now >= FAULT_SECONDS)
        self.faulty = False
        self._heal_everything()
        self._reckon()

    def run_until(self, condition: Callable[[], bool], *, within: float = 1e9) -> bool:
        """Step until a condition holds; False when the time is over first."""
        deadline = self.simulator.now + within
        while not condition():
            if self.simulator.now > deadline or not self.simulator.step():
                return False
        return True

    def _every(self, low: float, high: float, action: Callable[[], None]) -> None:
        def run() -> None:
            if self.faulty or action == self._client_acts:
                action()
                self.simulator.at(self.simulator.now + low + (high - low) * self.rng.random(), run)

        self.simulator.at(self.simulator.now + self.rng.random() * high, run)

    def _client_acts(self) -> None:
        client = self.rng.choice(self.clients)
        for _ in range(self.rng.choice((1, 1, 1, 4))):
            client.send()

    def _read(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        group, incarnation, promised = node.group, node.incarnation, self.history.end_offset
        if group is None:
            return

        def done(error: FluxError | None) -> None:
            if error is not None or not node.alive or node.incarnation != incarnation:
                return
            self.counts["reads_confirmed"] += 1
            if group.high_watermark < promised:
                raise Violation(
                    f"I8: a confirmed read sees {group.high_watermark}, {promised} was acknowledged before it"
                )

        group.read_index(done)

    def _trim(self) -> None:
        """What retention does, or somebody who asks for too much."""
        for node in self.nodes.values():
            group = node.group
            if group is None or group.role is not Role.LEADER:
                continue
            low, high = group.log_start_offset, group.high_watermark
            offset = Offset(self.rng.randint(low, high) if self.rng.random() < 0.9 else group.high_watermark + 1)
            incarnation = node.incarnation
            group.trim(offset, lambda error, n=node, g=group, i=incarnation, o=offset: self._trimmed(n, g, i, o, error))  # type: ignore[misc]

    def _trimmed(self, node: SimNode, group: Group, incarnation: int, offset: int, error: FluxError | None) -> None:
        if error is not None:
            self.counts[f"trims_{error.traits.outcome.name.lower()}"] += 1
        elif node.incarnation == incarnation:
            self.counts["trims"] += 1
            if group.log_start_offset < offset:
                raise Violation(f"I13: a trim to {offset} was answered, the log start is {group.log_start_offset}")

    # ------------------------------------------------------------------ faults
    def start(self, node: SimNode) -> None:
        """Start a process and tell everybody that it is there."""
        node.start()
        assert node.host is not None
        if node.host._votes is None and not node.votes_lost:
            raise Violation(f"the votes of node {node.node_id} are gone: {self.describe()}")
        for other in self.nodes.values():
            if other is not node and self.network.is_connected(node.node_id, other.node_id):
                self._tell(other, _up(node.node_id))
                self._tell(node, _up(other.node_id))

    def _tell(self, node: SimNode, news: Callable[[Host], None]) -> None:
        reactor, host = node.reactor, node.host
        if reactor is not None and host is not None:
            reactor.call_at(self.simulator.now + 0.002 * self.rng.random(), lambda: news(host))

    def ended(self, node: SimNode) -> None:
        """Mostly somebody starts it again soon. Others notice that a process is gone: at once by a refused
        connection, or as a broken link.
        """
        gone = self.rng.random() < 0.6
        if self.rng.random() < 0.8:
            self.simulator.at(self.simulator.now + self.rng.choice((0.05, 0.5, 2.0)), lambda: self._start_again(node))
        for other in self.nodes.values():
            if other is not node:
                self._tell(other, lambda host: host.peer_down(node.node_id, gone=gone))

    def _fault(self) -> None:
        disks = self.disks
        faults: list[tuple[int, Callable[[], None]]] = [
            (6, self._kill), (6, self._power_cut), (2, self._power_cut_many), (10, self._restart),
            (4, self._disconnect), (6, self._silent_cut), (10, self._heal_network), (4, self._change_weather),
            (3, self._slow_disk), (2, self._hang_disk), (2, self._pause), (3, self._transfer), (2, disks.wipe),
            (6, self.isolate_leader), (2, disks.fill), (2, disks.use_up), (5, disks.sicken),
            (4, disks.damage), (2, disks.scan), (3, self._leave),
        ]  # fmt: skip
        self.rng.choices([f for _, f in faults], [weight for weight, _ in faults])[0]()

    def some(self, *, alive: bool) -> SimNode | None:
        nodes = [node for node in self.nodes.values() if node.alive is alive]
        leaders = [n for n in nodes if n.group is not None and n.group.role is Role.LEADER]
        if leaders and self.rng.random() < 0.5:
            return self.rng.choice(leaders)
        return self.rng.choice(nodes) if nodes else None

    def _kill(self) -> None:
        node = self.some(alive=True)
        if node is not None and self.disks.may_end(node):
            self.counts["kills"] += 1
            node.kill()
            self.ended(node)

    def _power_cut(self) -> None:
        node = self.some(alive=True)
        if node is not None and self.disks.may_end(node):
            self.counts["power_cuts"] += 1
            node.cut_power()
            self.ended(node)
            self._check_durable()

    def _power_cut_many(self) -> None:
        victims = [node for node in self.nodes.values() if node.alive and self.rng.random() < 0.8]
        victims = [node for node in victims if self.disks.may_end(node)]
        for node in victims:
            self.counts["power_cuts"] += 1
            node.cut_power()
        for node in victims:
            self.ended(node)
        self._check_durable()

    def _leave(self) -> None:
        """Away for so long that others trim what it would need next."""
        node = self.some(alive=True)
        if node is not None and not self._away and len(self.nodes) > 2 and self.disks.may_end(node):
            self.counts["long_absences"] += 1
            self._away.add(node.node_id)
            node.kill()
            for other in self.nodes.values():
                self._tell(other, lambda host: host.peer_down(node.node_id, gone=True))

            def come_back() -> None:
                self._away.clear()
                self._start_again(node)

            self.simulator.at(self.simulator.now + 3.0 + 3.0 * self.rng.random(), come_back)

    def _restart(self) -> None:
        for node in self.nodes.values():
            if not node.alive and node.node_id not in self._away and self.rng.random() < 0.7:
                self.counts["restarts"] += 1
                self.start(node)

    def _start_again(self, node: SimNode) -> None:
        if not node.alive and node.node_id not in self._away:
            self.counts["restarts"] += 1
            self.start(node)

    def _pair(self) -> tuple[SimNode, SimNode] | None:
        if len(self.nodes) < 2:
            return None
        first, second = self.rng.sample(list(self.nodes.values()), 2)
        return first, second

    def _disconnect(self) -> None:
        pair = self._pair()
        if pair is None:
            return
        first, second = pair
        self.counts["links_broken"] += 1
        self.network.down.add(frozenset((first.node_id, second.node_id)))
        self._tell(first, lambda host: host.peer_down(second.node_id, gone=False))
        self._tell(second, lambda host: host.peer_down(first.node_id, gone=False))

    def _silent_cut(self) -> None:
        pair = self._pair()
        if pair is None:
            return
        first, second = pair
        leader = self.some(alive=True)
        if leader is not None and self.rng.random() < 0.5:
            first = leader
        if first is second:
            return
        self.counts["links_silent"] += 1
        self.network.silent.add((first.node_id, second.node_id))
        if self.rng.random() < 0.5:
            self.network.silent.add((second.node_id, first.node_id))
        if self.rng.random() < 0.3:  # one node from everybody
            for other in self.nodes.values():
                self.network.silent.add((first.node_id, other.node_id))
                self.network.silent.add((other.node_id, first.node_id))

    def isolate_leader(self) -> None:
        """It goes on taking proposals until it notices: what it appends then is truncated later."""
        for node in self.nodes.values():
            if node.group is not None and node.group.role is Role.LEADER and len(self.nodes) > 1:
                self.counts["leaders_isolated"] += 1
                for other in self.nodes:
                    self.network.silent |= {(node.node_id, other), (other, node.node_id)}
                self.simulator.at(self.simulator.now + 1.0 + 2.0 * self.rng.random(), self._heal_network)

    def _heal_network(self) -> None:
        self.network.silent.clear()
        broken, self.network.down = self.network.down, set()
        for pair in broken:
            first, second = sorted(pair)
            self._tell(self.nodes[first], _up(second))
            self._tell(self.nodes[second], _up(first))

    def _change_weather(self) -> None:
        weather = self.network.weather
        weather.slow = self.rng.choice((0.0, 0.0, 0.05, 0.3))
        weather.lost = self.rng.choice((0.0, 0.0, 0.02, 0.2))
        weather.duplicated = self.rng.choice((0.0, 0.02, 0.2))
        weather.delay_high = self.rng.choice((0.002, 0.01, 0.05))

    def _slow_disk(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        self.counts["disks_slow"] += 1
        node.speed.high = self.rng.choice((0.001, 0.02, 0.3))

    def _hang_disk(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        self.counts["disks_hung"] += 1
        node.speed.hung_until = self.simulator.now + self.rng.choice((0.5, 1.5, 4.0))

    def _pause(self) -> None:
        node = self.some(alive=True)
        if node is not None and node.reactor is not None:
            self.counts["pauses"] += 1
            node.reactor.paused_until = self.simulator.now + self.rng.choice((0.1, 0.7, 2.5))

    def _transfer(self) -> None:
        for node in self.nodes.values():
            if node.group is not None and node.group.role is Role.LEADER:
                self.counts["transfers"] += node.group.transfer(None) is None

    def _check_durable(self) -> None:
        wiped = sum(node.wiped for node in self.nodes.values())
        needed = len(self.nodes) // 2 + 1 - wiped
        self.invariants.check_committed_is_durable(self.history.indexes[-100:], needed=needed)

    # ------------------------------------------------------------------ the end
    def _heal_everything(self) -> None:
        self._heal_network()
        self.network.weather.slow = self.network.weather.lost = self.network.weather.duplicated = 0.0
        self.network.weather.delay_high = 0.002
        for node in self.nodes.values():
            node.speed.low, node.speed.high, node.speed.hung_until = 0.0002, 0.003, 0.0
            node.disk.free = limits.DISK_RESERVE_BYTES
            node.disk.room, node.disk.sickness = None, WELL
            if node.reactor is not None:
                node.reactor.paused_until = 0.0
            if not node.alive:
                self.start(node)

    def _reckon(self) -> None:
        acknowledged = self.counts["answer_committed"]
        if not self.run_until(lambda: self.counts["answer_committed"] > acknowledged, within=HEAL_SECONDS):
            raise Violation(
                f"no record was acknowledged within {HEAL_SECONDS} s after all faults healed: {self.describe()}"
            )
        for client in self.clients:
            client.stopped = True
        if not self.run_until(lambda: all(client.idle for client in self.clients), within=HEAL_SECONDS):
            raise Violation(f"clients still wait for answers: {self.describe()}")
        self._keep_scanning()
        if not self.run_until(self._logs_equal, within=HEAL_SECONDS):
            raise Violation(f"logs did not become equal: {self.describe()}")
        settled = self.simulator.now + SETTLE_SECONDS  # a handover may still be under way
        self.run_until(lambda: self.simulator.now >= settled)
        # Of all: a sync that began on a sick disk may still fail now, and its replica is opened again.
        term = max(group.term for group in self._groups())
        end = self.simulator.now + QUIET_SECONDS
        self.run_until(lambda: self.simulator.now >= end)
        if max(group.term for group in self._groups()) != term:
            raise Violation(f"terms grow although nothing is wrong: {self.describe()}")
        self._check_answers()
        self._check_log()
        for node in self.nodes.values():
            self.counts["replicas_admitted"] += sum(" replica_admitted " in event for event in node.events)
            self.counts["copies_begun_anew"] += sum(" copy_began_anew " in event for event in node.events)
            self.counts["logs_replaced"] += sum(" log_replaced " in event for event in node.events)

    def _keep_scanning(self) -> None:
        self.disks.scan()
        self.simulator.at(self.simulator.now + 0.5, self._keep_scanning)

    def _groups(self) -> list[Group]:
        groups = [node.group for node in self.nodes.values() if node.group is not None]
        return [group for group in groups if group.role is not Role.FAILED]

    @property
    def _all_heal(self) -> bool:
        """A node that has lost its votes stays out, and others may need its word to be admitted again."""
        return len(self.nodes) >= limits.COPY_VOTERS_MIN and not any(node.votes_lost for node in self.nodes.values())

    def _logs_equal(self) -> bool:
        groups = self._groups()
        ends = {
            (group.log.last_index, group.log.last.checksum, group.commit_index, group.log_start_offset)
            for group in groups
        }
        healed = len(groups) == len(self.nodes) or not self._all_heal
        sound = not any(group.why for group in groups)
        return len(ends) == 1 and healed and sound and any(g.role is Role.LEADER for g in groups)

    def _check_answers(self) -> None:
        for attempt in self.history.attempts:
            if attempt.answers == 0 and attempt.node.incarnation == attempt.incarnation and attempt.node.alive:
                raise Violation(f"a proposal to node {attempt.node.node_id} was never answered")

    def _check_log(self) -> None:
        """Every acknowledged value once, at its offset; no rejected value; nothing twice."""
        group = self._groups()[0]
        found: dict[bytes, int] = {}
        self.counts["heads_trimmed"] += group.log.first_index > 1
        for index in range(group.log.first_index, group.log.last_index + 1):
            frame = group.log.frame_at(RaftIndex(index))
            if group.log.stamp_at(RaftIndex(index)).kind is EntryKind.TRIM:
                continue
            offset = int(group.log.stamp_at(RaftIndex(index)).base_offset)
            for data in split_batches(frame):
                batch = record_pb2.RecordBatch.FromString(bytes(data))
                position = 0
                for length in batch.value_lengths:
                    value = batch.columns[position : position + length]
                    if value in found:
                        raise Violation(f"{value[:20]!r} is at {found[value]} and at {offset}: duplicated")
                    found[value] = offset
                    offset, position = offset + 1, position + length
        for sent in self.history.batches:
            self._check_batch(sent, found, group.log_start_offset)
        self.counts["records"] += len(found)

    @staticmethod
    def _check_batch(sent: Sent, found: dict[bytes, int], log_start_offset: int) -> None:
        for number, value in enumerate(sent.values):
            if sent.offset is not None and sent.offset + number < log_start_offset:
                continue
            if sent.offset is not None and found.get(value) != sent.offset + number:
                raise Violation(
                    f"{value[:20]!r} acknowledged at {sent.offset + number}, found at {found.get(value)}: lost"
                )
            if not sent.may_be_written and value in found:
                raise Violation(f"{value[:20]!r} was rejected and is in the log")

    def describe(self) -> str:
        """State of all nodes, for a message."""
        parts = []
        for node in self.nodes.values():
            replica = node.replica
            if replica is None:
                parts.append(f"{node.node_id}: down")
            else:
                last = replica.log.last_index if replica.log is not None else 0
                state = f"{replica.role.value} t{replica.term} c{replica.commit_index} l{last} {replica.why}"
                parts.append(f"{node.node_id}: {state}")
        return "; ".join(parts)
