"""A small cluster under the hand of a directed test: who leads, which message waits, which disk hangs is said, not
drawn.

The same nodes, network and invariants as in the random simulation; time passes only when the test lets it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

from fluxd.core.entry import split_batches
from fluxd.core.errors import FluxError
from fluxd.core.types import NodeId, Offset, RaftIndex
from fluxd.raft.group import Group
from fluxd.raft.proposal import Append, AppendResult, Committed
from fluxd.raft.spec import Role
from fluxlog.v1 import peer_pb2, record_pb2
from tests.simulation.clients import encode
from tests.simulation.clock import Simulator
from tests.simulation.invariants import Invariants
from tests.simulation.network import Network
from tests.simulation.node import GROUP, SimNode

Message = peer_pb2.GroupMessage


class HeldNetwork(Network):
    """A network whose messages a test can hold back, look at, drop, repeat and deliver late."""

    def __init__(self, simulator: Simulator, rng: random.Random, counts: Counter[str]) -> None:
        super().__init__(simulator, rng, counts)
        self.held: list[tuple[NodeId, NodeId, Message]] = []
        self.hold: Callable[[NodeId, NodeId, Message], bool] = lambda source, target, message: False
        self.sent: list[tuple[NodeId, NodeId, Message]] = []

    def send(self, source: NodeId, target: NodeId, message: Message) -> bool:
        """Held, or sent."""
        copy = Message.FromString(message.SerializeToString())
        self.sent.append((source, target, copy))
        if self.is_connected(source, target) and self.hold(source, target, message):
            self.on_send(source, target, message)
            self.held.append((source, target, copy))
            return True
        return super().send(source, target, message)

    def release(self, messages: list[tuple[NodeId, NodeId, Message]] | None = None) -> None:
        """Deliver held messages now, in order, whatever is cut."""
        for source, target, message in self.held if messages is None else messages:
            self._nodes[target](source, message.SerializeToString())
        if messages is None:
            self.held = []


class Lab:
    """A cluster of one group.

    Args:
        nodes: number of replicas.
        seed: of delays and timeouts.
    """

    def __init__(self, nodes: int = 3, seed: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.simulator = Simulator()
        rng = random.Random(seed)
        self.network = HeldNetwork(self.simulator, rng, self.counts)
        voters = tuple(NodeId(n) for n in range(1, nodes + 1))
        self.nodes = {
            n: SimNode(n, voters, simulator=self.simulator, network=self.network, rng=rng, on_event=self._stepped)
            for n in voters
        }
        self.invariants = Invariants(self.nodes, self.counts)
        self.network.on_send = self.invariants.on_send
        for node in self.nodes.values():
            self.start(node.node_id)

    def _stepped(self, node: SimNode) -> None:
        if node.alive:
            self.invariants.after_step(node)

    # ------------------------------------------------------------------ time
    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.simulator.now + seconds
        self.simulator.at(end, lambda: None)
        while self.simulator.now < end and self.simulator.step():
            pass

    def until(self, condition: Callable[[], bool], within: float = 10.0) -> None:
        """Let time pass until a condition holds.

        Raises:
            AssertionError: it did not within that time.
        """
        end = self.simulator.now + within
        while not condition():
            assert self.simulator.now < end and self.simulator.step(), f"not within {within} s: {self.describe()}"

    # ------------------------------------------------------------------ nodes
    def __getitem__(self, node: int) -> Group:
        group = self.nodes[NodeId(node)].group
        assert group is not None, self.describe()
        return group

    def start(self, node: int) -> None:
        """Start a process; links to the others stand at once."""
        started = self.nodes[NodeId(node)]
        started.start()
        for other in self.nodes.values():
            if other is not started and other.host is not None and started.host is not None:
                other.host.peer_up(started.node_id)
                started.host.peer_up(other.node_id)

    def kill(self, node: int, *, power: bool = False, gone: bool = True) -> None:
        """End a process; with `power`, its disk loses what was not synced. `gone`: the others learn it at once."""
        victim = self.nodes[NodeId(node)]
        if power:
            victim.cut_power()
        else:
            victim.kill()
        for other in self.nodes.values():
            if other.reactor is not None and other.host is not None and gone:  # after what it said last
                other.reactor.call_at(
                    self.simulator.now + 0.01, partial(other.host.peer_down, victim.node_id, gone=True)
                )

    def cut(self, left: tuple[int, ...], right: tuple[int, ...]) -> None:
        """Eat everything between two sides, silently."""
        for a in left:
            for b in right:
                self.network.silent |= {(NodeId(a), NodeId(b)), (NodeId(b), NodeId(a))}

    def heal(self) -> None:
        """All links carry again."""
        self.network.silent.clear()

    def leader(self) -> int | None:
        """The leader of the highest term."""
        leading = [
            (n.group.term, n.node_id)
            for n in self.nodes.values()
            if n.group is not None and n.group.role is Role.LEADER
        ]
        return max(leading)[1] if leading else None

    def let_campaign(self, node: int) -> None:
        """This node campaigns now, and the others not before they have heard something new."""
        for other in self.nodes.values():
            if other.group is not None and other.host is not None:
                other.group.guard.stir()
                other.group.guard.elections.deadline = self.simulator.now + (0.0 if other.node_id == node else 1e6)
                other.host.wake(other.group)

    def elect(self, node: int) -> Group:
        """Have a node lead: by its own campaign at once, or by transfer from the leader that there is."""
        if self.leader() is None:
            for other in self.nodes.values():
                if other.group is not None:
                    other.group.guard.stir()
                    other.group.guard.elections.deadline = self.simulator.now + (0.0 if other.node_id == node else 3.0)
                    assert other.host is not None
                    other.host.wake(other.group)
            self.until(lambda: self.leader() is not None)
        leader = self.leader()
        assert leader is not None
        self.until(lambda: self[leader].commit_index == self[leader].log.last_index)
        if leader != node:
            self[leader].transfer(NodeId(node))
        self.until(lambda: self.leader() == node and self[node].commit_index == self[node].log.last_index)
        return self[node]

    # ------------------------------------------------------------------ proposals
    def propose(
        self, node: int, value: bytes, producer: bytes = b"", sequence: int = 0, expected: int | None = None
    ) -> list[AppendResult]:
        """Submit one record; its answer appears in the list."""
        answers: list[AppendResult] = []
        replica = self.nodes[NodeId(node)].replica
        assert replica is not None
        at = None if expected is None else Offset(expected)
        replica.submit(Append(encode([value], producer, sequence), 1, answers.append, producer, sequence, at))
        return answers

    def commit(self, node: int, value: bytes) -> Committed:
        """Submit one record and let time pass until it is committed."""
        answers = self.propose(node, value)
        self.until(lambda: bool(answers))
        assert isinstance(answers[0], Committed), answers
        return answers[0]

    def sync_in_flight(self, node: int) -> bool:
        """Of a node's log."""
        host = self.nodes[NodeId(node)].host
        return host is not None and GROUP in host._syncing

    def on_all_disks(self, leader: int = 1) -> bool:
        """As far as the leader knows, every replica has its whole log on disk."""
        log, progress = self[leader].log, self[leader].guard.leading.progress
        return log.synced_index == log.last_index and all(p.match >= log.last_index for p in progress.values())

    def values(self, node: int) -> list[bytes]:
        """What the records in a node's log hold, in order."""
        log, out = self[node].log, []
        for index in range(log.first_index, log.last_index + 1):
            if log.stamp_at(RaftIndex(index)).record_count:
                out += _values(log.frame_at(RaftIndex(index)))
        return out

    def describe(self) -> str:
        """For messages."""
        return "; ".join(
            f"{n.node_id}: " + (f"{n.replica.role.value} t{n.replica.term} {n.replica.why}" if n.replica else "down")
            for n in self.nodes.values()
        )


def _values(frame: bytes) -> list[bytes]:
    out = []
    for data in split_batches(frame):
        batch = record_pb2.RecordBatch.FromString(bytes(data))
        position = 0
        for length in batch.value_lengths:
            out.append(batch.columns[position : position + length])
            position += length
    return out


def is_append(message: Message) -> bool:
    """An AppendEntries that carries entries."""
    return message.WhichOneof("body") == "append_entries" and bool(message.append_entries.frames)


def is_heartbeat(message: Message) -> bool:
    """An AppendEntries without entries, or the list that stands for many."""
    return is_list(message) or (message.WhichOneof("body") == "append_entries" and not message.append_entries.frames)


def is_list(message: Message) -> bool:
    """A heartbeat of all groups that rest."""
    return message.WhichOneof("body") == "heartbeat_list"


def is_reply(message: Message) -> bool:
    """An AppendReply."""
    return message.WhichOneof("body") == "append_reply"


def outcome(answers: list[AppendResult]) -> str:
    """COMMITTED, REJECTED, UNKNOWN, or PENDING."""
    if not answers:
        return "PENDING"
    assert len(answers) == 1, answers
    return answers[0].traits.outcome.name if isinstance(answers[0], FluxError) else "COMMITTED"
