"""`make bench-core`: three replicas in one process on real files with real fdatasync, without gRPC; and the codec.

    python -m tests.bench.core [--quick] [--entries 16,64,256,1024] [--seconds 10] [--rounds 3] [--json FILE] …

An entry is one batch, and the next one is proposed when the last one is committed: on the disks of a majority. MB are
10^6 bytes of batches, counted once. The disk's limit is of the same minute: three files written with the same chunk,
each synced by its own thread, over as many bytes. CPU is of this one process, so of all three replicas.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxd import tuning
from fluxd.core.errors import FluxError
from fluxd.raft.group import Group
from fluxd.raft.proposal import Append, AppendResult
from fluxlog.batch import decode_batch, encode_batch
from tests.bench import disk, machine
from tests.bench.figures import Cases, percentile, size_text
from tests.bench.replicas import Replicas
from tests.bench.usage import Meter, Usage

KIB = 1024
_WARM_UP_S = 1.0
_RECORD_BYTES = 1_000
_CODEC_RECORDS = (100, 1_000)
_CODEC_BATCH = 256 * KIB
_CODEC_SECONDS = 0.5


@dataclass(slots=True)
class _Run:
    """What the writers of one run share."""

    size: int
    """Bytes of all batches that were committed."""
    latencies_s: list[float]
    stopping: bool = False
    failure: FluxError | None = None


class _Writer:
    """Keeps one batch on its way to one group, the next as soon as it is committed."""

    def __init__(self, group: Group, batch_bytes: int, run: _Run) -> None:
        self._group, self._run = group, run
        self._producer_id, self._sequence = os.urandom(16), 0
        self._values = _values(batch_bytes, _RECORD_BYTES)
        self._sent_at = 0.0
        self.ended = asyncio.Event()

    def next(self) -> None:
        """Encode and submit."""
        batch = encode_batch(self._values, producer_id=self._producer_id, base_sequence=self._sequence)
        append = Append(batch, len(self._values), self._done, self._producer_id, self._sequence)
        self._sequence += len(self._values)
        self._sent_at = time.perf_counter()
        self._group.submit(append)

    def _done(self, result: AppendResult) -> None:
        run = self._run
        if isinstance(result, FluxError):
            run.failure = result
        else:
            run.size += len(self._values) * _RECORD_BYTES
            run.latencies_s.append(time.perf_counter() - self._sent_at)
        if run.stopping or run.failure is not None:
            self.ended.set()
        else:
            self.next()


async def _write(root: Path, entry_bytes: int, groups: int, seconds: float) -> tuple[_Run, Usage, float]:
    """Returns: what was committed in that time, what it took, and how often each entry was sent to each follower."""
    async with Replicas(root, groups) as replicas:
        run = _Run(0, [])
        writers = [_Writer(leader, entry_bytes, run) for leader in replicas.leaders]
        for writer in writers:
            writer.next()
        await asyncio.sleep(_WARM_UP_S)
        run.size, run.latencies_s, meter = 0, [], Meter({})
        await asyncio.sleep(seconds)
        usage, measured = meter.stop(), _Run(run.size, run.latencies_s)
        run.stopping = True
        await asyncio.gather(*(writer.ended.wait() for writer in writers))
        if run.failure is not None:
            raise run.failure
        return measured, usage, await replicas.sends_per_entry()


def _entries(cases: Cases, root: Path, entry_bytes: int, groups: int, seconds: float) -> None:
    with (
        tempfile.TemporaryDirectory(dir=root, prefix="core-") as name,
        asyncio.Runner(loop_factory=tuning.loop_factory()) as runner,
    ):
        run, usage, sends = runner.run(_write(Path(name), entry_bytes, groups, seconds))
    limit = disk.write_limit(root, run.size, entry_bytes)
    figure = run.size / usage.seconds / 1e6
    cases.note(
        f"entries of {size_text(entry_bytes)}, {groups} group{'s' * (groups > 1)}", "MB/s", figure,
        entries_per_s=len(run.latencies_s) / usage.seconds, limit=limit, of_limit=figure / limit,
        cpu_ms_per_mb=usage.ms_per_mb(run.size)["client"], sends_per_entry_and_follower=round(sends, 4),
        p50_ms=1000 * percentile(run.latencies_s, 0.5), p99_ms=1000 * percentile(run.latencies_s, 0.99),
        others_cores=usage.others_cores,
    )  # fmt: skip


def _codec(cases: Cases, record: int) -> None:
    values = _values(_CODEC_BATCH, record)
    encoded = encode_batch(values)
    assert decode_batch(encoded).values() == values
    for name, work in (
        ("encode", lambda: encode_batch(values)),
        ("decode, every value", lambda: decode_batch(encoded).values()),
    ):
        cases.note(f"{name}, {record} B, batches of 256 KiB", "us/record", _median_s(work) / len(values) * 1e6)


def _median_s(work: Callable[[], object]) -> float:
    """Seconds of one call, the median of many."""
    taken, until = [], time.perf_counter() + _CODEC_SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return percentile(taken, 0.5)


def _values(batch_bytes: int, record: int) -> list[bytes]:
    count = max(1, (batch_bytes - 128) // (record + (1 if record < 128 else 2)))
    blob = os.urandom(count * record)
    return [blob[at : at + record] for at in range(0, len(blob), record)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.core", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round: for a look, not for a figure")
    parser.add_argument("--entries", default="16,64,256,1024", help="KiB, with commas [%(default)s]")
    parser.add_argument("--groups", type=int, default=1, help="Raft groups that write at once [%(default)s]")
    parser.add_argument("--seconds", type=float, help="of one run [10]")
    parser.add_argument("--rounds", type=int, help="[3]")
    parser.add_argument("--dir", type=Path, help="where the files go for the time being [the system's choice]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (2.0 if arguments.quick else 10.0)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    tuning.tune_allocator()
    cases = Cases()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fluxd-bench-") as name:
        about: dict[str, Any] = {"machine": machine.describe(Path(name)), "seconds": seconds, "rounds": rounds}
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", flush=True)
            for size in map(int, arguments.entries.split(",")):
                with cases.surviving(f"entries of {size} KiB"):
                    _entries(cases, Path(name), size * KIB, arguments.groups, seconds)
            for record in _CODEC_RECORDS:
                with cases.surviving(f"codec, {record} B"):
                    _codec(cases, record)
    print("\n" + ", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    print(f"three replicas in one process, fdatasync; runs of {seconds:g} s after 1 s, {rounds} rounds, median run\n")
    cases.print()
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, **cases.as_json()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
