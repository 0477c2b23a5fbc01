"""`make bench-recovery`: how long until a node with 2 GB is back after SIGKILL, how much does it read, and how long
does a node whose disk was wiped need to copy 2 GB while the partition is written?

    python -m tests.bench.recovery [--gb 2] [--kills 3] [--drop-caches] [--json FILE]

Three real nodes, one partition on all of them, segments of 64 MiB. Killed is a follower. Bytes are what the process
read by system calls until then, less what a node with empty logs reads; its pages may be in memory ("warm") unless
--drop-caches (root; it empties the page cache of the whole machine). Serving: the node answers a fetch of its own
replica. In sync: the leader says that all three replicas are.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from fluxd import tuning
from fluxlog.v1 import admin_pb2, log_pb2
from tests.bench.load import Load, produce
from tests.bench.nodes import Nodes
from tests.bench.operations import Found, Part, part_on_nodes, run_parts, say
from tests.integration.cluster import NodeProcess, wait_until

_BATCH_BYTES, _RECORD_BYTES, _IN_FLIGHT = 256 * 1024, 100, 8 * 1024 * 1024
_STEADY_BATCH_BYTES = 64 * 1024
"""Under which the wiped node copies: one batch at a time."""
_WINDOW_S = 5.0
_BACK_S, _COPIED_S = 60.0, 240.0


@dataclass(slots=True)
class Recovered:
    """What was found. Seconds and 10^6 bytes; the lists are parallel, one item a kill."""

    cold: bool = False
    data_mb: float = 0.0
    segments: int = 0
    idle_read_mb: float = 0.0
    """What a node with empty logs reads until it is ready."""
    serving_s: list[float] = field(default_factory=list)
    in_sync_s: list[float] = field(default_factory=list)
    read_mb: list[float] = field(default_factory=list)
    """By system calls, until in sync."""
    disk_read_mb: list[float] = field(default_factory=list)
    """Of those, from the disk and not from memory."""
    copied_s: float = 0.0
    """From the start of the wiped node until in sync."""
    copied_mb: float = 0.0
    """Size of its log then."""
    before_mb_per_s: float = 0.0
    """What the one producer reached with all replicas there."""
    meanwhile_mb_per_s: list[float] = field(default_factory=list)
    """In windows of five seconds while the wiped node copied."""

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"recovery after SIGKILL, {self.data_mb:,.0f} MB in {self.segments} segments, page cache "
            f"{'cold' if self.cold else 'warm'}: serving after {_all(self.serving_s, 2)} s, in sync after "
            f"{_all(self.in_sync_s, 2)} s",
            f"        read {_all(self.read_mb, 1)} MB, from the disk {_all(self.disk_read_mb, 1)} MB "
            f"(a node with empty logs reads {self.idle_read_mb:.0f} MB)",
            f"wiped: in sync after {self.copied_s:.1f} s, {self.copied_mb:,.0f} MB, "
            f"{self.copied_mb / self.copied_s if self.copied_s else 0:.0f} MB/s; producing, one batch of 64 KiB at a "
            f"time: {self.before_mb_per_s:.1f} MB/s before, meanwhile {_all(self.meanwhile_mb_per_s, 1)} MB/s",
        ]


def _all(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} [{' '.join(f'{value:.{digits}f}' for value in values)}]"


@dataclass(frozen=True, slots=True)
class _Reads:
    """Of a process so far, 10^6 bytes."""

    calls: float
    disk: float

    @staticmethod
    def of(node: NodeProcess) -> _Reads:
        assert node.process is not None
        lines = Path(f"/proc/{node.process.pid}/io").read_text().splitlines()
        fields = {name: int(value) for name, value in (line.split(": ") for line in lines)}
        return _Reads(fields["rchar"] / 1e6, fields["read_bytes"] / 1e6)


class Recovery:
    """The measurement, on a running cluster."""

    def __init__(self, nodes: Nodes, runner: asyncio.Runner, arguments: argparse.Namespace) -> None:
        self._nodes, self._cluster, self._runner, self._arguments = nodes, nodes.cluster, runner, arguments
        self._leader = self._cluster.node(1)

    def run(self) -> Recovered:
        """Kills first, then the wiped disk."""
        out = Recovered(cold=self._arguments.drop_caches)
        self._measure_idle(out)
        with self._nodes.topic(1) as (topic, leaders):
            filled = self._runner.run(
                produce(
                    Load(topic, leaders, _BATCH_BYTES, _RECORD_BYTES, _IN_FLIGHT), self._nodes.processes,
                    total_bytes=int(self._arguments.gb * 1e9),
                )
            )  # fmt: skip
            say(f"{filled.size / 1e6:,.0f} MB written, {filled.mb_per_s:.0f} MB/s")
            self._leader = self._cluster.node(self._cluster.leader_of(topic))
            victim = self._cluster.others(self._leader.node_id)[0]
            for _ in range(self._arguments.kills):
                self._kill(out, topic, victim)
            self._runner.run(self._wipe(out, topic, victim))
        return out

    def _measure_idle(self, out: Recovered) -> None:
        node = self._cluster.node(3)
        node.kill()
        node.start()
        self._cluster.wait_ready()
        out.idle_read_mb = _Reads.of(node).calls

    # ---- after SIGKILL

    def _kill(self, out: Recovered, topic: str, victim: NodeProcess) -> None:
        self._wait_in_sync(topic, _BACK_S)
        victim.kill()
        segments = sorted(self._replica(topic, victim).glob("*.seg"))
        out.data_mb, out.segments = sum(path.stat().st_size for path in segments) / 1e6, len(segments)
        if self._arguments.drop_caches:
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
        began = time.monotonic()
        victim.start()
        wait_until(lambda: self._serves(topic, victim), "the node serves its replica", _BACK_S)
        out.serving_s.append(time.monotonic() - began)
        wait_until(lambda: self._heard_since(topic, victim, began), "the leader has heard from it", _BACK_S)
        self._wait_in_sync(topic, _BACK_S)
        out.in_sync_s.append(time.monotonic() - began)
        reads = _Reads.of(victim)
        out.read_mb.append(reads.calls - out.idle_read_mb)
        out.disk_read_mb.append(reads.disk)
        say(
            f"killed: serving {out.serving_s[-1]:.2f} s, in sync {out.in_sync_s[-1]:.2f}, {out.read_mb[-1]:.1f} MB read"
        )

    def _serves(self, topic: str, node: NodeProcess) -> bool:
        end = self._partition(topic).high_watermark
        request = log_pb2.FetchRequest(topic=topic, offset=end - 1, max_bytes=1)
        response = node.log_stub.Fetch(request, timeout=5)
        return bool(response.entries) and response.status.served_by == node.node_id

    def _heard_since(self, topic: str, node: NodeProcess, moment: float) -> bool:
        """The leader has; what it says of the last second and a half alone may be about the process that was killed."""
        elapsed_ms = 1000 * (time.monotonic() - moment)
        states = {state.node_id: state for state in self._partition(topic).replica_states}
        state = states[node.node_id]
        return state.HasField("last_heard_ms") and state.last_heard_ms < elapsed_ms

    def _replica(self, topic: str, node: NodeProcess) -> Path:
        topic_id = self._describe(topic).topic_id
        return node.data_dir / "partitions" / f"{topic_id.hex()}-0"

    # ---- after the loss of a disk

    async def _wipe(self, out: Recovered, topic: str, victim: NodeProcess) -> None:
        load = Load(topic, [self._leader.address], _STEADY_BATCH_BYTES, _RECORD_BYTES, _STEADY_BATCH_BYTES)
        others = {name: pid for name, pid in self._nodes.processes.items() if name != f"node {victim.node_id}"}
        out.before_mb_per_s = (await produce(load, others, seconds=2 * _WINDOW_S)).mb_per_s
        victim.kill()
        await asyncio.to_thread(shutil.rmtree, victim.data_dir)
        began = time.monotonic()
        victim.start()
        copied = asyncio.ensure_future(asyncio.to_thread(self._wait_copied, topic, victim))
        while not copied.done():
            rate = (await produce(load, others, seconds=_WINDOW_S)).mb_per_s
            out.meanwhile_mb_per_s.append(rate)
            say(f"wiped: {time.monotonic() - began:.0f} s, producing {rate:.1f} MB/s")
        out.copied_s = await copied - began
        out.copied_mb = sum(path.stat().st_size for path in self._replica(topic, victim).glob("*.seg")) / 1e6

    def _wait_copied(self, topic: str, victim: NodeProcess) -> float:
        wait_until(lambda: len(self._partition(topic).isr) == 2, "the loss of the replica is noticed", _BACK_S)
        self._wait_in_sync(topic, _COPIED_S)
        return time.monotonic()

    # ---- what the cluster says

    def _describe(self, topic: str) -> admin_pb2.TopicDescription:
        request = admin_pb2.DescribeTopicsRequest(names=[topic])
        return self._leader.admin.DescribeTopics(request, timeout=10).topics[0]

    def _partition(self, topic: str) -> admin_pb2.PartitionDescription:
        return self._describe(topic).partitions[0]

    def _wait_in_sync(self, topic: str, seconds: float) -> None:
        wait_until(lambda: len(self._partition(topic).isr) == 3, "all three replicas are in sync", seconds)


def parts(arguments: argparse.Namespace) -> list[Part]:
    """The one."""

    def measure(nodes: Nodes) -> Found:
        with asyncio.Runner(loop_factory=tuning.loop_factory()) as runner:
            return Recovery(nodes, runner, arguments).run()

    return [part_on_nodes("recovery", measure)]


def make_parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recovery", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gb", type=float, default=2.0, help="10^9 bytes of values [2]")
    parser.add_argument("--kills", type=int, default=3, help="[3]")
    parser.add_argument("--drop-caches", action="store_true", help="empty the machine's page cache before each start")
    return parser


def main() -> None:
    """See the module."""
    parser = make_parser()
    run_parts(parser, parts)


if __name__ == "__main__":
    main()
