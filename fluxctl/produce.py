"""fluxctl produce: lines to records. No line is lost without being named."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fluxctl.batching import InterruptedProducing, LineBatcher
from fluxctl.exits import EXIT_CODES_HELP, CommandError, ExitCode, describe_os_error
from fluxctl.failed_lines import FailedLines
from fluxctl.interrupts import Interrupts
from fluxctl.lines import Line, read_lines
from fluxctl.options import codec_of
from fluxctl.output import Output, OutputFormat, emit, milliseconds, plural, size, table, unread_is_well
from fluxctl.routes import TopicRoute, route_of
from fluxctl.session import Session, session_of
from fluxctl.tally import Tally, line_ranges
from fluxlog.admin import Admin
from fluxlog.delivery import Retry
from fluxlog.errors import FluxlogError, Outcome
from fluxlog.sender import Sender

LINGER = 0.05
"""Seconds that a slow pipe's lines wait for more."""
_INTERRUPTED_FLUSH = 5.0
_RETRY_NOTE_INTERVAL = 2.0
_PROGRESS_INTERVAL = 0.1


@dataclass(slots=True)
class _Run:
    session: Session
    route: TopicRoute
    batcher: LineBatcher
    sender: Sender
    tally: Tally
    began: float
    interrupts: Interrupts
    read_failure: OSError | None = None
    """What ended the input before its end."""


def produce(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="Topic name.", show_default=False)],
    file: Annotated[Path | None, typer.Argument(help="File with lines; none, or -: stdin.", show_default=False)] = None,
    key_separator: Annotated[
        str, typer.Option("--key-separator", "-k", help="A line is KEY SEPARATOR VALUE. Same key, same partition.")
    ] = "",
    partition: Annotated[int | None, typer.Option("--partition", "-p", min=0, help="All lines go there.")] = None,
    codec: Annotated[str, typer.Option(help="none, zstd, lz4 or gzip.")] = "none",
    batch_lines: Annotated[int, typer.Option(min=1, max=65_536, help="Lines of one batch at most.")] = 5_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds in which a batch is tried again.")] = 120.0,
    failed_file: Annotated[
        Path | None,
        typer.Option(help="Rejected lines go there as they are; unknown ones to FILE.unknown.", show_default=False),
    ] = None,
    acks_summary: Annotated[bool, typer.Option("--acks-summary", help="More about the acknowledgements.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Write the lines of a file or of stdin, each as one record, and say what became of them.

    A line is acknowledged when it is on disk on a majority of its partition's replicas. Lines without a key go to the
    partitions in turn; with --key-separator, lines of one key go to one partition. While the cluster cannot take a
    batch it is sent again, visibly, until --timeout; a resend is written once. What is rejected was surely not
    written; what is unknown may have been.

    Examples: fluxctl produce orders lines.txt; tail -f app.log | fluxctl produce logs --codec zstd
    """
    session = session_of(context)
    chosen = codec_of(codec)
    descriptor, total = _open(file)
    failed_lines = FailedLines(failed_file) if failed_file is not None else None
    if failed_lines is not None:
        failed_lines.check(descriptor)
    tally = Tally(failed_lines)
    notes = _RetryNotes(session)
    with session.client() as client:
        route = route_of(Admin(client), topic)
        partitions = _partitions_of(route, partition)
        sender = Sender(
            client, topic, on_result=tally.note, on_retry=notes.note, leaders=route.leaders, topic_id=route.topic_id,
            codec=chosen, delivery_timeout=timeout,
        )  # fmt: skip
        interrupts = Interrupts(raises=False)
        batcher = LineBatcher(
            sender, tally, partitions, separator=os.fsencode(key_separator), batch_lines=batch_lines,
            interrupted=lambda: interrupts.requested,
        )  # fmt: skip
        run = _Run(session, route, batcher, sender, tally, time.monotonic(), interrupts)
        with interrupts:  # until all is told
            try:
                _pump(run, descriptor, total)
            finally:
                sender.close()
            files = failed_lines.close() if failed_lines is not None else ([], [])
            try:
                with unread_is_well():
                    _report(run, output, acks_summary=acks_summary)
            finally:  # also where the output cannot be written
                _tell_failures(run, output)
                _tell_files(session, *files)
    _end(run)


def _end(run: _Run) -> NoReturn:
    if run.interrupts.requested:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if run.read_failure is not None:
        raise CommandError(
            f"input after line {run.batcher.lines} cannot be read: {describe_os_error(run.read_failure)}",
            "what became of the lines before it is said above",
        )
    raise typer.Exit(run.tally.exit_code)


produce.__doc__ = f"{produce.__doc__}\n{EXIT_CODES_HELP}"


def _open(file: Path | None) -> tuple[int, int]:
    """Descriptor, and size in bytes where it is known (else 0)."""
    is_stdin = file is None or str(file) == "-"
    descriptor = sys.stdin.fileno() if file is None or is_stdin else os.open(file, os.O_RDONLY)
    about = os.fstat(descriptor)
    if stat.S_ISDIR(about.st_mode):
        raise CommandError(f"{'stdin' if is_stdin else file} is a directory")
    return descriptor, 0 if is_stdin else about.st_size


def _partitions_of(route: TopicRoute, partition: int | None) -> tuple[int, ...]:
    if partition is None:
        return route.partitions
    if partition not in route.partitions:
        raise FluxlogError(
            "UNKNOWN_PARTITION", f"{route.name} has partitions 0..{route.partitions[-1]}, not {partition}"
        )
    return (partition,)


def _pump(run: _Run, descriptor: int, total: int) -> None:
    """Read, send, and wait for the acknowledgements; Ctrl-C ends reading, a second one ends waiting.

    Neither is an exception: one in the middle of handing lines over could have them counted as not sent although they
    were.
    """
    with _progress(run.session, total) as advance:
        try:
            for lines in _lines(run, descriptor):
                if run.interrupts.requested:
                    break
                if lines:
                    run.batcher.add(lines)
                else:
                    run.batcher.flush()
                advance(sum(len(line) + 1 for line in lines if line is not None), run.tally.acknowledged)
            run.batcher.flush()
            while not run.interrupts.requested and not run.sender.flush(_PROGRESS_INTERVAL):
                advance(0, run.tally.acknowledged)
        except InterruptedProducing:  # what waited for room is given up below
            pass
    if run.interrupts.requested:
        run.session.err.print("interrupted: waiting a moment for the answers to what is on its way")
        give_up_at = time.monotonic() + _INTERRUPTED_FLUSH
        while not run.interrupts.insisted and time.monotonic() < give_up_at:
            if run.sender.flush(_PROGRESS_INTERVAL):
                break
        run.batcher.give_up()


def _lines(run: _Run, descriptor: int) -> Iterator[list[Line]]:
    """The input. One that cannot be read on ends there: what came before is sent, and told of, all the same."""
    try:
        yield from read_lines(descriptor, linger=LINGER)
    except OSError as error:
        run.read_failure = error


class _RetryNotes:
    """Retries are told, but not each of hundreds."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._noted: dict[tuple[int, str], float] = {}

    def note(self, retry: Retry) -> None:
        key, now = (retry.partition, retry.error.reason), time.monotonic()
        if now - self._noted.get(key, float("-inf")) < _RETRY_NOTE_INTERVAL and not self._session.verbose:
            return
        self._noted[key] = now
        with contextlib.suppress(OSError):  # this is the sender's thread: it does not end with a full disk
            self._session.err.print(
                f"partition {retry.partition}: {retry.error.message} ({retry.error.reason}); "
                f"{plural(retry.batches, 'batch', 'batches')} again to {retry.next_address}",
                style="yellow",
            )


@contextmanager
def _progress(session: Session, total: int) -> Iterator[_Advance]:
    """A bar on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty() or (sys.stdin.isatty() and not total):
        yield _Advance(None, None)
        return
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %" if total else ""),
        TextColumn("{task.fields[lines]:,} lines acknowledged"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=session.err, transient=True) as bar:
        yield _Advance(bar, bar.add_task("", total=total or None, lines=0))


class _Advance:
    def __init__(self, bar: Progress | None, task: TaskID | None) -> None:
        self._bar, self._task = bar, task

    def __call__(self, read_bytes: int, acknowledged: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=read_bytes, lines=acknowledged)


def _report(run: _Run, output: OutputFormat, *, acks_summary: bool) -> None:
    tally, seconds = run.tally, time.monotonic() - run.began
    if output is not OutputFormat.TABLE:
        emit(_report_data(run, seconds), output)
        return
    out = run.session.out
    out.print(
        f"{run.route.name}: {plural(run.batcher.lines, 'line')}, {tally.acknowledged:,} acknowledged, "
        f"{tally.count(Outcome.REJECTED):,} rejected, {tally.count(Outcome.UNKNOWN):,} unknown in {seconds:.2f} s "
        f"({tally.acknowledged / max(seconds, 1e-9):,.0f} lines/s)",
    )
    columns = ["Partition", "Lines", "First offset", "Last offset"]
    if acks_summary:
        columns += ["Batches", "Copies on disk", "Answered again", "Slowest"]
    rows: list[list[object]] = []
    for number, partition in sorted(tally.partitions.items()):
        row: list[object] = [number, partition.lines, partition.first_offset, partition.next_offset - 1]
        if acks_summary:
            slowest = milliseconds(partition.elapsed_ms_max)
            row += [partition.batches, f">= {partition.copies_min}", partition.duplicates, slowest]
        rows.append(row)
    if rows:
        out.print(table(columns, rows, right=columns))


def _tell_failures(run: _Run, output: OutputFormat) -> None:
    if output is not OutputFormat.TABLE:  # they stand in it
        return
    for failure in run.tally.failures.values():
        kind = "rejected, not written" if failure.outcome is Outcome.REJECTED else "unknown, may have been written"
        run.session.err.print(
            f"{plural(len(failure.numbers), 'line')} {kind}: {failure.message} ({failure.reason}): "
            f"{line_ranges(failure.numbers)}",
            style="red",
        )
    if run.interrupts.requested:
        run.session.err.print(f"input after line {run.batcher.lines} was not sent")


def _tell_files(session: Session, written: list[Path], problems: list[str]) -> None:
    for path in written:
        session.err.print(f"failed lines are in {path} ({size(path.stat().st_size)})")
    for problem in problems:
        session.err.print(problem, style="red")


def _report_data(run: _Run, seconds: float) -> dict[str, object]:
    tally = run.tally
    return {
        "topic": run.route.name,
        "lines": run.batcher.lines,
        "acknowledged": tally.acknowledged,
        "rejected": tally.count(Outcome.REJECTED),
        "unknown": tally.count(Outcome.UNKNOWN),
        "seconds": round(seconds, 3),
        "interrupted": run.interrupts.requested,
        "input_error": None if run.read_failure is None else describe_os_error(run.read_failure),
        "partitions": [
            {
                "partition": number,
                "lines": partition.lines,
                "batches": partition.batches,
                "first_offset": partition.first_offset,
                "last_offset": partition.next_offset - 1,
                "copies_on_disk_min": partition.copies_min,
                "answered_again": partition.duplicates,
                "slowest_ms": round(partition.elapsed_ms_max, 1),
            }
            for number, partition in sorted(tally.partitions.items())
        ],
        "failures": [
            {
                "outcome": failure.outcome.name,
                "reason": failure.reason,
                "message": failure.message,
                "lines": line_ranges(failure.numbers),
                "line_count": len(failure.numbers),
            }
            for failure in tally.failures.values()
        ],
    }
