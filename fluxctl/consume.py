"""fluxctl consume: committed records to stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from fluxctl import positions, template
from fluxctl.consume_group import consume_as_member
from fluxctl.exits import CommandError, ExitCode
from fluxctl.interrupts import Interrupts
from fluxctl.output import write_bytes
from fluxctl.routes import route_of
from fluxctl.session import Session, session_of
from fluxlog.admin import Admin
from fluxlog.client import Client
from fluxlog.entry import UndecodableBatchError, records_of
from fluxlog.errors import FluxlogError
from fluxlog.offsets import latest_offsets
from fluxlog.reader import Fetched, Reader

_POLL = 0.2
"""Seconds; how soon Ctrl-C is seen."""


def consume(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="Topic name.", show_default=False)],
    from_beginning: Annotated[bool, typer.Option("--from-beginning", "-b", help="The same as --offset start.")] = False,
    offset: Annotated[
        str, typer.Option("--offset", "-O", metavar="start|end|N|-N|@time", help=f"Begin at: {positions.SYNTAX}.")
    ] = "end",
    partition: Annotated[
        list[int] | None, typer.Option("--partition", "-p", help="Only this one; may be repeated.")
    ] = None,
    max_messages: Annotated[int, typer.Option("--max-messages", "-n", min=0, help="Stop after as many; 0: never.")] = 0,
    record_format: Annotated[
        str, typer.Option("--format", "-f", help=f"Template, or `json`. {template.SYNTAX}.")
    ] = template.DEFAULT,
    group: Annotated[
        str,
        typer.Option("--group", "-g", help="Be a member of this group: share the partitions, commit what is printed."),
    ] = "",
    exit_at_end: Annotated[
        bool, typer.Option("--exit-at-end", "-e", help="Stop at what was the end when the command began.")
    ] = False,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Step over batches that cannot be decoded, with a warning.")
    ] = False,
) -> None:
    """Print committed records, in order within a partition, and wait for more until Ctrl-C.

    Goes on at another node when one fails; nothing is skipped or printed twice. With --group the partitions are shared
    with the group's other members, and it begins where the group has committed (where it has not: at --offset).

    Examples: fluxctl consume orders --from-beginning --exit-at-end;
    fluxctl consume orders -O -10 -f '%p %o %k=%v\\n'; fluxctl consume orders -O @-5m
    """
    session = session_of(context)
    try:
        start = positions.parse_position("start" if from_beginning else offset)
        render = template.compile_template(record_format)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if group:
        if partition or exit_at_end or skip_corrupt:
            raise typer.BadParameter("--partition, --exit-at-end and --skip-corrupt do not go with --group")
        consume_as_member(session, group, topic, start, render, max_messages)
        return
    with session.client() as client:
        route = route_of(Admin(client), topic)
        unknown = set(partition or ()) - set(route.partitions)
        if unknown:
            bounds = f"{topic} has partitions 0..{route.partitions[-1]}, not {min(unknown)}"
            raise FluxlogError("UNKNOWN_PARTITION", bounds)
        begin = positions.resolve(start, client, topic, partition or route.partitions)
        ends = _ends(session, client, topic, begin) if exit_at_end else None
        reader = Reader(
            client,
            topic,
            begin,
            leaders=route.leaders,
            topic_id=route.topic_id,
            reset_below_start=start.kind is positions.Kind.START,
            on_retry=lambda number, failure, address: session.note_retry(failure),
            patience=None,
        )
        with reader:
            _Printer(session, topic, render, reader, ends, max_messages, skip_corrupt).run()


def _ends(session: Session, client: Client, topic: str, begin: Mapping[int, int]) -> dict[int, int | None]:
    """Where to stop; None: where the answering node's knowledge ends."""
    try:
        return dict(latest_offsets(client, topic, begin))
    except FluxlogError as failure:
        if not failure.retriable:
            raise
        session.warn(
            f"the end cannot be made sure of now ({failure.reason}): stopping where the answering node's knowledge ends"
        )
        return dict.fromkeys(begin)


class _Printer:
    def __init__(
        self,
        session: Session,
        topic: str,
        render: template.Render,
        reader: Reader,
        ends: dict[int, int | None] | None,
        max_messages: int,
        skip_corrupt: bool,
    ) -> None:
        self._session, self._topic, self._render, self._reader = session, topic, render, reader
        self._ends, self._left, self._skip_corrupt = ends, max_messages or None, skip_corrupt

    def run(self) -> None:
        """Print until there is nothing more to print, or for ever."""
        if self._ends is not None:
            for number, end in list(self._ends.items()):
                if end is not None and self._reader.position(number) == end:  # above it: the cluster says what is wrong
                    self._end_partition(number)
        with Interrupts() as interrupts:
            while (self._ends is None or self._ends) and self._left != 0:
                fetched = self._reader.poll(_POLL)
                if interrupts.requested:
                    raise typer.Exit(ExitCode.INTERRUPTED)
                if fetched is None:
                    continue
                self._print(fetched)
                if self._ends is not None:
                    end = self._ends[fetched.partition]
                    if fetched.next_offset >= (fetched.high_watermark if end is None else end):
                        self._end_partition(fetched.partition)

    def _end_partition(self, number: int) -> None:
        assert self._ends is not None
        self._reader.stop(number)
        del self._ends[number]

    def _print(self, fetched: Fetched) -> None:
        limit = self._ends[fetched.partition] if self._ends is not None else None
        out: list[bytes] = []
        offset: int | None = fetched.wanted_offset
        while offset is not None:
            try:
                for record in records_of(fetched.entries, offset):
                    if self._left == 0 or (limit is not None and record.offset >= limit):
                        break
                    out.append(self._render(self._topic, fetched.partition, record))
                    if self._left is not None:
                        self._left -= 1
                offset = None
            except UndecodableBatchError as error:
                self._write(out)
                self._step_over(fetched.partition, error)
                out, offset = [], error.next_offset
        self._write(out)

    def _step_over(self, partition: int, error: UndecodableBatchError) -> None:
        if not self._skip_corrupt:
            raise CommandError(
                f"{self._topic}-{partition}: {error}",
                f"step over it with --skip-corrupt, or begin behind it: --offset {error.next_offset} "
                f"--partition {partition}",
            ) from error
        self._session.warn(f"{self._topic}-{partition}: {error}: stepped over")

    def _write(self, out: list[bytes]) -> None:
        if out:
            write_bytes(b"".join(out))
