"""One seeded run of a whole cluster: founded, used and broken at once, healed, read, and judged."""

from __future__ import annotations

import gc
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.types import NodeId
from fluxd.raft.group import Group
from fluxd.raft.spec import Role
from fluxlog.checker import Phase, check, report
from tests.cluster.bounds import metadata_trimmed_at
from tests.cluster.faults import Excluded, Faults
from tests.cluster.logs import captured
from tests.cluster.loop import generator_hooks
from tests.cluster.members import Ledger, Member
from tests.cluster.node import SimNode
from tests.cluster.readers import FinalReader, Follower, LatestReader, NodeReader
from tests.cluster.scene import Client, Scene
from tests.cluster.topics import Founder, Operator, TopicMaker
from tests.cluster.watch import Watch
from tests.cluster.wire import Wire
from tests.cluster.writers import ConditionalWriter, IdempotentWriter, PlainWriter
from tests.simulation.clock import Simulator
from tests.simulation.invariants import Violation

FOUND_SECONDS = 30.0
FAULT_SECONDS = 12.0
HEAL_SECONDS = 90.0
CALM_SECONDS = 1.5
EVENTS_AT_ONCE_MAX = 20_000
"""More than there are in any moment: something goes round in a circle without time passing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides before the run."""

    nodes: int
    replicas: int
    wipes_max: int
    """Disks that may be lost or damaged: never so many that a partition of TOPIC has no majority any more."""
    pace: float
    retention_bytes: int
    """0: all is kept."""
    members: int
    """Of a consumer group."""
    metadata_records: int
    """At so many the metadata log is trimmed; 0: as in production, which is never."""
    scrub_interval: float = limits.SCRUB_INTERVAL_DEFAULT

    @staticmethod
    def of(seed: int) -> Plan:
        """Mostly three nodes."""
        rng = random.Random(seed)
        nodes = rng.choice((1, 2, 3, 3, 3, 3, 3, 3, 4, 5))
        replicas = rng.choice((nodes, min(nodes, 3)))
        wipes_max = (replicas - 1) // 2 if rng.random() < 0.6 else 0
        return Plan(
            nodes,
            replicas,
            wipes_max,
            pace=rng.choice((0.5, 1.0, 2.5)),
            retention_bytes=rng.choice((0, 4_000)),
            members=rng.choice((0, 2, 2, 3)),
            metadata_records=rng.choice((0, 4, 12)),
            scrub_interval=rng.choice((limits.SCRUB_INTERVAL_DEFAULT, 2.0)),
        )


class World:
    """The simulated cluster, its clients and its faults.

    Args:
        seed: decides everything.
    """

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed, self.plan = seed, plan or Plan.of(seed)
        self.rng = random.Random(seed * 2_654_435_761 % 2**32)
        self.counts: Counter[str] = Counter()
        self.simulator = Simulator()
        self.wire = Wire(self.simulator, self.rng, self.counts)
        self.failures: list[str] = []
        seeds = {number: f"n{number}:9640" for number in range(1, self.plan.nodes + 1)}
        self.nodes = {
            NodeId(number): SimNode(
                NodeId(number), seeds, self.wire, self.simulator, self.rng,
                on_event=self._stepped, on_defect=self.failures.append,
            )
            for number in seeds
        }  # fmt: skip
        for node in self.nodes.values():
            node.scrub_interval = self.plan.scrub_interval
        self.watch = Watch(self.nodes, self.counts, self.failures.append)
        self.watch.messages = seed % 4 == 0
        self.wire.on_peer_frame = lambda source, address, data: self.watch.on_frame(
            NodeId(int(source.host.name[1:])), address, data
        )
        self.scene = Scene(self.simulator, self.wire, self.rng, seeds, self.counts, self.failures.append)
        self.scene.replicas, self.scene.retention_bytes = self.plan.replicas, self.plan.retention_bytes
        self.ledger = Ledger()
        self.topics = TopicMaker("topics", self.scene)
        self.clients: list[Client] = [
            IdempotentWriter("idem1", self.scene), IdempotentWriter("idem2", self.scene),
            *(PlainWriter(f"plain{number}", self.scene) for number in range(3)), ConditionalWriter("cond1", self.scene),
            ConditionalWriter("cond2", self.scene), Follower("follow", self.scene), LatestReader("latest", self.scene),
            *(NodeReader(f"read{number}", self.scene, address) for number, address in seeds.items()),
            self.topics, Operator("operator", self.scene),
            *(Member(f"member{number}", self.scene, self.ledger) for number in range(self.plan.members)),
        ]  # fmt: skip
        self.faults = Faults(
            self.nodes, self.clients, self.wire, self.watch, pace=self.plan.pace, wipes_max=self.plan.wipes_max,
            trims=self.plan.retention_bytes > 0, on_defect=self.failures.append,
        )  # fmt: skip

    def _stepped(self, node: SimNode) -> None:
        self.watch.after_event(node)

    # ---- the run

    def run(self) -> None:
        """All of it.

        Raises:
            Violation: a promise was broken.
        """
        collecting = gc.isenabled()
        gc.disable()  # when it runs depends on what ran before in this process
        try:
            with generator_hooks(), captured(), metadata_trimmed_at(self.plan.metadata_records):
                try:
                    self._run()
                except Excluded:
                    self.counts["runs_excluded"] += 1
                finally:
                    self._take_down()
                    gc.collect()  # what is left of dead processes logs while it goes
        finally:
            if collecting:
                gc.enable()

    def _run(self) -> None:
        history = self.scene.history
        for node in self.nodes.values():
            node.start()
        self._run_client(Founder("founder", self.scene), FOUND_SECONDS)
        for client in self.clients:
            client.start()
        history.phase(Phase.FAULTS, self.simulator.now)
        self.faults.begin()
        self._pass_time(FAULT_SECONDS)
        history.phase(Phase.HEAL, self.simulator.now)
        self.faults.heal()
        for node in self.nodes.values():
            if not node.alive:
                node.start()
        self.run_until(self._is_well, "the cluster is well", HEAL_SECONDS)
        self._pass_time(CALM_SECONDS)
        self._finish()

    def _finish(self) -> None:
        self.scene.writing = False
        readers = (NodeReader, Follower, LatestReader, Member)
        writers = [client for client in self.clients if not isinstance(client, readers)]
        self.run_until(lambda: all(client.over for client in writers), "every writer has its answers", HEAL_SECONDS)
        self._last_writes()
        self.run_until(self._is_consumed, "the group has consumed everything", HEAL_SECONDS)
        self.scene.reading = False
        self._pass_time(CALM_SECONDS)
        self.scene.history.phase(Phase.FINAL_READ, self.simulator.now)
        for number, address in self.scene.addresses.items():
            self._run_client(FinalReader(f"final{number}", self.scene, address), HEAL_SECONDS)
        self.run_until(self._is_well, "the cluster is well in the end", HEAL_SECONDS)
        self._wait_for_terms()
        self.run_until(self._is_well, "the cluster is still well", HEAL_SECONDS)  # retention may be trimming
        self._reckon()

    def _wait_for_terms(self) -> None:
        """Until leaderships have been handed back: elections that go on without any fault would be one."""
        deadline = self.simulator.now + HEAL_SECONDS
        before: dict[str, int] = {}
        while (terms := self._terms()) != before:
            if self.simulator.now > deadline:
                raise Violation(f"terms grow for {HEAL_SECONDS} s although nothing is wrong: {self.describe()}")
            before = terms
            self._pass_time(CALM_SECONDS)

    def _is_consumed(self) -> bool:
        committed = {partition: offset for (_, partition), offset in self.ledger.committed.items()}
        ends = self.scene.ends.items() if self.plan.members else ()
        return all(committed.get(partition, 0) >= end for partition, end in ends)

    def _last_writes(self) -> None:
        """The history has a success in its last phase, in whatever state the run ended."""
        before = self.counts["ok_Produce"]
        self.scene.writing = True
        last = PlainWriter("last", self.scene)
        last.start()
        self.run_until(lambda: self.counts["ok_Produce"] > before, "a record can be written", HEAL_SECONDS)
        self.scene.writing = False
        self.run_until(lambda: last.over, "the last writer is done", HEAL_SECONDS)

    def _run_client(self, client: Client, seconds: float) -> None:
        client.start()
        self.run_until(lambda: client.over, f"{client.name} is done", seconds)

    def _pass_time(self, seconds: float) -> None:
        end = self.simulator.now + seconds
        self._run_while(lambda: self.simulator.now < end, end)

    def run_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Go on until it is so.

        Raises:
            Violation: it does not become so.
        """
        deadline = self.simulator.now + seconds
        looked_at = -1.0
        met = False

        def wanted() -> bool:
            nonlocal looked_at, met
            if self.simulator.now - looked_at >= 0.05:
                looked_at = self.simulator.now
                met = condition()
            return not met

        self._run_while(wanted, deadline)
        if not met:
            raise Violation(f"not within {seconds} s: {what}. {self.describe()}")

    def _run_while(self, condition: Callable[[], bool], deadline: float) -> None:
        moment, began = -1.0, 0
        while condition() and self.simulator.now <= deadline:
            self.simulator.step()
            if self.simulator.now != moment:
                moment, began = self.simulator.now, self.simulator.events
            elif self.simulator.events - began > EVENTS_AT_ONCE_MAX:
                raise Violation(f"{EVENTS_AT_ONCE_MAX} events at {moment:.4f} s: something goes round")
            if self.failures:
                raise Violation("; ".join(self.failures[:3]))

    def _take_down(self) -> None:
        for host in (*(node.host for node in self.nodes.values()), *self.scene.hosts):
            if host.process is not None:
                host.process.end()

    # ---- the end

    def _is_well(self) -> bool:
        """Every node serves; each group has a leader, and its replicas that can take part do, and are equal."""
        images = [node.image for node in self.nodes.values()]
        if not all(node.serving for node in self.nodes.values()) or any(image != images[0] for image in images):
            return False
        image = images[0]
        assert image is not None
        return all(
            self._group_is_well(topic.group_id(number))
            for topic in image.topics.values()
            for number, partition in enumerate(topic.partitions)
        )

    def _group_is_well(self, group_id: object) -> bool:
        sides = [node.raft.groups.get(group_id) for node in self.nodes.values() if node.raft]  # type: ignore[call-overload]
        groups = [group for group in sides if isinstance(group, Group)]
        if not groups:
            return self.plan.wipes_max > 0  # the one replica was on a disk that is gone
        voters = groups[0].voters
        can_copy = len(voters) >= limits.COPY_VOTERS_MIN
        if any(group.role is Role.FAILED or (group.why and can_copy) for group in groups):
            return False
        if len(groups) < len(voters) and can_copy:
            return False  # still being copied
        if 2 * len(groups) <= len(voters):
            return self.plan.wipes_max > 0  # as many as were lost with their disks
        ends = {(group.log.last_index, group.log.last.checksum, group.commit_index) for group in groups}
        return len(ends) == 1 and sum(group.role is Role.LEADER for group in groups) == 1

    def _terms(self) -> dict[str, int]:
        return {
            f"{group_id} on node {number}": group.term
            for number, node in self.nodes.items()
            for group_id, group in (node.raft.groups.items() if node.raft else ())
            if isinstance(group, Group)
        }

    def _reckon(self) -> None:
        history = self.scene.history
        image = next(iter(self.nodes.values())).image
        assert image is not None
        self.topics.check({topic.name for topic in image.topics.values()})
        topic = image.topic("data")
        assert topic is not None
        for number in range(len(topic.partitions)):
            for node in self.nodes.values():
                group = node.raft.groups.get(topic.group_id(number)) if node.raft else None
                if isinstance(group, Group):
                    history.replica(
                        self.scene.name_of(number), int(node.node_id), int(group.high_watermark),
                        int(group.log.last.checksum), self.simulator.now,
                    )  # fmt: skip
        verdict = check(history)
        self.counts["histories_checked"] += 1
        for name in (
            "log_trimmed", "state_log_trimmed", "log_damaged", "log_replaced", "replica_admitted", "file_damaged",
            "file_mended",
        ):  # fmt: skip
            self.counts[f"events_{name}"] += sum(
                f" {name} " in line for node in self.nodes.values() for line in node.events
            )
        self.counts["records"] += sum(self.scene.ends.values())
        if verdict.errors:
            self.failures.append(report(verdict))
        if [gap for gap in verdict.gaps if "conditional_send" not in gap and self.plan.nodes > 2]:
            self.counts["histories_with_gaps"] += 1
        if self.failures:
            raise Violation("; ".join(self.failures[:3]))

    def digest(self) -> str:
        """Of everything that happened: two runs of one seed give the same."""
        text = hashlib.sha256()
        for line in self.trace():
            text.update(line.encode())
        text.update(repr(sorted(self.counts.items())).encode())
        text.update(f"{self.simulator.now!r} {self.simulator.events}".encode())
        return text.hexdigest()

    def trace(self) -> list[str]:
        """What was logged and what was broken, in the order of time."""
        return sorted(
            [line for node in self.nodes.values() for line in node.events] + self.faults.trace,
            key=lambda line: float(line.split()[0]),
        )

    def describe(self) -> str:
        """State of all nodes, for a message."""
        parts = []
        for node in self.nodes.values():
            if node.raft is None:
                parts.append(f"\n  node {node.node_id}: {'alive, not up' if node.alive else 'down'}")
                continue
            parts.append(f"\n  node {node.node_id}: serving={node.serving}")
            for group_id, group in node.raft.groups.items():
                last = group.log.last_index if group.log is not None else 0
                parts.append(
                    f"\n    {group_id.topic_id.hex()[-6:]}-{group_id.partition} {group.role.value} t{group.term} "
                    f"c{group.commit_index} l{last} {group.why}"
                )
        return "".join(parts)
