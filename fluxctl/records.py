"""fluxctl topics offsets, delete-records: where partitions begin and end, and moving the beginning."""

from __future__ import annotations

from typing import Annotated

import typer

from fluxctl.options import PARTITION_MAX
from fluxctl.output import Output, OutputFormat, emit, plural, table, unread_is_well
from fluxctl.positions import SYNTAX, parse_position, resolve
from fluxctl.session import Session, session_of
from fluxlog.admin import Admin
from fluxlog.client import Client
from fluxlog.errors import FluxlogError, UnreachableError
from fluxlog.offsets import earliest_offsets, latest_offsets

Topic = Annotated[str, typer.Argument(help="Topic name.", show_default=False)]
Partitions = Annotated[
    list[int] | None,
    typer.Option("--partition", "-p", min=0, max=PARTITION_MAX, help="Only this one; may be repeated. Default: all."),
]


def _numbers(client: Client, topic: str, chosen: list[int] | None) -> list[int]:
    return sorted(set(chosen)) if chosen else list(range(len(Admin(client).describe_topic(topic).partitions)))


def offsets(
    context: typer.Context, topic: Topic, partition: Partitions = None, output: Output = OutputFormat.TABLE
) -> None:
    """Where partitions begin and end.

    Example: fluxctl topics offsets orders
    """
    session = session_of(context)
    with session.client() as client:
        numbers = _numbers(client, topic, partition)
        starts, ends = earliest_offsets(client, topic, numbers), latest_offsets(client, topic, numbers)
    rows = [
        {"partition": n, "log_start_offset": starts[n], "high_watermark": ends[n], "records": ends[n] - starts[n]}
        for n in numbers
    ]
    _show(session, rows, output)


def delete_records(
    context: typer.Context,
    topic: Topic,
    before: Annotated[str, typer.Option("--before", metavar="POSITION", help=f"First record to keep: {SYNTAX}.")],
    partition: Partitions = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without this only say what would go.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Delete the records before a position, for good. Says what would go; with --execute it goes.

    Example: fluxctl topics delete-records orders --before @-7d --execute
    """
    session = session_of(context)
    try:
        position = parse_position(before)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--before") from error
    with session.client() as client:
        numbers = _numbers(client, topic, partition)
        starts, ends = earliest_offsets(client, topic, numbers), latest_offsets(client, topic, numbers)
        wanted = {n: max(starts[n], offset) for n, offset in resolve(position, client, topic, numbers).items()}
        beyond = [n for n in numbers if wanted[n] > ends[n]]
        if beyond:
            raise typer.BadParameter(
                f"offset {wanted[beyond[0]]} is behind the end {ends[beyond[0]]} of {topic}-{beyond[0]}",
                param_hint="--before",
            )
        failures = _delete(session, client, topic, wanted) if execute else []
    rows = [
        {"partition": n, "log_start_offset": wanted[n], "high_watermark": ends[n], "deleted": wanted[n] - starts[n]}
        for n in numbers
        if n in wanted
    ]
    with unread_is_well():
        _show(session, rows, output)
        if output is OutputFormat.TABLE:
            total = plural(sum(row["deleted"] for row in rows), "record")
            done = f"{total} deleted"
            text = done if execute else f"{total} would be deleted; nothing was changed: give --execute to do it"
            session.out.print(text)
    if failures:
        raise failures[0]


def _delete(session: Session, client: Client, topic: str, wanted: dict[int, int]) -> list[FluxlogError]:
    """Delete what is before the wanted offsets; afterwards `wanted` has those alone that it was done for."""
    failures: list[FluxlogError] = []
    left = sorted(wanted)
    while left and not (failures and isinstance(failures[-1], UnreachableError)):  # else nobody answers for the others
        n = left.pop(0)
        try:
            wanted[n] = Admin(client).delete_records(topic, n, wanted[n]).log_start_offset
        except FluxlogError as failure:
            session.warn(f"{topic}-{n}: {failure.message} ({failure.reason})")
            failures.append(failure)
            del wanted[n]
    for n in left:
        session.warn(f"{topic}-{n}: not tried")
        del wanted[n]
    return failures


def _show(session: Session, rows: list[dict[str, int]], output: OutputFormat) -> None:
    if output is not OutputFormat.TABLE:
        emit(rows, output)
        return
    columns = list(rows[0]) if rows else []
    session.out.print(table(columns, [[row[column] for column in columns] for row in rows], right=columns))
