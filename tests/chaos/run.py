"""One run: a cluster, its clients, everything that goes wrong, the last phase, and the judgement."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fluxlog.admin import Admin
from fluxlog.checker import History, Outcome, Phase, Verdict, check
from fluxlog.checker.jsonl import Writer, read
from fluxlog.client import Client
from fluxlog.errors import FluxlogError
from fluxlog.v1 import admin_pb2, log_pb2, record_pb2
from tests.chaos import replicas
from tests.chaos.availability import Availability, measure
from tests.chaos.nemesis import Nemesis, NetworkNemesis, ProcessNemesis
from tests.chaos.network import Loopback, Namespaces
from tests.chaos.nodes import Nodes
from tests.chaos.plan import Kind, network_plan, process_plan
from tests.chaos.readers import FinalReader, LatestReader, LibraryReader, NodeReader
from tests.chaos.scene import Scene, Worker
from tests.chaos.topics import TopicWriter
from tests.chaos.writers import ConditionalWriter, IdempotentWriter, StreamWriter, StubWriter

TOPIC = "chaos"
_HEAL_SECONDS = 60.0
_CALM_SECONDS = 3.0
"""Of writing after everything is healed: progress is expected there too."""
_FINAL_READ_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made of."""

    seed: int
    seconds: float
    directory: Path
    nodes: int = 3
    partitions: int = 4
    only: frozenset[Kind] = frozenset()
    """Kinds of faults; empty: all."""


@dataclass(slots=True)
class Result:
    """What came of it."""

    options: Options
    verdict: Verdict
    availability: Availability
    failures: list[str]
    """What went wrong beside the history: a node that ended, an alarm in a log, a client that was told nonsense."""
    faults: dict[str, int] = field(default_factory=dict)
    crashes: int = 0
    packets: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    """What power cuts took."""

    @property
    def valid(self) -> bool:
        """Nothing was broken, and the run was not an empty one."""
        return self.verdict.valid and not self.failures and bool(sum(self.faults.values()))

    def to_json(self) -> str:
        """Everything."""
        out = {
            "valid": self.valid, "seed": self.options.seed, "seconds": self.options.seconds, "faults": self.faults,
            "client_crashes": self.crashes, "failures": self.failures, "availability": asdict(self.availability),
            "packets": self.packets, "taken_by_power_cuts": self.lost, "verdict": self.verdict.to_dict(),
        }  # fmt: skip
        return json.dumps(out, indent=2)


class Run:
    """Holds the parts together."""

    def __init__(self, options: Options, network: Loopback | Namespaces) -> None:
        self._options, self._network = options, network
        shutil.rmtree(options.directory, ignore_errors=True)
        histories = options.directory / "histories"
        histories.mkdir(parents=True)
        self._failures: list[str] = []
        self._nodes = Nodes(options.directory, options.nodes, network, self._failures)
        self._client = Client(list(network.addresses.values()))
        self._admin = Admin(self._client, patience=30)
        self._scene = Scene(
            TOPIC, options.partitions, dict(network.addresses), options.seed, histories, self._failures,
            crash_every=max(5.0, min(30.0, options.seconds / 3)),
        )  # fmt: skip
        self._file = (histories / "run.jsonl").open("w", buffering=1)
        self._history = Writer(self._file)

    def run(self) -> Result:
        """From the start of the nodes to the judgement."""
        try:
            return self._run()
        finally:
            self._scene.stop_writing.set()
            self._scene.stop_reading.set()
            self._nodes.close()
            self._client.close()

    def _run(self) -> Result:
        self._nodes.start()
        self._wait_healthy()
        topic = self._admin.create_topic(
            TOPIC, partitions=self._options.partitions, replication_factor=self._options.nodes,
            configs={"segment.bytes": "262144"}, if_not_exists=True, wait_ms=10_000,
        )  # fmt: skip
        self._wait_healthy()
        topics = TopicWriter("topics", self._scene)
        writers, readers = [*self._writers(), topics], self._readers()
        began = time.monotonic()
        self._history.phase(Phase.FAULTS, began)
        for worker in (*writers, *readers):
            worker.start()
        nemeses = self._let_faults_happen()
        healed = time.monotonic()
        self._history.phase(Phase.HEAL, healed)
        healthy = self._wait_healthy()
        time.sleep(_CALM_SECONDS)
        availability_end = time.monotonic()
        self._end(self._scene.stop_writing, writers)
        if healthy:  # else the run has failed, and would only take longer
            self._write_last()
        self._end(self._scene.stop_reading, readers)
        if healthy:
            self._history.phase(Phase.FINAL_READ, time.monotonic())
            self._read_everything()
            topics.check(self._admin)
            self._wait_healthy()
        self._stop_and_compare(topic.topic_id)
        history = self._load()
        members = self._options.nodes
        return Result(
            self._options,
            check(history),
            measure(history, self._nodes.changes, members, began, availability_end),
            self._failures,
            {kind: count for nemesis in nemeses for kind, count in nemesis.counts.items()},
            history.crashes,
            self._network.close(),
            asdict(ProcessNemesis.lost),
        )

    # ---- clients

    def _writers(self) -> list[Worker]:
        scene = self._scene
        return [
            StreamWriter("probe", scene, interval=0.05 / scene.partitions, records_max=1, crashes=False),
            StreamWriter("stream1", scene, interval=0.05, records_max=20),
            StreamWriter("stream2", scene, interval=0.05, records_max=20),
            StubWriter("stub1", scene, interval=0.1),
            IdempotentWriter("idempotent1", scene, interval=0.05),
            IdempotentWriter("idempotent2", scene, interval=0.05),
            ConditionalWriter("conditional1", scene, interval=0.2),
            ConditionalWriter("conditional2", scene, interval=0.2),
        ]

    def _readers(self) -> list[Worker]:
        scene = self._scene
        nodes = [NodeReader(f"node{number}", scene, number) for number in scene.addresses]
        return [*nodes, LibraryReader("reader1", scene), LibraryReader("reader2", scene), LatestReader("latest", scene)]

    def _end(self, stop: threading.Event, workers: Sequence[Worker]) -> None:
        stop.set()
        for worker in workers:
            worker.join(60)
            if worker.is_alive():
                self._failures.append(f"client {worker.name} does not end")
            worker.close()

    # ---- phases

    def _let_faults_happen(self) -> list[Nemesis]:
        seed, seconds, only = self._options.seed, self._options.seconds, self._options.only
        plan = process_plan(seed, seconds, only)
        nemeses: list[Nemesis] = [ProcessNemesis("processes", self._nodes, plan, self._leader, self._failures)]
        if self._network.can_be_cut:
            plan = network_plan(seed, seconds, only)
            nemeses.append(NetworkNemesis("network", self._nodes, plan, self._leader, self._failures))
        deadline = time.monotonic() + seconds
        for nemesis in nemeses:
            nemesis.start()
        for nemesis in nemeses:
            nemesis.join(max(0.0, deadline - time.monotonic()))
        for nemesis in nemeses:
            nemesis.over.set()
            nemesis.join(60)
            nemesis.heal()
        diary = sorted((entry for nemesis in nemeses for entry in nemesis.diary), key=lambda entry: entry["time"])
        (self._options.directory / "faults.json").write_text(json.dumps(diary, indent=1))
        return nemeses

    def _leader(self, choice: int) -> int | None:
        """Of some partition, or the controller."""
        partition = random.Random(choice).randrange(-1, self._options.partitions)
        try:
            if partition < 0:
                return self._admin.describe_cluster(timeout=1).controller_node or None
            request = admin_pb2.DescribeTopicsRequest(names=[TOPIC])
            answer = self._client.call(lambda node: node.admin.DescribeTopics, request, timeout=1)
            return answer.topics[0].partitions[partition].leader_node or None
        except (FluxlogError, IndexError):
            return None

    def _wait_healthy(self) -> bool:
        """All nodes see all nodes, all replicas are in sync; False, and the run has failed: not in time."""
        deadline, why = time.monotonic() + _HEAL_SECONDS, ""
        while time.monotonic() < deadline:
            why = self._why_not_healthy()
            if not why:
                return True
            time.sleep(0.1)
        self._failures.append(f"not healthy within {_HEAL_SECONDS:g} s: {why}")
        return False

    def _why_not_healthy(self) -> str:
        for number, address in self._network.addresses.items():
            try:
                cluster = self._admin.describe_cluster(address=address, timeout=2)
            except FluxlogError as failure:
                return f"node {number}: {failure!r}"
            down = [node.node_id for node in cluster.nodes if node.state != admin_pb2.NODE_STATE_UP]
            if not cluster.controller_node or down or len(cluster.nodes) != self._options.nodes:
                return f"node {number} says: controller {cluster.controller_node}, down {down}"
            if cluster.leaderless_partitions or cluster.under_replicated_partitions:
                return (
                    f"node {number} says: {cluster.leaderless_partitions} partitions have no leader, "
                    f"{cluster.under_replicated_partitions} a replica out of sync"
                )
        return ""

    def _write_last(self) -> None:
        """One new record in every partition."""
        for partition in range(self._options.partitions):
            text = f"last-{partition}"
            number = self._history.send("last", self._scene.name_of(partition), [text], time.monotonic())
            request = log_pb2.ProduceRequest(
                topic=TOPIC, partition=partition, records=[record_pb2.Record(value=text.encode())],
                producer_id=random.randbytes(16),
            )  # fmt: skip
            try:
                answer = self._client.call(lambda node: node.log.Produce, request, timeout=5, patience=30)
            except FluxlogError as failure:
                self._failures.append(f"no record can be written to partition {partition} in the end: {failure!r}")
                continue
            self._scene.saw(partition, answer.base_offset + 1)
            self._history.sent(
                number, time.monotonic(), Outcome.OK, offset=answer.base_offset, leader_epoch=answer.leader_epoch
            )

    def _read_everything(self) -> None:
        deadline = time.monotonic() + _FINAL_READ_SECONDS
        ends = self._scene.ends()
        readers = [FinalReader(f"final{n}", self._scene, n, ends, deadline) for n in self._network.addresses]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(_FINAL_READ_SECONDS + 10)
            reader.close()

    def _stop_and_compare(self, topic_id: bytes) -> None:
        """Stop all nodes as an operator would, and look at their files."""
        codes: dict[int, int] = {}

        def stop(number: int) -> None:
            codes[number] = self._nodes.all[number].stop()

        threads = [threading.Thread(target=stop, args=(number,)) for number in self._nodes.all]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._failures += [f"node {number} ended with code {code}" for number, code in codes.items() if code != 0]
        data = {number: node.data for number, node in self._nodes.all.items()}
        self._failures += replicas.compare(data, TOPIC, topic_id, self._scene.ends(), self._history)
        for node in self._nodes.all.values():
            self._failures += node.alarms()

    def _load(self) -> History:
        self._file.close()
        history = History()
        for path in sorted((self._options.directory / "histories").iterdir()):
            with path.open() as lines:
                read(lines, history)
        return history
