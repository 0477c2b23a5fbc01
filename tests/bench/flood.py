"""`make bench-flood`: 200 clients that produce requests of 1 MiB as fast as they can, for 30 s: does each node's memory
stay bounded, does every node live, and is every request answered?

    python -m tests.bench.flood [--seconds 30] [--clients 200] [--partitions 12] [--json FILE]

Three real nodes; the clients are coroutines of a few processes, each with a connection of its own to one of the nodes
(which passes on what it does not lead), with raw stubs: what is refused is sent again at once, whatever the answer asks
for. Retention keeps the disk small.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from fluxlog.batch import encode_batch
from fluxlog.framing import encode_produce
from fluxlog.v1 import log_pb2
from tests.bench.figures import percentile
from tests.bench.load import open_channel
from tests.bench.nodes import Nodes
from tests.bench.operations import Part, part_on_nodes, run_parts
from tests.bench.usage import memory_mb
from tests.integration.cluster import produce_request, wait_until

_MIB = 1024 * 1024
_VALUE_BYTES = _MIB - 4 * 1024
"""With what stands around it in a batch, just below the bound of 1 MiB."""
_CLIENT_PROCESSES = 4
_TIMEOUT_MS = 15_000
_ANSWER_S = 30.0
"""Without an answer for so long, there was none."""
_UNANSWERED = "no answer"
_RETAINED_BYTES = 64 * _MIB
_SAMPLE_S = 0.25


@dataclass(slots=True)
class Flooded:
    """What was found; 10^6 bytes."""

    seconds: float = 0.0
    clients: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    """COMMITTED, or outcome and reason; `no answer`."""
    committed_mb_per_s: float = 0.0
    committed_p50_s: float = 0.0
    committed_p99_s: float = 0.0
    refused_p50_s: float = 0.0
    refused_p99_s: float = 0.0
    idle_mb: dict[str, float] = field(default_factory=dict)
    first_half_peak_mb: dict[str, float] = field(default_factory=dict)
    second_half_peak_mb: dict[str, float] = field(default_factory=dict)
    afterwards_mb: dict[str, float] = field(default_factory=dict)
    died: list[str] = field(default_factory=list)
    disk_mb: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people."""

        def sizes(of: dict[str, float]) -> str:
            return " / ".join(f"{size:.0f}" for size in of.values())

        answers = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.answers.items()))
        total = sum(self.answers.values())
        return [
            f"flood of {self.clients} clients for {self.seconds:.0f} s, {total:,} requests: {answers}",
            f"        committed {self.committed_mb_per_s:.0f} MB/s, p50 {self.committed_p50_s:.2f} s, p99 "
            f"{self.committed_p99_s:.2f} s; refused p50 {self.refused_p50_s:.2f} s, p99 {self.refused_p99_s:.2f} s",
            f"        memory of the nodes, MB: before {sizes(self.idle_mb)}; peak in the first half "
            f"{sizes(self.first_half_peak_mb)}, in the second {sizes(self.second_half_peak_mb)}; afterwards "
            f"{sizes(self.afterwards_mb)}",
            f"        nodes that died: {', '.join(self.died) or 'none'}; on each disk, MB: {sizes(self.disk_mb)}",
        ]


class Flood:
    """The measurement, on a running cluster."""

    def __init__(self, nodes: Nodes, arguments: argparse.Namespace) -> None:
        self._nodes, self._arguments = nodes, arguments

    def run(self) -> Flooded:
        """One flood."""
        out = Flooded(self._arguments.seconds, self._arguments.clients)
        configs = {"segment.bytes": str(16 * _MIB), "retention.bytes": str(_RETAINED_BYTES)}
        self._nodes.cluster.create_topic("flooded", partitions=self._arguments.partitions, configs=configs)
        processes = self._nodes.processes
        out.idle_mb = {name: now for name, (now, _) in self._nodes.memory_mb().items()}
        with _watched(processes, self._arguments.seconds) as halves:
            reports = self._clients()
        out.first_half_peak_mb, out.second_half_peak_mb = halves
        self._sum_up(out, reports)
        out.died = [f"node {node.node_id}" for node in self._nodes.cluster.nodes if not node.running]
        self._wait_calm()
        out.afterwards_mb = {name: memory_mb(process_id)[0] for name, process_id in self._alive().items()}
        out.disk_mb = {f"node {n.node_id}": _disk_mb(n.data_dir) for n in self._nodes.cluster.nodes}
        if out.died or out.answers.get(_UNANSWERED):
            raise AssertionError("; ".join(out.lines()))
        return out

    def _alive(self) -> dict[str, int]:
        return {f"node {n.node_id}": n.process.pid for n in self._nodes.cluster.nodes if n.running and n.process}

    def _clients(self) -> list[dict[str, object]]:
        """Run all clients; what each process counted."""
        addresses = ",".join(node.address for node in self._nodes.cluster.nodes)
        share = -(-self._arguments.clients // _CLIENT_PROCESSES)
        processes = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "tests.bench.flood", "--as-clients", str(share), "--addresses", addresses,
                    "--seconds", str(self._arguments.seconds), "--partitions", str(self._arguments.partitions),
                ],
                stdout=subprocess.PIPE,
            )
            for _ in range(_CLIENT_PROCESSES)
        ]  # fmt: skip
        try:
            deadline = self._arguments.seconds + 3 * _ANSWER_S
            return [json.loads(process.communicate(timeout=deadline)[0]) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    @staticmethod
    def _sum_up(out: Flooded, reports: Sequence[dict[str, object]]) -> None:
        answers, committed, refused = Counter[str](), list[float](), list[float]()
        for report in reports:
            for kind, times in report.items():
                assert isinstance(times, list)
                answers[kind] += len(times)
                (committed if kind == "COMMITTED" else refused).extend(times)
        out.answers = dict(answers)
        out.committed_mb_per_s = len(committed) * _VALUE_BYTES / 1e6 / out.seconds
        out.committed_p50_s, out.committed_p99_s = percentile(committed, 0.5), percentile(committed, 0.99)
        out.refused_p50_s, out.refused_p99_s = percentile(refused, 0.5), percentile(refused, 0.99)

    def _wait_calm(self) -> None:
        """Every partition takes a record again."""
        stub = self._nodes.cluster.node(1).log_stub
        for number in range(self._arguments.partitions):
            request = produce_request("flooded", b"x", partition=number)
            wait_until(partial(stub.Produce, request, timeout=10), f"partition {number} takes records again")


def _disk_mb(root: Path) -> float:
    total = 0
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total / 1e6


@contextmanager
def _watched(processes: dict[str, int], seconds: float) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Largest resident memory by name, in the first and in the second half of a time."""
    halves = dict.fromkeys(processes, 0.0), dict.fromkeys(processes, 0.0)
    ended, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            half = halves[time.monotonic() - began > seconds / 2]
            for name, process_id in processes.items():
                with contextlib.suppress(OSError, KeyError):  # it died: told at the end
                    half[name] = max(half[name], memory_mb(process_id)[0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield halves
    finally:
        ended.set()
        thread.join()


# ---- a process of clients


async def _be_clients(count: int, addresses: Sequence[str], partitions: int, seconds: float) -> dict[str, list[float]]:
    """Seconds until the answer, by kind of answer."""
    answers: dict[str, list[float]] = {}
    stop = time.monotonic() + seconds
    batch = encode_batch([os.urandom(_VALUE_BYTES)])
    requests = [encode_produce("flooded", number, batch, timeout_ms=_TIMEOUT_MS) for number in range(partitions)]

    async def client(number: int) -> None:
        async with open_channel(addresses[number % len(addresses)]) as channel:
            call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/fluxlog.v1.Log/Produce")
            while time.monotonic() < stop:
                number += 1
                began = time.monotonic()
                kind = await _answer(call, requests[number % partitions])
                answers.setdefault(kind, []).append(time.monotonic() - began)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(client(number))
    return answers


async def _answer(call: aio.UnaryUnaryMultiCallable[bytes, bytes], request: bytes) -> str:
    try:
        log_pb2.ProduceResponse.FromString(await call(request, timeout=_ANSWER_S))
    except aio.AioRpcError as error:
        return _kind_of(error)
    return "COMMITTED"


def _kind_of(error: aio.AioRpcError) -> str:
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if isinstance(details, bytes):
        info = error_details_pb2.ErrorInfo()
        if any(detail.Unpack(info) for detail in status_pb2.Status.FromString(details).details):
            return f"{info.metadata.get('outcome', 'UNKNOWN')} {info.reason}"
    # gRPC's own, not the server's word: its time was up, or the connection broke
    return _UNANSWERED if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else f"UNKNOWN {error.code().name}"


def parts(arguments: argparse.Namespace) -> list[Part]:
    """The one."""
    return [part_on_nodes("flood", lambda nodes: Flood(nodes, arguments).run())]


def make_parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="[30]")
    parser.add_argument("--clients", type=int, default=200, help="[200]")
    parser.add_argument("--partitions", type=int, default=12, help="[12]")
    return parser


def main() -> None:
    """See the module."""
    parser = make_parser()
    parser.add_argument("--as-clients", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--addresses", help=argparse.SUPPRESS)
    known, _ = parser.parse_known_args()
    if known.as_clients:
        work = _be_clients(known.as_clients, known.addresses.split(","), known.partitions, known.seconds)
        print(json.dumps(asyncio.run(work)))
        return
    run_parts(parser, parts)


if __name__ == "__main__":
    main()
