"""A cluster of real node processes on loopback: start, stop, SIGKILL, and wait for what should become true."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, TypeVar, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from fluxlog.v1 import admin_pb2, admin_pb2_grpc, log_pb2, log_pb2_grpc, record_pb2

T = TypeVar("T")

SECRET = "integration-test-secret"
DEADLINE = 60.0
"""How long a condition may take on a machine that is busy with other tests."""


def wait_until(condition: Callable[[], T | None], what: str, seconds: float = DEADLINE, pause_s: float = 0.02) -> T:
    """Ask until the answer is true, a pause after each answer; a failed call counts as false."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = answer = condition()
            if answer:
                return answer
        except grpc.RpcError as error:
            last = error
        time.sleep(pause_s)
    raise AssertionError(f"not within {seconds} s: {what}; last answer: {last}")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class NodeProcess:
    """One `fluxd serve`."""

    def __init__(self, root: Path, node_id: int, port: int, seeds: str, *, secret: str = SECRET) -> None:
        self.node_id, self.port, self.seeds = node_id, port, seeds
        self.address = f"127.0.0.1:{port}"
        self.root = root
        self.data_dir = root / f"data-{node_id}"
        self.log_path = root / f"node-{node_id}.log"
        self.environment = {"FLUXD_CLUSTER_SECRET": secret}
        self.module = "fluxd"
        self.extra: list[str] = []
        self.code: Path | None = None
        """Directory of the packages that it runs, from the next start on; None: the present ones."""
        self.files_max: int | None = None
        """Hard limit of open files, from the next start on; None: this process's."""
        self.process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def start(self) -> None:
        """Start the process; it may be waited for with `Cluster.wait_ready`."""
        assert self.process is None or self.process.poll() is not None
        self._log = self.log_path.open("ab")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FLUXD_")} | self.environment
        limit = ["sh", "-c", f'ulimit -n {self.files_max} && exec "$@"', "sh"] if self.files_max else []
        self.process = subprocess.Popen(
            [
                *limit, sys.executable, "-m", self.module, "serve", "--node-id", str(self.node_id),
                "--listen", self.address, "--seeds", self.seeds, "--data-dir", str(self.data_dir),
                "--log-format", "json", *self.extra,
            ],
            env=environment, stdout=self._log, stderr=self._log, cwd=self.code,
        )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._closed()

    def stop(self, seconds: float = DEADLINE) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self._closed()
        return code

    def wait_exit(self, seconds: float = DEADLINE) -> int:
        """Wait for an end that the process finds by itself; returns the exit code."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self._closed()
        return code

    def _closed(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @property
    def running(self) -> bool:
        """The process is there."""
        return self.process is not None and self.process.poll() is None

    @property
    def memory_peak_mib(self) -> float:
        """Most memory that the process has had so far."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    @property
    def log_text(self) -> str:
        """All that it has logged so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def channel(self) -> grpc.Channel:
        """To this node, kept until the process ends."""
        if self._channel is None:
            options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
            self._channel = grpc.insecure_channel(self.address, options=options)
        return self._channel

    @property
    def log_stub(self) -> log_pb2_grpc.LogStub:
        """The data path."""
        return log_pb2_grpc.LogStub(self.channel)

    @property
    def admin(self) -> admin_pb2_grpc.AdminStub:
        """Topics and nodes."""
        return admin_pb2_grpc.AdminStub(self.channel)


class Cluster:
    """Several nodes with a common seed list. Use as a context manager."""

    def __init__(self, root: Path, nodes: int = 3, *, code: Path | None = None) -> None:
        ports = free_ports(nodes)
        self.seeds = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(ports, 1))
        self.nodes = [NodeProcess(root, number, port, self.seeds) for number, port in enumerate(ports, 1)]
        for node in self.nodes:
            node.code = code

    def __enter__(self) -> Cluster:
        try:
            for node in self.nodes:
                node.start()
            self.wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for node in self.nodes:
            if node.running:
                node.kill()

    def node(self, node_id: int) -> NodeProcess:
        """By its number."""
        return self.nodes[node_id - 1]

    def others(self, *node_ids: int) -> list[NodeProcess]:
        """All but those."""
        return [node for node in self.nodes if node.node_id not in node_ids]

    def wait_ready(self, nodes: Iterable[NodeProcess] | None = None) -> None:
        """Until each of the nodes knows a controller and sees all of them up."""
        wanted = list(self.nodes if nodes is None else nodes)
        ids = {node.node_id for node in wanted}

        def ready(node: NodeProcess) -> bool:
            answer = node.admin.DescribeCluster(admin_pb2.DescribeClusterRequest(), timeout=2)
            up = {n.node_id for n in answer.nodes if n.state == admin_pb2.NODE_STATE_UP}
            return bool(answer.controller_node) and ids <= up

        for node in wanted:
            wait_until(partial(ready, node), f"node {node.node_id} is ready")

    def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replication_factor: int = 3,
        via: int = 1,
        configs: Mapping[str, str] | None = None,
    ) -> bytes:
        """Create a topic and wait for its leaders; returns its id."""
        response = self.node(via).admin.CreateTopic(
            admin_pb2.CreateTopicRequest(
                name=name,
                partitions=partitions,
                replication_factor=replication_factor,
                wait_ms=10_000,
                configs=configs or {},
            ),
            timeout=20,
        )
        assert response.all_leaders_elected
        return response.topic_id

    def leader_of(self, topic: str, partition: int = 0) -> int:
        """Node id of the leader, once a running node knows one that runs."""

        def leader() -> int:
            for node in self.nodes:
                if node.running:
                    answer = node.admin.DescribeTopics(admin_pb2.DescribeTopicsRequest(names=[topic]), timeout=2)
                    known = answer.topics[0].partitions[partition].leader_node
                    if known and self.node(known).running:
                        return known
            return 0

        return wait_until(leader, f"{topic}-{partition} has a leader")


def produce_request(topic: str, *values: bytes, partition: int = 0, **fields: object) -> log_pb2.ProduceRequest:
    """As a client without an encoder would."""
    records = [record_pb2.Record(value=value) for value in values]
    return log_pb2.ProduceRequest(topic=topic, partition=partition, records=records, **fields)  # type: ignore[arg-type]


def fetch_values(node: NodeProcess, topic: str, partition: int = 0, offset: int = 0) -> list[bytes]:
    """All that this node serves from an offset on."""
    values: list[bytes] = []
    while True:
        request = log_pb2.FetchRequest(topic=topic, partition=partition, offset=offset, as_records=True)
        response = node.log_stub.Fetch(request, timeout=5)
        values += [record.value for record in response.records]
        if response.status.next_offset >= response.status.high_watermark:
            return values
        assert response.status.next_offset > offset
        offset = response.status.next_offset


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """The status of a failed call."""
    return cast(grpc.Call, error).code()


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """Our details of a failed call; fails the test when there are none."""
    details = dict(cast(grpc.Call, error).trailing_metadata() or ()).get("grpc-status-details-bin")
    assert isinstance(details, bytes), error
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return info


def raw_call(
    channel: grpc.Channel, path: str, data: bytes, *, kind: str = "unary_unary", **options: object
) -> list[bytes]:
    """Call a method with bytes, whatever they are; the responses' bytes.

    Args:
        kind: name of the channel's method.
    """
    method = getattr(channel, kind)(path)
    request = iter([data]) if kind.startswith("stream") else data
    response = method(request, **options)
    return list(response) if kind.endswith("stream") else [response]


class Writer:
    """Writes numbered values, one after another, with a producer id: each is sent again until it is acknowledged.

    So the log must hold exactly 0, 1, 2, … up to what was acknowledged: nothing lost, nothing twice.
    """

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self._cluster, self._topic = cluster, topic
        self._producer_id = os.urandom(16)
        self.acknowledged = 0
        self.slowest_s = 0.0

    def write(self, count: int) -> None:
        """Write some more, through whichever node answers."""
        for _ in range(count):
            self._write_one()

    def _write_one(self) -> None:
        number, started = self.acknowledged, time.monotonic()
        request = produce_request(
            self._topic, b"%d" % number, producer_id=self._producer_id, base_sequence=number, timeout_ms=5_000
        )

        def attempt() -> bool:
            node = next(node for node in self._cluster.nodes[number % 3 :] + self._cluster.nodes if node.running)
            assert node.log_stub.Produce(request, timeout=6).base_offset == number
            return True

        wait_until(attempt, f"record {number} is acknowledged")
        self.acknowledged += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def check(self, node: NodeProcess) -> None:
        """What a node serves is what was acknowledged, in order."""
        expected = [b"%d" % number for number in range(self.acknowledged)]

        def complete() -> bool:
            values = fetch_values(node, self._topic)
            assert values == expected[: len(values)]
            return len(values) == len(expected)

        wait_until(complete, f"node {node.node_id} serves {self.acknowledged} records")
