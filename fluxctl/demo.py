"""fluxctl demo failover: real nodes, real text, kill -9, and a count of what was lost."""

from __future__ import annotations

import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fluxctl.cluster import start_and_wait
from fluxctl.compose import COMPOSE_FILE_DEFAULT, ComposeCluster
from fluxctl.demo_ledger import Ledger, Values, Verdict
from fluxctl.demo_probe import Probe
from fluxctl.demo_stage import ANSWER_TIMEOUT, HEALTHY_TIMEOUT, NODES, PLAIN, TEXT, Stage
from fluxctl.demo_text import chunks, standard_library_lines
from fluxctl.exits import CommandError
from fluxctl.local import LocalCluster
from fluxctl.output import plural, table
from fluxctl.routes import route_of
from fluxctl.session import session_of
from fluxlog.admin import Admin
from fluxlog.batch import encode_batch
from fluxlog.client import Client
from fluxlog.errors import FluxlogError, Outcome
from fluxlog.offsets import latest_offsets
from fluxlog.reader import Reader, iter_until
from fluxlog.sender import Sender
from fluxlog.v1 import log_pb2, record_pb2

app = typer.Typer(no_args_is_help=True, help="See it work: a demonstration on real processes.")

_PARTITIONS = 3
_PLAIN_LINES = 1_000
_REFUSAL_TIMEOUT = 15.0


@app.callback()
def demo() -> None:
    """See it work: a demonstration on real processes."""


@app.command()
def failover(
    context: typer.Context,
    lines: Annotated[int, typer.Option(min=0, help="Use as many lines; 0: all that are found.")] = 0,
    kills: Annotated[int, typer.Option(min=1, help="Kill the leader as often, with a restart after each.")] = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep data and logs here. Default: a temporary directory, removed at the end.")
    ] = None,
    compose: Annotated[bool, typer.Option("--compose", help="Containers instead of processes (needs Docker).")] = False,
    compose_file: Annotated[Path, typer.Option(help="With --compose: the file.")] = COMPOSE_FILE_DEFAULT,
) -> None:
    """Start three nodes, write the Python standard library line by line, kill leaders meanwhile, and compare.

    Exit code 0 only when everything acknowledged is there, once and in order. The last line has the figures:
    unavailability is the time from a kill to the first acknowledgement of a write that began after it.

    Example: fluxctl demo failover --kills 20
    """
    session = session_of(context)
    with ExitStack() as stack:
        directory = stack.enter_context(_directory(session.out, data_dir))
        if LocalCluster.load(directory) is not None:
            raise CommandError(f"{directory} has a cluster in it already", "give another --data-dir")
        cluster = (
            ComposeCluster.lay_out(directory, compose_file, NODES)
            if compose
            else LocalCluster.create(directory, NODES, None)
        )
        stack.enter_context(_ended_at_the_end(cluster))
        client = stack.enter_context(Client(cluster.addresses))
        stage = Stage(session.out, cluster, client, Admin(client), standard_library_lines(lines))
        _begin(stage)
        _write_and_kill(stage, kills)
        verdict = _read_and_compare(stage)
    session.out.print(f"\n{_last_line(stage, verdict)}", soft_wrap=True)
    if not verdict.clean:
        raise typer.Exit(1)


@contextmanager
def _directory(console: Console, wanted: Path | None) -> Iterator[Path]:
    """The state directory; a temporary one is kept when the demo fails, for its logs."""
    if wanted is not None:
        yield wanted
        return
    directory = Path(tempfile.mkdtemp(prefix="fluxd-demo-"))
    try:
        yield directory
    except KeyboardInterrupt:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    except BaseException:
        console.print(f"data and logs are kept in {directory}")
        raise
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _ended_at_the_end(cluster: LocalCluster) -> Iterator[None]:
    """However this ends (an error, Ctrl-C, SIGTERM, SIGHUP), no process is left behind."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number in (*before, signal.SIGINT):  # a second Ctrl-C does not stop the cleaning up
            signal.signal(number, signal.SIG_IGN)
        for node_id in cluster.nodes:
            cluster.kill(node_id, signal.SIGCONT)
        cluster.stop(list(cluster.nodes), timeout=5.0)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _begin(stage: Stage) -> None:
    size = sum(map(len, stage.lines)) / 1e6
    stage.tell(f"Three nodes start, {stage.cluster.about}.")
    seconds = start_and_wait(stage.cluster, HEALTHY_TIMEOUT)
    for node in stage.cluster.nodes.values():
        stage.show(f"node {node.node_id}: {node.address}, {node.about}")
    stage.show(f"healthy after {seconds:.1f} s")
    stage.tell(f"Two topics: {TEXT}, every record on three nodes, and {PLAIN}, on one.")
    stage.admin.create_topic(TEXT, partitions=_PARTITIONS, replication_factor=3, wait_ms=20_000)
    stage.admin.create_topic(PLAIN, partitions=1, replication_factor=1, wait_ms=20_000)
    rows = [(topic.name, topic.partitions, topic.replication_factor) for topic in stage.admin.list_topics()]
    stage.console.print(table(("Topic", "Partitions", "ReplicationFactor"), rows, right=("Partitions",)))
    stage.wait_in_sync(NODES)
    stage.describe()
    stage.show(f"to be written: {len(stage.lines):,} lines of the Python standard library, {size:.1f} MB")


def _write_and_kill(stage: Stage, kills: int) -> None:
    half, queued, rest = (len(stage.lines) * tenths // 10 for tenths in (5, 6, 9))
    with ExitStack() as stack:
        sender = _sender(stage, TEXT, stage.text)
        stack.callback(sender.close)
        _write_plain(stage)
        probe = Probe(stage.client, TEXT, 0, stage.probe_ledger)
        stack.callback(probe.stop)
        stage.tell(f"The lines are written, in turn to the {_PARTITIONS} partitions, many batches in flight.")
        began = time.monotonic()
        _send(stage, sender, stage.lines[:queued])
        _wait_until(lambda: stage.text.count >= half, "half of the lines were not acknowledged")
        _first_kill(stage, probe, queued)
        stage.tell("Writing goes on with two nodes of three.")
        _send(stage, sender, stage.lines[queued:rest])
        _flush(stage, sender)
        rate = stage.text.count / (time.monotonic() - began)
        stage.show(
            f"{stage.text.count:,} lines acknowledged so far ({rate:,.0f} lines/s with the failover in it); "
            f"batches were sent again {plural(len(stage.retries), 'time')}, each written once"
        )
        for number in range(2, kills + 1):
            _kill_again(stage, probe, number)
        _lose_quorum(stage, sender, probe, stage.lines[rest:])


def _sender(stage: Stage, topic: str, ledger: Ledger) -> Sender:
    route = route_of(stage.admin, topic)
    return Sender(
        stage.client, topic, on_result=ledger.note, on_retry=stage.retries.append, leaders=route.leaders,
        topic_id=route.topic_id,
    )  # fmt: skip


def _send(stage: Stage, sender: Sender, lines: list[bytes]) -> None:
    for number, chunk in enumerate(chunks(lines)):
        values: list[bytes | None] = list(chunk)
        sender.send(number % _PARTITIONS, values, context=values)


def _flush(stage: Stage, sender: Sender) -> None:
    if not sender.flush(ANSWER_TIMEOUT):
        raise CommandError(f"not everything was acknowledged within {ANSWER_TIMEOUT:g} s: {stage.text.last_error!r}")


def _write_plain(stage: Stage) -> None:
    sender = _sender(stage, PLAIN, stage.plain)
    try:
        values: list[bytes | None] = list(stage.lines[:_PLAIN_LINES])
        sender.send(0, values, context=values)
        _flush(stage, sender)
    finally:
        sender.close()


def _first_kill(stage: Stage, probe: Probe, queued: int) -> None:
    leader = stage.leader_of_partition_0()
    moment = stage.kill(leader)
    stage.tell(
        f"Half way, with {stage.text.count:,} lines acknowledged and {queued - stage.text.count:,} more on their way, "
        f"node {leader}, the leader of partition 0, is killed with SIGKILL."
    )
    stage.kills_ms.append(probe.wait_answer(moment, ANSWER_TIMEOUT))
    stage.show(f"partition 0 took writes again {stage.kills_ms[-1]:,.0f} ms after the kill")
    stage.wait_in_sync(NODES - 1)
    stage.describe(TEXT)


def _kill_again(stage: Stage, probe: Probe, number: int) -> None:
    if number == 2:
        stage.tell(
            "Again and again: the dead node is started, and when all is well the leader of partition 0 is killed."
        )
    for node in stage.cluster.nodes.values():
        if not node.running:
            stage.start(node.node_id)
    stage.wait_healthy()
    leader = stage.leader_of_partition_0()
    stage.kills_ms.append(probe.wait_answer(stage.kill(leader), ANSWER_TIMEOUT))
    stage.show(f"kill {number}: node {leader}, writes again after {stage.kills_ms[-1]:,.0f} ms")


def _lose_quorum(stage: Stage, sender: Sender, probe: Probe, lines: list[bytes]) -> None:
    first = next(node.node_id for node in stage.cluster.nodes.values() if not node.running)
    second = stage.leader_of_partition_0()
    survivor = next(node for node in stage.cluster.nodes if node not in (first, second))
    stage.tell(f"Node {second} is killed too: two of three are down, and node {survivor} alone must not take writes.")
    moment = stage.kill(second)
    _show_refusal(stage, survivor, moment)
    _show_reads(stage, survivor)
    noted = len(stage.retries)
    _send(stage, sender, lines)
    _wait_until(lambda: bool(_refused(stage, noted)), "writes without a quorum were not refused")
    stage.show(f"{len(lines):,} more lines wait in the client, which tries visibly: {_refused(stage, noted)}")
    stage.tell(f"Node {first} is started again, nothing else is done: with two of three it goes on by itself.")
    started = stage.start(first)
    stage.back_ms = probe.wait_answer(started, ANSWER_TIMEOUT)
    stage.outage_ms = (started - moment) * 1000 + stage.back_ms
    _flush(stage, sender)
    stage.show(
        f"writes are taken {stage.back_ms:,.0f} ms after the start of the process; all {stage.text.count:,} lines are "
        f"acknowledged"
    )
    stage.tell(f"Node {second} is started too, and catches up.")
    stage.start(second)
    stage.wait_healthy()
    stage.describe(TEXT)


def _refused(stage: Stage, noted: int) -> str:
    """What a node said to the sender since; empty: none said anything yet."""
    return next((retry.error.message for retry in stage.retries[noted:] if retry.error.from_server), "")


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    give_up_at = time.monotonic() + ANSWER_TIMEOUT
    while not condition():
        if time.monotonic() >= give_up_at:
            raise CommandError(f"{otherwise} within {ANSWER_TIMEOUT:g} s")
        time.sleep(0.002)


def _show_refusal(stage: Stage, survivor: int, killed_at: float) -> None:
    """One write straight to the node that is left, until it has noticed."""
    values = [b"this must be refused"]
    batch = record_pb2.RecordBatch.FromString(encode_batch(values))
    request = log_pb2.ProduceRequest(topic=TEXT, partition=0, batch=batch, timeout_ms=5_000)
    address = stage.cluster.nodes[survivor].address
    give_up_at = time.monotonic() + _REFUSAL_TIMEOUT
    while True:
        began = time.monotonic()
        failure = _failure_of_write(stage, address, request)
        ended = time.monotonic()
        if failure.outcome is Outcome.UNKNOWN:
            stage.show(f"a write at the moment of the kill is UNKNOWN, it may turn up in the log: {failure.message}")
            stage.text.note_unclear(0, values)
        if failure.reason == "NO_QUORUM" or ended >= give_up_at:
            break
        time.sleep(0.02)
    facts = ", ".join(f"{key}={value}" for key, value in sorted(failure.metadata.items()) if key != "retriable")
    stage.show(
        f"a write is refused after {(ended - began) * 1000:,.0f} ms, {(ended - killed_at) * 1000:,.0f} ms after the "
        f"kill: {failure.message} ({failure.reason}; {facts})"
    )


def _failure_of_write(stage: Stage, address: str, request: log_pb2.ProduceRequest) -> FluxlogError:
    try:
        stage.client.call_node(address, lambda node: node.log.Produce, request, timeout=10.0)
    except FluxlogError as failure:
        return failure
    raise CommandError("a write was acknowledged by one node of three")


def _show_reads(stage: Stage, survivor: int) -> None:
    address = stage.cluster.nodes[survivor].address
    began, records = time.monotonic(), 0
    with Client([address]) as client, Reader(client, TEXT, {0: 0}, max_wait_ms=100) as reader:
        while (fetched := reader.poll(5.0)) is not None and fetched.next_offset > fetched.wanted_offset:
            records += fetched.next_offset - fetched.wanted_offset
    seconds = time.monotonic() - began
    stage.show(f"reading goes on: node {survivor} alone served {records:,} records of partition 0 in {seconds:.1f} s")


def _read_and_compare(stage: Stage) -> Verdict:
    stage.tell("Everything is read from the beginning and compared, line by line, with what was acknowledged.")
    began = time.monotonic()
    verdict = stage.text.compare(_read_topic(stage, TEXT, _PARTITIONS), order_of=[stage.probe_ledger])
    plain = stage.plain.compare(_read_topic(stage, PLAIN, 1))
    verdict.records += plain.records
    verdict.acknowledged += plain.acknowledged
    verdict.lost += plain.lost
    verdict.duplicated += plain.duplicated
    verdict.out_of_order += plain.out_of_order
    seconds = time.monotonic() - began
    stage.show(f"{verdict.records:,} records read and compared in {seconds:.1f} s")
    stage.show(
        f"among them {stage.probe_ledger.count:,} of the probe that measured the times, {PLAIN}: {plain.records:,}"
    )
    return verdict


def _read_topic(stage: Stage, topic: str, partitions: int) -> dict[int, Values]:
    ends = latest_offsets(stage.client, topic, range(partitions))
    out: dict[int, list[bytes | None]] = {number: [] for number in ends}
    leaders = route_of(stage.admin, topic).leaders
    with Reader(stage.client, topic, dict.fromkeys(ends, 0), leaders=leaders, max_bytes=3 << 20) as reader:
        for fetched in iter_until(reader, ends, timeout=ANSWER_TIMEOUT):
            values = out[fetched.partition]
            for batch in fetched.batches():
                if batch.base_offset != len(values):
                    hole = f"{topic}-{fetched.partition}: offset {batch.base_offset} follows {len(values) - 1}"
                    raise CommandError(f"offsets are not dense: {hole}")
                values += batch.decode().values()
    return dict(out)


def _last_line(stage: Stage, verdict: Verdict) -> str:
    kills = ", ".join(f"{ms:,.0f}" for ms in stage.kills_ms)
    if len(stage.kills_ms) > 1:
        median, longest = statistics.median(stage.kills_ms), max(stage.kills_ms)
        kills = f"{kills} (median {median:,.0f}, max {longest:,.0f} of {len(stage.kills_ms)})"
    return (
        f"records {verdict.records:,}, acknowledged {verdict.acknowledged:,}, lost {verdict.lost:,}, "
        f"duplicated {verdict.duplicated:,}, out of order {verdict.out_of_order:,}, unknown {verdict.unknown:,}; "
        f"unavailable ms after kill of the leader: {kills}; "
        f"after the kill that took the quorum: {stage.outage_ms:,.0f}, of which {stage.back_ms:,.0f} after the restart"
    )
