"""What goes wrong: a schedule of faults, drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from fluxd.core import limits
from fluxd.core.metadata import Topic
from fluxd.core.types import METADATA_GROUP, GroupId, NodeId
from fluxd.raft.group import Group
from fluxd.raft.spec import Role
from fluxd.storage.directory import PARTITIONS, VOTES_NAME
from fluxd.storage.snapshot import SUFFIX
from tests.cluster.node import SimNode
from tests.cluster.scene import Client
from tests.cluster.watch import Watch
from tests.cluster.wire import Wire
from tests.simulation.clock import Simulator
from tests.simulation.damage import EXCLUDED, damage_replica, damage_running_replica, damage_votes
from tests.simulation.disk import WELL, Sickness

STOP_SECONDS = 12.0
"""A node that was asked to stop has ended by then: its stop_timeout, an election timeout, and the graces."""


class Excluded(Exception):
    """More has gone than any promise covers: the run ends here, without a verdict."""


class Faults:
    """See the module.

    Args:
        pace: longest time between two faults, seconds.
        wipes_max: so many disks may be lost.
        trims: heads of logs go: nodes are away for so long that they lack more than there is.
        on_defect: called with a line for people.
    """

    def __init__(
        self, nodes: dict[NodeId, SimNode], clients: Iterable[Client], wire: Wire, watch: Watch, *,
        pace: float, wipes_max: int, trims: bool, on_defect: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.nodes, self.clients, self._wire, self._watch = nodes, list(clients), wire, watch
        self._pace, self._wipes_max, self._trims, self._on_defect = pace, wipes_max, trims, on_defect
        self._simulator: Simulator = wire.simulator
        self.rng, self.counts = wire.rng, wire.counts
        self.on = False
        self._away: set[NodeId] = set()
        self.trace: list[str] = []
        self._topics: dict[bytes, Topic] = {}
        """All that any node has known, but for those that were deleted."""
        self._deleted: set[bytes] = set()
        for node in nodes.values():
            node.on_gave_up = partial(self._ended_by_itself, node)

    def begin(self) -> None:
        """From now on, until `heal`."""
        self.on = True
        self._next()

    def _next(self) -> None:
        def run() -> None:
            if self.on:
                self._fault()
                self._next()

        self._after(0.05 + (self._pace - 0.05) * self.rng.random(), run)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._simulator.at(self._simulator.now + seconds, action)

    def _fault(self) -> None:
        faults: list[tuple[int, Callable[[], None]]] = [
            (6, self._kill), (6, self._power_cut), (2, self._power_cut_many), (4, self._restart_dead),
            (4, self._stop), (1, self._rolling_restart), (3, self._pause), (5, self._cut_pair), (5, self._isolate),
            (4, self._isolate_leader), (3, self._cut_majority), (8, self._heal_network), (5, self._reset_some),
            (4, self._change_weather), (3, self._slow_disk), (2, self._hang_disk), (2, self._jump_clock),
            (5 if self._trims else 1, self._leave), (3, self._crash_client),
            (3 if self._wipes_max else 0, self._wipe), (2, self._transfer),
            (5, self._sicken_disk), (3, self._use_up_disk), (14 if self._wipes_max else 0, self._damage_disk),
        ]  # fmt: skip
        self._note_topics()
        fault = self.rng.choices([f for _, f in faults], [weight for weight, _ in faults])[0]
        self.trace.append(f"{self._simulator.now:9.4f} FAULT {fault.__name__}")
        fault()

    def _count(self, name: str) -> None:
        self.counts[f"fault_{name}"] += 1

    # ---- processes and machines

    def _some(self) -> SimNode | None:
        """One that runs, rather a leader."""
        running = [node for node in self.nodes.values() if node.alive]
        leaders = [node for node in running if self._leads(node)]
        if leaders and self.rng.random() < 0.5:
            return self.rng.choice(leaders)
        return self.rng.choice(running) if running else None

    @staticmethod
    def _leads(node: SimNode) -> int:
        return sum(group.role is Role.LEADER for group in node.raft.groups.values()) if node.raft else 0

    def ended(self, node: SimNode) -> None:
        """A process has ended. Mostly somebody starts it again soon; once faults are over, always."""
        if not self.on or self.rng.random() < 0.85:
            self._after(self.rng.choice((0.05, 0.5, 2.0, 5.0)), lambda: self._start(node))

    def _ended_by_itself(self, node: SimNode) -> None:
        """When it did could not be chosen.

        Raises:
            Excluded: its disk had failed, and others are lost already.
        """
        if not self._may_end(node):
            raise Excluded
        self.ended(node)

    def _start(self, node: SimNode) -> None:
        if not node.alive and node.node_id not in self._away:
            self.counts["starts"] += 1
            node.start()

    def _kill(self) -> None:
        node = self._some()
        if node is not None and self._may_end(node):
            self._count("kill")
            node.kill()
            self.ended(node)

    def _leave(self) -> None:
        """Away for so long that others trim what it would need next."""
        node = self._some()
        if node is not None and len(self.nodes) > 2 and not self._away and self._may_end(node):
            self._count("long_absence")
            self._away.add(node.node_id)
            node.kill()

            def come_back() -> None:
                self._away.clear()
                self._start(node)

            self._after(self.rng.choice((6.0, 9.0)), come_back)

    def _power_cut(self) -> None:
        node = self._some()
        if node is not None and self._may_end(node):
            self._count("power_cut")
            node.cut_power()
            self.ended(node)

    def _power_cut_many(self) -> None:
        victims = [node for node in self.nodes.values() if node.alive and self.rng.random() < 0.8]
        victims = [node for node in victims if self._may_end(node)]
        for node in victims:
            self._count("power_cut")
            node.cut_power()
        for node in victims:
            self.ended(node)

    def _restart_dead(self) -> None:
        for node in self.nodes.values():
            if not node.alive and self.rng.random() < 0.7:
                self._start(node)

    def _stop(self) -> None:
        node = self._some()
        if node is not None and node.node is not None:
            self._count("stop")
            self._end_gently(node, lambda: self.ended(node))

    def _rolling_restart(self) -> None:
        """One after another, each once the one before serves again."""
        self._count("rolling_restart")
        waiting = [node for node in self.nodes.values() if node.node is not None]

        def one_more() -> None:
            if waiting and self.on:  # one that has been asked to stop already comes back in any case
                node = waiting.pop(0)
                self._end_gently(node, lambda: back(node))

        def back(node: SimNode) -> None:
            self._start(node)
            self._when(lambda: node.serving, one_more)

        one_more()

    def _when(self, condition: Callable[[], bool], action: Callable[[], None], tries: int = 60) -> None:
        if condition():
            action()
        elif tries and self.on:
            self._after(0.25, lambda: self._when(condition, action, tries - 1))

    def _end_gently(self, node: SimNode, then: Callable[[], None]) -> None:
        """As `_ended_by_itself`, in the end."""
        process = node.process
        if process is None:
            return
        node.stop()
        deadline = self._simulator.now + STOP_SECONDS

        def look() -> None:
            nonlocal deadline
            if not process.alive:
                if not self._may_end(node):
                    raise Excluded
                then()
            elif process.paused or node.speed.hung_until > self._simulator.now:
                deadline = self._simulator.now + STOP_SECONDS
                self._after(0.25, look)
            elif self._simulator.now > deadline:
                self._on_defect(f"{process} did not stop within {STOP_SECONDS} s")
            else:
                self._after(0.25, look)

        look()

    def _pause(self) -> None:
        node = self._some()
        if node is not None and node.process is not None:
            self._count("pause")
            node.process.loop.pause(self.rng.choice((0.1, 0.7, 2.5, 6.0)))

    def _jump_clock(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        self._count("clock_jump")
        node.host.clock_offset_ms += self.rng.choice((-3_600_000, -5_000, 5_000, 3_600_000))

    def _crash_client(self) -> None:
        client = self.rng.choice(self.clients)
        if client.host.process is not None:
            self._count("client_crash")
            client.crash()
            self._after(self.rng.choice((0.01, 0.5)), client.start)

    def _wipe(self) -> None:
        losable = self._losable()
        if not losable:
            return
        node = self.rng.choice(losable)
        was_alive = node.alive
        self._count("wipe")
        self._watch.wiped(node)
        node.wipe()
        if was_alive:
            self.ended(node)

    def _transfer(self) -> None:
        """As the balancer and an operator would, but at any moment."""
        for node in self.nodes.values():
            for group in list(node.raft.groups.values()) if node.raft else ():
                if group.role is Role.LEADER and self.rng.random() < 0.5:
                    with node.process.loop.running():  # type: ignore[union-attr]
                        self.counts["fault_transfer"] += group.transfer(None) is None

    # ---- the network

    def _cut(self, one: str, other: str) -> None:
        """Both ways, or one."""
        both = self.rng.random() < 0.6
        self._wire.cuts.add((one, other))
        if both:
            self._wire.cuts.add((other, one))
        else:
            self._count("cut_one_way")

    def _names(self) -> list[str]:
        return [node.host.name for node in self.nodes.values()]

    def _cut_pair(self) -> None:
        if len(self.nodes) > 1:
            self._count("cut_pair")
            self._cut(*self.rng.sample(self._names(), 2))

    def _isolate(self) -> None:
        node = self._some()
        if node is not None:
            self._count("isolate_node")
            self._isolate_host(node.host.name, clients=self.rng.random() < 0.3)

    def _isolate_leader(self) -> None:
        """It goes on taking requests until it notices: what it appends then is truncated later."""
        node = max(self.nodes.values(), key=self._leads)
        self._count("isolate_leader")
        self._isolate_host(node.host.name, clients=False)
        self._after(1.0 + 3.0 * self.rng.random(), self._heal_network)

    def _isolate_host(self, name: str, *, clients: bool) -> None:
        others = self._names() + ([client.host.name for client in self.clients] if clients else [])
        for other in others:
            if other != name:
                self._wire.cuts |= {(name, other), (other, name)}

    def _cut_majority(self) -> None:
        """Two halves."""
        names = self._names()
        self.rng.shuffle(names)
        self._count("cut_in_two")
        half = len(names) // 2
        self._wire.cuts |= {pair for a in names[:half] for b in names[half:] for pair in ((a, b), (b, a))}

    def _heal_network(self) -> None:
        self._wire.cuts.clear()
        self._wire.healed()

    def _reset_some(self) -> None:
        for connection in self._wire.connections:
            if self.rng.random() < 0.3:
                self._wire.reset(connection)

    def _change_weather(self) -> None:
        self._count("weather")
        weather = self._wire.weather
        weather.slow = self.rng.choice((0.0, 0.0, 0.01, 0.1))
        weather.duplicated = self.rng.choice((0.0, 0.02, 0.2))
        weather.delay_high = self.rng.choice((0.001, 0.01, 0.05))

    # ---- disks

    def _slow_disk(self) -> None:
        self._count("slow_disk")
        self.rng.choice(list(self.nodes.values())).speed.high = self.rng.choice((0.001, 0.02, 0.3))

    def _hang_disk(self) -> None:
        self._count("hung_disk")
        node = self.rng.choice(list(self.nodes.values()))
        node.speed.hung_until = self._simulator.now + self.rng.choice((0.5, 1.5, 4.0))

    def _note_topics(self) -> None:
        """Nodes that were started lately may not know of them yet."""
        for image in [node.image for node in self.nodes.values() if node.image is not None]:
            self._deleted.update(image.deleted_topics)
            for topic in image.topics.values():
                known = self._topics.get(topic.topic_id)
                if known is None or len(known.partitions) < len(topic.partitions):
                    self._topics[topic.topic_id] = topic
        for topic_id in self._deleted & self._topics.keys():
            del self._topics[topic_id]

    def _losable(self) -> list[SimNode]:
        """Nodes whose disks may be lost now: no group that can be repaired loses a majority at a time."""
        if sum(node.wiped for node in self.nodes.values()) >= self._wipes_max:
            return []
        groups = [
            (topic.group_id(number), partition.voters)
            for topic in self._topics.values()
            for number, partition in enumerate(topic.partitions)
            if len(partition.voters) >= limits.COPY_VOTERS_MIN
        ]
        if len(self.nodes) >= limits.COPY_VOTERS_MIN:
            groups.append((METADATA_GROUP, tuple(self.nodes)))

        def may_be_lost(node: SimNode) -> bool:
            return not node.wiped and all(
                2 * (1 + sum(self._lacks(self.nodes[voter], group_id) for voter in voters)) < len(voters)
                for group_id, voters in groups
                if node.node_id in voters
            )

        return [node for node in self.nodes.values() if may_be_lost(node)]

    def _lacks(self, node: SimNode, group_id: GroupId) -> bool:
        """The node's disk was lost, and its replica of the group is not admitted again."""
        groups = node.raft.groups if node.raft is not None else {}
        return node.wiped and not isinstance(groups.get(group_id), Group)

    def _may_end(self, node: SimNode) -> bool:
        """A process that ends between a failed sync and its repair may leave what looks like damage."""
        holes = [name for name in node.disk.lossy_files() if name == VOTES_NAME or name.endswith(".seg")]
        if not holes or node.wiped:
            return True
        if node not in self._losable():
            self._count("excluded_holes")
            return False
        self._count("end_with_holes")
        self._lost(node)
        return True

    def _lost(self, node: SimNode) -> None:
        self._watch.wiped(node)
        node.wiped = True

    def _sicken_disk(self) -> None:
        """Operations fail, for a while. What cannot be read counts as damaged, so that is a disk that may be lost."""
        node = self.rng.choice(list(self.nodes.values()))
        disk = node.disk
        if disk.sickness is not WELL:
            return
        kind = self.rng.choice(("syncs", "syncs", "writes", "reads"))
        if kind == "reads" and not node.wiped:
            if node not in self._losable():
                return
            self._lost(node)
        self._count(f"disk_fails_{kind}")
        disk.sickness = Sickness(**{kind: self.rng.choice((0.02, 0.3, 1.0))})

        def recover() -> None:
            disk.sickness = WELL

        self._after(self.rng.choice((0.05, 0.5, 3.0)), recover)

    def _use_up_disk(self) -> None:
        """To the last byte; somebody makes room again."""
        disk = self.rng.choice(list(self.nodes.values())).disk
        if disk.room is None:
            self._count("disk_used_up")
            disk.room = self.rng.choice((0, 100, 20_000))

            def make_room() -> None:
                disk.room = None

            self._after(self.rng.choice((0.5, 3.0)), make_room)

    def _damage_disk(self) -> None:
        """A bit flips, or an end is gone, while the node is down or runs; rather where there are snapshots."""
        losable = self._losable()
        if not losable:
            return
        node = self.rng.choice(losable)
        if node.alive and self.rng.random() < 0.5:
            if not self._may_end(node) or node.wiped:
                return
            node.kill()
            self.ended(node)
        names = node.disk.names(PARTITIONS)
        if not names:
            return
        with_snapshots = [
            name for name in names if any(file.endswith(SUFFIX) for file in node.disk.names(f"{PARTITIONS}/{name}"))
        ]
        directory = f"{PARTITIONS}/{self.rng.choice(with_snapshots or names)}"
        if node.alive:
            kind = damage_running_replica(node.disk, directory, self.rng)
        elif self.rng.random() < 0.3:
            kind = damage_votes(node.disk, VOTES_NAME, self.rng)
        else:
            kind = damage_replica(node.disk, directory, self.rng)
        if kind:
            self._count(f"damage_{kind}")
        if kind not in ("", EXCLUDED):
            self._lost(node)

    # ---- the end

    def heal(self) -> None:
        """Everything is well again."""
        self.on = False
        self._away.clear()
        self._heal_network()
        weather = self._wire.weather
        weather.slow = weather.duplicated = 0.0
        weather.delay_high = 0.001
        for node in self.nodes.values():
            node.speed.low, node.speed.high, node.speed.hung_until = 0.0002, 0.003, 0.0
            node.disk.room, node.disk.sickness = None, WELL
            if node.process is not None:
                node.process.loop.resume()
