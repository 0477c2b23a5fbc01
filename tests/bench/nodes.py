"""The measured cluster, and the bare gRPC server beside it: processes on loopback."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

from fluxlog.v1 import admin_pb2
from tests.bench.usage import memory_mb
from tests.integration.cluster import Cluster, free_ports, wait_until

_names = itertools.count(1)


class Nodes:
    """A running cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name."""
        return {f"node {n.node_id}": n.process.pid for n in self.cluster.nodes if n.process is not None}

    def memory_mb(self) -> dict[str, tuple[float, float]]:
        """Resident memory by name: now, and at its peak."""
        return {name: memory_mb(process_id) for name, process_id in self.processes.items()}

    @contextmanager
    def topic(
        self, partitions: int, replication_factor: int = 3, configs: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        """A fresh topic and the address of each partition's leader; deleted afterwards, with its files."""
        before, name = self._replicas(), f"bench-{next(_names)}"
        self.cluster.create_topic(name, partitions=partitions, replication_factor=replication_factor, configs=configs)
        leaders = [self.cluster.leader_of(name, number) for number in range(partitions)]
        try:
            yield name, [self.cluster.node(leader).address for leader in leaders]
        finally:
            admin = self.cluster.node(1).admin
            admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name=name), timeout=20)
            wait_until(lambda: self._replicas() <= before, f"the files of {name} are gone")

    def _replicas(self) -> set[Path]:
        return {path for node in self.cluster.nodes for path in (node.data_dir / "partitions").iterdir()}

    def name_of(self, address: str) -> str:
        """The process's name behind an address."""
        return next(f"node {node.node_id}" for node in self.cluster.nodes if node.address == address)


@contextmanager
def running_nodes(root: Path) -> Iterator[Nodes]:
    """Three nodes, ready."""
    with Cluster(root) as cluster:
        yield Nodes(cluster)


@contextmanager
def running_echo() -> Iterator[tuple[str, int]]:
    """The bare server's address and process id."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.echo", str(port)])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()
