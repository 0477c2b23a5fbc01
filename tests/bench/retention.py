"""`make bench-retention`: a topic with retention.bytes, written at full speed: does its size stay bounded on every
node, do all nodes let go of the same records, and what does that cost the producer?

    python -m tests.bench.retention [--seconds 60] [--compare 15] [--rounds 3] [--retain 256] [--json FILE]

Three real nodes, replication factor 3, one partition, segments of 64 MiB, batches of 256 KiB of 100-byte records, 8 MiB
in flight. First one run of --seconds; then --rounds times a run of --compare seconds with retention and one without,
the other way round every second time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fluxd import tuning
from fluxd.core.entry import HEADER_BYTES, read_stamp
from fluxd.core.types import GroupId
from fluxd.storage.segment import SUFFIX
from fluxlog.v1 import admin_pb2, log_pb2
from tests.bench.load import Load, Produced, produce
from tests.bench.nodes import Nodes
from tests.bench.operations import Found, Part, part_on_nodes, run_parts, say
from tests.integration.cluster import NodeProcess, error_info, wait_until

_MIB = 1024 * 1024
_BATCH_BYTES, _RECORD_BYTES, _IN_FLIGHT = 256 * 1024, 100, 8 * _MIB
_SEGMENT_BYTES = 64 * _MIB
_SAMPLE_S = 0.5
_SETTLED_S = 60.0


@dataclass(slots=True)
class Retained:
    """What was found. Sizes in 10^6 bytes."""

    written_mb: float = 0.0
    mb_per_s: float = 0.0
    retain_mb: float = 0.0
    peak_mb: dict[str, float] = field(default_factory=dict)
    """The largest size seen while it was written, of each node's replica."""
    before_mb: dict[str, float] = field(default_factory=dict)
    """When writing ended."""
    after_mb: dict[str, float] = field(default_factory=dict)
    """When the last records had gone."""
    log_start_offset: int = 0
    log_end_offset: int = 0
    log_starts: dict[str, int] = field(default_factory=dict)
    """As each node tells a reader that asks for what is gone."""
    starts_on_disk: dict[str, int] = field(default_factory=dict)
    """Offset of the first record in each node's files."""
    with_mb_per_s: list[float] = field(default_factory=list)
    without_mb_per_s: list[float] = field(default_factory=list)
    let_go_mb: list[float] = field(default_factory=list)
    """In each run with retention: with nothing let go its rate says nothing."""

    def lines(self) -> list[str]:
        """For people."""

        def sizes(of: dict[str, float]) -> str:
            return " / ".join(f"{size:.0f}" for size in of.values())

        return [
            f"retention.bytes of {self.retain_mb:.0f} MB: {self.written_mb:,.0f} MB written, {self.mb_per_s:.0f} MB/s",
            f"        on each node, MB: largest while writing {sizes(self.peak_mb)}; "
            f"at its end {sizes(self.before_mb)}; afterwards {sizes(self.after_mb)}",
            f"        log start of the leader {self.log_start_offset:,}, as each node tells it "
            f"{_offsets(self.log_starts)}; first record on each disk {_offsets(self.starts_on_disk)}; "
            f"end {self.log_end_offset:,}",
            f"        MB/s with {_rates(self.with_mb_per_s)}, without {_rates(self.without_mb_per_s)} (in turn); "
            f"MB let go in the runs with {_rates(self.let_go_mb)}",
        ]


def _offsets(of: dict[str, int]) -> str:
    return " / ".join(f"{offset:,}" for offset in of.values())


def _rates(rates: list[float]) -> str:
    return f"{statistics.median(rates):.0f} [{' '.join(f'{rate:.0f}' for rate in rates)}]" if rates else "-"


class _Sizes:
    """Size of a replica on each node."""

    def __init__(self, nodes: Nodes, topic: str) -> None:
        name = GroupId(_describe(nodes, topic).topic_id, 0).directory_name
        self._directories = {f"node {n.node_id}": n.data_dir / "partitions" / name for n in nodes.cluster.nodes}
        self.peak: dict[str, float] = dict.fromkeys(self._directories, 0.0)

    def segments(self, node: str) -> list[Path]:
        """Oldest first."""
        return sorted(self._directories[node].glob(f"*{SUFFIX}"))

    def now(self) -> dict[str, float]:
        """10^6 bytes by node."""
        return {node: sum(map(_size, self.segments(node))) / 1e6 for node in self._directories}

    def starts(self) -> dict[str, int]:
        """Offset of the first record on each disk."""
        return {node: read_stamp(_head(self.segments(node)[0])).base_offset for node in self._directories}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the peak meanwhile."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_SAMPLE_S):
                for node, size in self.now().items():
                    self.peak[node] = max(self.peak[node], size)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # let go of meanwhile
        return 0


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def _describe(nodes: Nodes, topic: str) -> admin_pb2.TopicDescription:
    request = admin_pb2.DescribeTopicsRequest(names=[topic])
    return nodes.cluster.node(1).admin.DescribeTopics(request, timeout=10).topics[0]


def _log_start(node: NodeProcess, topic: str) -> int:
    """Asked of this node's replica."""
    try:
        node.log_stub.Fetch(log_pb2.FetchRequest(topic=topic, offset=0), timeout=5)
    except grpc.RpcError as error:
        info = error_info(error)
        return int(info.metadata["log_start_offset"]) if info.reason == "OFFSET_OUT_OF_RANGE" else -1
    return 0


class Retention:
    """The measurement, on a running cluster."""

    def __init__(self, nodes: Nodes, runner: asyncio.Runner, arguments: argparse.Namespace) -> None:
        self._nodes, self._runner, self._arguments = nodes, runner, arguments
        self._retain = arguments.retain * _MIB

    def run(self) -> Retained:
        """All of it."""
        out = Retained(retain_mb=self._retain / 1e6)
        with self._topic(retained=True) as (topic, leaders):
            self._long_run(out, topic, leaders)
        for number in range(self._arguments.rounds):
            self._compare(out, [True, False] if number % 2 == 0 else [False, True])
            say(
                f"round {number + 1}: {out.with_mb_per_s[-1]:.0f} MB/s with, {out.without_mb_per_s[-1]:.0f} without; "
                f"{out.let_go_mb[-1]:.0f} MB let go meanwhile"
            )
        return out

    def _compare(self, out: Retained, order: list[bool]) -> None:
        """One run with retention and one without.

        Args:
            order: of the two: who comes second finds memory that the first one's files gave back.
        """
        for retained in order:
            with self._topic(retained=retained) as (topic, leaders):
                rate = self._produce(topic, leaders, self._arguments.compare).mb_per_s
                (out.with_mb_per_s if retained else out.without_mb_per_s).append(rate)
                if retained:
                    start = _describe(self._nodes, topic).partitions[0].log_start_offset
                    out.let_go_mb.append(start * _RECORD_BYTES / 1e6)

    @contextmanager
    def _topic(self, *, retained: bool) -> Iterator[tuple[str, list[str]]]:
        configs = {"segment.bytes": str(_SEGMENT_BYTES)}
        if retained:
            configs["retention.bytes"] = str(self._retain)
        with self._nodes.topic(1, configs=configs) as found:
            yield found

    def _produce(self, topic: str, leaders: list[str], seconds: float) -> Produced:
        load = Load(topic, leaders, _BATCH_BYTES, _RECORD_BYTES, _IN_FLIGHT)
        return self._runner.run(produce(load, self._nodes.processes, seconds=seconds))

    def _long_run(self, out: Retained, topic: str, leaders: list[str]) -> None:
        sizes = _Sizes(self._nodes, topic)
        with sizes.watched():
            done = self._produce(topic, leaders, self._arguments.seconds)
            out.before_mb = sizes.now()
        out.written_mb, out.mb_per_s, out.peak_mb = done.size / 1e6, done.mb_per_s, sizes.peak
        say(f"written: {out.written_mb:,.0f} MB; sizes {out.before_mb}")

        def settled() -> bool:
            partition = _describe(self._nodes, topic).partitions[0]
            out.log_start_offset, out.log_end_offset = partition.log_start_offset, partition.log_end_offset
            out.after_mb, out.starts_on_disk = sizes.now(), sizes.starts()
            out.log_starts = {f"node {n.node_id}": _log_start(n, topic) for n in self._nodes.cluster.nodes}
            # The segment before the log start stays: see fluxd/storage/head.py.
            small = all(size < (self._retain + 2 * _SEGMENT_BYTES) / 1e6 for size in out.after_mb.values())
            return small and set(out.log_starts.values()) == {out.log_start_offset}

        wait_until(settled, "every node has let go of the same records, down to what is to be retained", _SETTLED_S)


def parts(arguments: argparse.Namespace) -> list[Part]:
    """The one."""

    def measure(nodes: Nodes) -> Found:
        with asyncio.Runner(loop_factory=tuning.loop_factory()) as runner:
            return Retention(nodes, runner, arguments).run()

    return [part_on_nodes("retention", measure)]


def make_parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.retention", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the long run [60]")
    parser.add_argument("--compare", type=float, default=15.0, help="seconds of each run that is compared [15]")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison [3]")
    parser.add_argument("--retain", type=int, default=256, help="MiB: retention.bytes [256]")
    return parser


def main() -> None:
    """See the module."""
    parser = make_parser()
    run_parts(parser, parts)


if __name__ == "__main__":
    main()
