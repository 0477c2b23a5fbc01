"""fluxctl bench: the speed of a cluster as a client sees it, with the parameters of kafka-producer-perf-test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from fluxctl.measuring import (
    STAMP_BYTES,
    Measured,
    measure_consuming,
    measure_end_to_end,
    measure_producing,
    percentile,
)
from fluxctl.options import codec_of
from fluxctl.output import Output, OutputFormat, emit
from fluxctl.session import Session, session_of
from fluxlog.aio.admin import Admin
from fluxlog.aio.consumer import Consumer
from fluxlog.aio.producer import BATCH_BYTES_DEFAULT, LINGER_MS_DEFAULT, Producer

app = typer.Typer(no_args_is_help=True, help="Measure a cluster: produce, consume, end to end.")

T = TypeVar("T")

Topic = Annotated[str, typer.Argument(help="Topic name.", show_default=False)]
RecordSize = Annotated[int, typer.Option("--record-size", min=1, max=900_000, help="Bytes of a value.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1_024, max=1_000_000, help="Bytes of a batch at most.")]
Linger = Annotated[float, typer.Option("--linger-ms", min=0, help="Wait for others while a batch is on its way.")]
CodecName = Annotated[str, typer.Option("--codec", help="none, zstd, lz4 or gzip.")]


@dataclass(frozen=True, slots=True)
class _Head:
    """What the figures are of."""

    nodes: int
    partitions: int
    replication_factor: int
    about: str

    def text(self) -> str:
        """One line."""
        return (
            f"{self.nodes} nodes, {self.partitions} partitions, replication factor {self.replication_factor}, "
            f"acknowledged = fdatasync on a majority; {self.about}"
        )


@app.command("produce")
def produce(
    context: typer.Context,
    topic: Topic,
    num_records: Annotated[int, typer.Option("--num-records", min=1)] = 1_000_000,
    record_size: RecordSize = 100,
    throughput: Annotated[
        float, typer.Option(help="Records a second, sent on time whether or not others are acknowledged; -1: no limit.")
    ] = -1.0,
    batch_size: BatchSize = BATCH_BYTES_DEFAULT,
    linger_ms: Linger = LINGER_MS_DEFAULT,
    codec: CodecName = "none",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Send random records and say how fast they were acknowledged.

    Latencies are from the moment a record was to be sent until its acknowledgement, of up to 1,000 records a second.

    Example: fluxctl bench produce t --num-records 1000000 --record-size 100
    """
    session = session_of(context)

    async def run() -> tuple[_Head, Measured]:
        options = {"batch_bytes": batch_size, "linger_ms": linger_ms, "codec": codec_of(codec)}
        async with Producer(session.addresses(), **options) as producer:  # type: ignore[arg-type]
            done = await measure_producing(
                producer, topic, records=num_records, record_bytes=record_size, per_second=max(throughput, 0.0),
                tell=lambda line: session.err.print(line),
            )  # fmt: skip
        about = f"records of {record_size} B, batches of {batch_size} B, linger {linger_ms:g} ms, codec {codec}"
        return await _head(session, topic, about), done

    head, done = _run(run())
    _report(session, head, done, "sent", output)


@app.command("consume")
def consume(
    context: typer.Context,
    topic: Topic,
    messages: Annotated[int, typer.Option("--messages", min=0, help="Stop after as many; 0: at the end.")] = 0,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Read a topic from its beginning, every value taken apart, and say how fast.

    Example: fluxctl bench consume t
    """
    session = session_of(context)

    async def run() -> tuple[_Head, Measured]:
        async with Consumer(session.addresses(), topic, start="earliest", stop_at_end=True) as consumer:
            done = await measure_consuming(consumer, messages)
        return await _head(session, topic, f"values of {done.record_bytes} B on average"), done

    head, done = _run(run())
    _report(session, head, done, "consumed", output)


@app.command("e2e")
def end_to_end(
    context: typer.Context,
    topic: Topic,
    num_records: Annotated[int, typer.Option("--num-records", min=1)] = 10_000,
    record_size: RecordSize = 100,
    throughput: Annotated[float, typer.Option(min=0.1, help="Records a second, sent on time.")] = 1_000.0,
    linger_ms: Linger = LINGER_MS_DEFAULT,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Send at a steady rate and say how long records take until a consumer has them.

    Example: fluxctl bench e2e t --throughput 1000
    """
    session, size = session_of(context), max(record_size, STAMP_BYTES)

    async def run() -> tuple[_Head, Measured]:
        async with (
            Producer(session.addresses(), linger_ms=linger_ms) as producer,
            Consumer(session.addresses(), topic, start="latest") as consumer,
        ):
            done = await measure_end_to_end(
                producer, consumer, topic, records=num_records, record_bytes=size, per_second=throughput
            )
        return await _head(session, topic, f"records of {size} B, {throughput:g}/s, linger {linger_ms:g} ms"), done

    head, done = _run(run())
    _report(session, head, done, "sent and consumed", output)


async def _head(session: Session, topic: str, about: str) -> _Head:
    async with Admin(session.addresses()) as admin:
        nodes = len((await admin.describe_cluster()).nodes)
        described = await admin.describe_topic(topic)
    return _Head(nodes, len(described.partitions), described.replication_factor, about)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it, on uvloop where that is installed. Of the failures of its tasks the first one is raised."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(coroutine)
    except ExceptionGroup as failures:
        first: Exception = failures
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from failures


def _report(session: Session, head: _Head, done: Measured, what: str, output: OutputFormat) -> None:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
    latencies = {name: round(percentile(done.latencies_ms, share), 2) for name, share in shares.items()}
    if done.latencies_ms:
        latencies["max"] = round(max(done.latencies_ms), 2)
    if output is not OutputFormat.TABLE:
        data = {
            "about": head.text(),
            "records": done.records,
            "seconds": round(done.seconds, 3),
            "records_per_s": round(done.records_per_s, 1),
            "mb_per_s": round(done.mb_per_s, 2),
            "latency_ms": latencies if done.latencies_ms else None,
            "publish_delay_ms_p99": round(percentile(done.late_ms, 0.99), 2),
        }
        emit(data, output)
        return
    line = f"{done.records:,} records {what}, {done.records_per_s:,.1f} records/sec ({done.mb_per_s:.2f} MB/sec)"
    if done.latencies_ms:
        line += ", " + ", ".join(f"{value:g} ms {name}" for name, value in latencies.items())
        line += f"; publish delay {percentile(done.late_ms, 0.99):.2f} ms p99"
    session.out.print(head.text(), soft_wrap=True)
    session.out.print(line, soft_wrap=True)
