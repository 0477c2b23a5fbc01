"""`make bench-failover`: for how long can nothing be written when a leader goes, on three real nodes under load?

    python -m tests.bench.failover [--rounds 20] [--only leader,many,hang,stop] [--many 300] [--rate 2000] [--json FILE]

leader  SIGKILL of the node that leads a partition
many    SIGKILL of a node that leads 300 partitions, each with a write of its own under way
hang    SIGSTOP of the leader, SIGCONT when another one has taken over
stop    SIGTERM of the leader: it hands over

Records are written all the time by the library's producer (idempotent, it tries again by itself); a probe writes one
record after another. Unavailable is the longest wait for an acknowledgement from the signal until a new leader
gave one: what a program that uses the library sees, its way to the new leader included. Each round begins when all
replicas are in sync and the preferred leaders lead. At the end everything is read back: nothing may be lost or be there
twice.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from fluxlog.v1 import admin_pb2
from tests.bench.nodes import Nodes
from tests.bench.operations import Part, part_on_nodes, run_parts, say
from tests.bench.writers import Verdict, Writers
from tests.integration.cluster import NodeProcess, wait_until

KINDS = ("leader", "many", "hang", "stop")
_AIMS_S = {"leader": (0.3, 1.5), "many": (0.3, 1.5), "hang": (2.0, None), "stop": (0.1, None)}
"""Median and maximum."""
_WHOLE_S = 120.0
"""For a cluster to be whole and balanced again."""
_PROBED, _LOADED = "probed", "loaded"
_STEADY_PAUSE_S = 0.005
_MANY_PAUSE_S = 1.0


@dataclass(slots=True)
class Failover:
    """All rounds of one kind; seconds."""

    kind: str
    partitions: int
    """That lose their leader in a round."""
    unavailable_s: list[float] = field(default_factory=list)
    """Of each round: of the partition that waited longest."""
    median_partition_s: list[float] = field(default_factory=list)
    whole_again_s: list[float] = field(default_factory=list)
    """From the signal until all is in sync and led as preferred."""
    handed_back_s: list[float] = field(default_factory=list)
    """The longest wait for an acknowledgement meanwhile, after the failover."""
    verdict: Verdict = field(default_factory=Verdict)

    def lines(self) -> list[str]:
        """For people."""
        aims = [f"{aim:g}" if aim is not None else "-" for aim in _AIMS_S[self.kind]]
        out = [
            f"{self.kind:<7} {len(self.unavailable_s)} rounds: unavailable ms median {_ms(self.unavailable_s)} (aim "
            f"{aims[0]} s), maximum {1000 * max(self.unavailable_s):.0f} (aim {aims[1]} s); "
            f"all {' '.join(f'{1000 * s:.0f}' for s in self.unavailable_s)}",
            f"        whole again after {statistics.median(self.whole_again_s):.1f} s; longest wait meanwhile ms "
            f"median {_ms(self.handed_back_s)}, maximum {1000 * max(self.handed_back_s):.0f}",
            f"        {self.verdict.acknowledged:,} records acknowledged, lost {self.verdict.lost}, written twice "
            f"{self.verdict.duplicated}, without an acknowledgement {self.verdict.failed}",
        ]
        if self.partitions > 1:
            out.insert(
                1, f"        {self.partitions} partitions a round; median partition {_ms(self.median_partition_s)} ms"
            )
        return out


def _ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f}"


class Rounds:
    """One kind, on a cluster of its own."""

    def __init__(self, kind: str, nodes: Nodes, arguments: argparse.Namespace) -> None:
        self._kind, self._cluster, self._arguments = kind, nodes.cluster, arguments
        self._topics = {_PROBED: 3 * arguments.many if kind == "many" else 1, _LOADED: 3}

    def run(self) -> Failover:
        """All rounds."""
        for topic, partitions in self._topics.items():
            request = admin_pb2.CreateTopicRequest(name=topic, partitions=partitions, replication_factor=3)
            self._cluster.node(1).admin.CreateTopic(request, timeout=20)
        self._wait_whole()
        victim = self._cluster.node(self._cluster.leader_of(_PROBED))
        led = self._led_by(victim.node_id)
        out = Failover(self._kind, len(led))
        with Writers([node.address for node in self._cluster.nodes]) as writers:
            writers.load(_LOADED, self._arguments.rate)
            writers.probe(_PROBED, led, _MANY_PAUSE_S if self._kind == "many" else _STEADY_PAUSE_S)
            for number in range(self._arguments.rounds):
                self._round(out, writers, victim, led)
                say(
                    f"{self._kind} {number + 1}: unavailable {1000 * out.unavailable_s[-1]:.0f} ms, median partition "
                    f"{1000 * out.median_partition_s[-1]:.0f}, whole again after {out.whole_again_s[-1]:.1f} s"
                )
        out.verdict = writers.check()
        return out

    def _round(self, out: Failover, writers: Writers, victim: NodeProcess, led: list[int]) -> None:
        self._wait_written(writers, led)
        epochs = writers.epochs(_PROBED, led) if self._kind == "stop" else dict.fromkeys(led, -1)
        moment = time.monotonic()
        self._strike(victim)
        writers.all_at_once()
        waits = writers.unavailable_s(_PROBED, epochs, moment)
        over = time.monotonic()
        self._heal(victim)
        self._wait_whole()
        out.whole_again_s.append(time.monotonic() - moment)
        out.unavailable_s.append(max(waits.values()))
        out.median_partition_s.append(statistics.median(waits.values()))
        out.handed_back_s.append(writers.slowest_s(_PROBED, led, over))

    def _strike(self, victim: NodeProcess) -> None:
        process = victim.process
        assert process is not None
        os.kill(process.pid, {"hang": signal.SIGSTOP, "stop": signal.SIGTERM}.get(self._kind, signal.SIGKILL))

    def _heal(self, victim: NodeProcess) -> None:
        process = victim.process
        assert process is not None
        if self._kind == "hang":
            os.kill(process.pid, signal.SIGCONT)
            return
        victim.wait_exit()
        victim.start()

    def _wait_written(self, writers: Writers, led: list[int]) -> None:
        """Every probe has been acknowledged by the leader that is going to be struck."""
        since = time.monotonic()
        writers.all_at_once()
        wait_until(lambda: writers.written_since(_PROBED, led, since), "every probe is acknowledged", _WHOLE_S)

    # ---- the cluster's state

    def _partitions(self) -> Iterable[admin_pb2.PartitionDescription]:
        for topic in self._topics:
            request = admin_pb2.DescribeTopicsRequest(names=[topic])
            yield from self._cluster.node(1).admin.DescribeTopics(request, timeout=10).topics[0].partitions

    def _wait_whole(self) -> None:
        missing: list[str] = []

        def whole() -> bool:
            partitions = list(self._partitions())
            elsewhere = sum(partition.leader_node != partition.replicas[0] for partition in partitions)
            behind = sum(len(partition.isr) != len(partition.replicas) for partition in partitions)
            missing[:] = [f"{elsewhere} partitions are not led by their preferred leader, {behind} not in sync"]
            return not elsewhere and not behind

        self._cluster.wait_ready()
        try:
            # Not too often: what many partitions tell is long, and the measured nodes have to tell it.
            wait_until(whole, "the cluster is whole", _WHOLE_S, pause_s=0.3)
        except AssertionError as error:
            raise TimeoutError(f"{error}: {''.join(missing)}") from error

    def _led_by(self, node_id: int) -> list[int]:
        request = admin_pb2.DescribeTopicsRequest(names=[_PROBED])
        topic = self._cluster.node(1).admin.DescribeTopics(request, timeout=10).topics[0]
        return [partition.partition for partition in topic.partitions if partition.leader_node == node_id]


def _part(kind: str, arguments: argparse.Namespace) -> Part:
    return part_on_nodes(f"failover {kind}", lambda nodes: Rounds(kind, nodes, arguments).run())


def parts(arguments: argparse.Namespace) -> list[Part]:
    """One for each kind that is wanted."""
    wanted = arguments.only.split(",")
    return [_part(kind, arguments) for kind in KINDS if kind in wanted]


def make_parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.failover", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each kind [20]")
    parser.add_argument("--only", default=",".join(KINDS), help="with commas [%(default)s]")
    parser.add_argument("--many", type=int, default=300, help="partitions that the node of `many` leads [300]")
    parser.add_argument("--rate", type=int, default=2_000, help="records a second of the load [2000]")
    return parser


def main() -> None:
    """See the module."""
    parser = make_parser()
    run_parts(parser, parts)


if __name__ == "__main__":
    main()
