"""What partitions cost that nobody uses, and how fast many of them get a leader.

    python -m tests.bench.idle [--partitions 300,1000] [--seconds 10] [--kills 1]

For each number, three fresh nodes on this machine, replication factor 3: the time to create a topic until all its
partitions have a leader, each node's processor time and memory while nothing happens, and the time until all have a
leader again after SIGKILL of one node. Leaders are asked for ten times a second; while idle nobody asks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import grpc

from fluxlog.v1 import admin_pb2
from tests.bench.nodes import Nodes, running_nodes
from tests.bench.usage import CLIENT, Meter
from tests.integration.cluster import NodeProcess

_TOPIC = "idle"
_POLL_S = 0.1
_WITHIN_S = 120.0
_SETTLE_S = 5.0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--partitions", default="300,1000", help="with commas [300,1000]")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to look at idle nodes [10]")
    parser.add_argument("--kills", type=int, default=1, help="how often a node is killed, and started again [1]")
    parser.add_argument("--dir", type=Path, help="where the nodes' files go for the time being")
    arguments = parser.parse_args()
    for partitions in map(int, arguments.partitions.split(",")):
        with (
            tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fluxd-idle-") as name,
            running_nodes(Path(name)) as nodes,
        ):
            _measure(nodes, partitions, arguments.seconds, arguments.kills)


def _measure(nodes: Nodes, partitions: int, seconds: float, kills: int) -> None:
    empty = _memory_mb(nodes)
    _idle(nodes, "    no partitions", seconds / 2)
    began = time.monotonic()
    nodes.cluster.node(1).admin.CreateTopic(
        admin_pb2.CreateTopicRequest(name=_TOPIC, partitions=partitions, replication_factor=3), timeout=60
    )
    led = _until_led(nodes, range(partitions), without=0)
    _tell(f"{partitions:>6} partitions: all led {time.monotonic() - began:.1f} s after the request, half {_half(led)}")
    time.sleep(_SETTLE_S)
    _idle(nodes, f"{partitions:>6} partitions", seconds)
    memory = _memory_mb(nodes)
    grown = {name: 1000 * (now - empty[name]) / partitions for name, now in memory.items()}
    _tell(f"       memory, MB: {_text(memory)}; KB for each partition: {_text(grown)}; files: {_text(_files(nodes))}")
    for number in range(kills):
        victim = nodes.cluster.node(1 + number % 3)
        _kill(nodes, victim)
        if number + 1 < kills:
            victim.start()
            nodes.cluster.wait_ready()
            time.sleep(_SETTLE_S)


def _kill(nodes: Nodes, victim: NodeProcess) -> None:
    found = _describe(nodes.cluster.others(victim.node_id)[0])
    led = [partition.partition for partition in found if partition.leader_node == victim.node_id]
    began = time.monotonic()
    victim.kill()
    times = _until_led(nodes, led, without=victim.node_id)
    took = time.monotonic() - began
    _tell(
        f"       node {victim.node_id}, which led {len(led)}, killed: all led after {took:.1f} s, half {_half(times)}"
    )


def _idle(nodes: Nodes, what: str, seconds: float) -> None:
    meter = Meter(nodes.processes)
    time.sleep(seconds)
    usage = meter.stop()
    cores = {name: 100 * spent / usage.seconds for name, spent in usage.cpu_s.items() if name != CLIENT}
    others = f"others on this machine {100 * usage.others_cores:.0f}"
    _tell(f"{what}, idle for {usage.seconds:.0f} s, % of a core: {_text(cores)} ({others})")


def _memory_mb(nodes: Nodes) -> dict[str, float]:
    return {name: now for name, (now, _) in nodes.memory_mb().items()}


def _files(nodes: Nodes) -> dict[str, float]:
    return {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in nodes.processes.items()}


def _describe(node: NodeProcess) -> list[admin_pb2.PartitionDescription]:
    answer = node.admin.DescribeTopics(admin_pb2.DescribeTopicsRequest(names=[_TOPIC]), timeout=10)
    return list(answer.topics[0].partitions) if answer.topics else []


def _until_led(nodes: Nodes, wanted: Iterable[int], *, without: int) -> list[float]:
    """Seconds until each of these partitions had a leader that is not that node, as another node knows it."""
    node, began, waiting = nodes.cluster.others(without)[-1], time.monotonic(), set(wanted)
    times: list[float] = []
    while waiting:
        try:
            found = _describe(node)
        except grpc.RpcError:
            found = []
        now = time.monotonic() - began
        led = {partition.partition for partition in found if partition.leader_node not in (0, without)}
        times += [now] * len(waiting & led)
        waiting -= led
        assert now < _WITHIN_S, f"{len(waiting)} partitions have no leader after {_WITHIN_S} s"
        time.sleep(_POLL_S)
    return times


def _half(times: list[float]) -> str:
    return f"after {statistics.median(times):.1f} s" if times else "never"


def _tell(line: str) -> None:
    print(line, flush=True)


def _text(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())


if __name__ == "__main__":
    main()
