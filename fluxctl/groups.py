"""fluxctl groups: list, describe, delete, reset offsets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fluxctl.exits import CommandError, ExitCode
from fluxctl.group_tables import group_data, print_members, print_partitions, state_name
from fluxctl.output import Output, OutputFormat, confirm, emit, table, unread_is_well
from fluxctl.resets import Reset, parse_topics, parse_where, plan_resets
from fluxctl.session import Session, session_of
from fluxlog.groups import Groups
from fluxlog.v1 import groups_pb2

app = typer.Typer(no_args_is_help=True, help="List, describe and delete consumer groups; reset their offsets.")

Names = Annotated[list[str], typer.Argument(help="Group names.", show_default=False)]


def _end_if_incomplete(session: Session, missing_partitions: Sequence[int]) -> None:
    """After what is known was shown."""
    if missing_partitions:
        missing = ", ".join(map(str, missing_partitions))
        session.warn(f"groups may be missing: partitions {missing} of __consumer_offsets have no leader to ask")
        raise typer.Exit(ExitCode.ERROR)


@app.command("list")
def list_groups(context: typer.Context, output: Output = OutputFormat.TABLE) -> None:
    """List consumer groups. Exit code 1, and a warning, when some may be missing.

    Example: fluxctl groups list
    """
    session = session_of(context)
    with session.client() as client:
        answer = Groups(client).list()
    rows = [(each.group, state_name(each.state), each.members, each.coordinator_node) for each in answer.groups]
    with unread_is_well():
        if output is not OutputFormat.TABLE:
            keys = ("group", "state", "members", "coordinator_node")
            emit([dict(zip(keys, row, strict=True)) for row in rows], output)
        else:
            columns = ("GROUP", "STATE", "MEMBERS", "COORDINATOR")
            session.out.print(table(columns, rows, right=("MEMBERS", "COORDINATOR")))
    _end_if_incomplete(session, answer.missing_partitions)


@app.command()
def describe(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Group names; none: all.", show_default=False)] = None,
    members: Annotated[bool, typer.Option("--members", help="The members instead of the partitions.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Describe consumer groups: what is committed and how far that is behind, and who consumes it.

    CURRENT-OFFSET is the next record to be read. LAG-SECONDS is the age of the first record that is not committed. "?"
    where the partition's leader could not be asked. Exit code 1, and a warning, when some of all groups may be missing.

    Example: fluxctl groups describe billing --members
    """
    session = session_of(context)
    with session.client() as client:
        groups = Groups(client)
        listed = groups_pb2.ListGroupsResponse() if names else groups.list()
        described = groups.describe(names or [group.group for group in listed.groups])
    with unread_is_well():
        if output is not OutputFormat.TABLE:
            emit([group_data(group) for group in described], output)
        elif members:
            print_members(session.out, described)
        else:
            print_partitions(session.out, described)
    _end_if_incomplete(session, listed.missing_partitions)


@app.command()
def delete(
    context: typer.Context,
    names: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, also on a terminal.")] = False,
) -> None:
    """Delete groups with all that they committed. Refused while they have members.

    Example: fluxctl groups delete billing --yes
    """
    session = session_of(context)
    if not yes and sys.stdin.isatty():
        confirm(f"Delete {', '.join(names)} with all committed offsets?")
    with session.client() as client:
        for name in names:
            Groups(client).delete(name)
            session.out.print(f"group {name} deleted")


@app.command("reset-offsets")
def reset_offsets(
    context: typer.Context,
    group: Annotated[str, typer.Argument(help="Group name.", show_default=False)],
    topic: Annotated[
        list[str] | None,
        typer.Option("--topic", "-t", metavar="TOPIC[:P,P…]", help="Repeatable. None: all that the group committed."),
    ] = None,
    earliest: Annotated[
        bool, typer.Option("--earliest", "--to-earliest", help="The first record that is kept.")
    ] = False,
    latest: Annotated[bool, typer.Option("--latest", "--to-latest", help="The end.")] = False,
    offset: Annotated[int | None, typer.Option("--offset", "--to-offset", min=0, help="This offset.")] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", "--to-datetime", help="First record at or after: ISO 8601 or Unix milliseconds."),
    ] = None,
    by_duration: Annotated[
        str | None, typer.Option("--by-duration", metavar="90s|5m|2h|1d", help="So long ago.")
    ] = None,
    shift: Annotated[
        int | None, typer.Option("--shift", "--shift-by", help="So many records on, or back where negative.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; else only what would be done is shown.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Set the committed offsets of a group, in any direction. Refused while the group has members.

    Offsets outside of what a partition has are moved to its begin or its end.

    Example: fluxctl groups reset-offsets billing --topic orders --earliest --execute
    """
    session = session_of(context)
    where = parse_where(
        earliest=earliest, latest=latest, offset=offset, time=time, by_duration=by_duration, shift=shift
    )
    with session.client() as client:
        groups = Groups(client)
        committed = groups.offsets(group)
        keys = parse_topics(topic, client) if topic else sorted(key for key in committed if key[0])
        if not keys:
            raise CommandError(f"group {group} has committed nothing", "name topics with --topic")
        resets = plan_resets(client, keys, committed, where)
        if execute:
            groups.reset_offsets(group, {(each.topic, each.partition): each.new for each in resets})
    _show(session, group, resets, output, execute=execute)


def _show(session: Session, group: str, resets: list[Reset], output: OutputFormat, *, execute: bool) -> None:
    if output is not OutputFormat.TABLE:
        rows = [
            {
                "topic": each.topic,
                "partition": each.partition,
                "current_offset": each.current,
                "new_offset": each.new,
            }
            for each in resets
        ]
        emit({"group": group, "executed": execute, "offsets": rows}, output)
        return
    columns = ("GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "NEW-OFFSET")
    shown = [
        (group, each.topic, each.partition, "-" if each.current is None else each.current, each.new) for each in resets
    ]
    session.out.print(table(columns, shown, right=columns[2:]))
    if not execute:
        session.err.print("nothing was changed: add --execute to do it")
