"""fluxctl topics: create, list, describe, alter, add partitions, delete; offsets, delete-records (records.py); verify
(verify.py)."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fluxctl.describe import print_topics, topic_data
from fluxctl.output import Output, OutputFormat, confirm, emit, plural, table
from fluxctl.records import delete_records, offsets
from fluxctl.routes import every_topic
from fluxctl.session import session_of
from fluxctl.verify import verify
from fluxlog.admin import Admin

app = typer.Typer(no_args_is_help=True, help="Create, list, describe, change and delete topics.")

Name = Annotated[str, typer.Argument(help="Topic name.", show_default=False)]
Names = Annotated[list[str], typer.Argument(help="Topic names.", show_default=False)]
Configs = Annotated[
    list[str] | None,
    typer.Option("--config", "-c", metavar="KEY=VALUE", help="Configuration, for instance segment.bytes=1048576."),
]
UnderReplicated = Annotated[
    bool, typer.Option("--under-replicated", help="Only partitions without a leader or with a replica out of sync.")
]
_WAIT_MS = 10_000


def parse_configs(items: list[str] | None) -> dict[str, str]:
    """Split KEY=VALUE items.

    Raises:
        typer.BadParameter: an item has no "=" or no key.
    """
    out = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"not KEY=VALUE: {item!r}", param_hint="--config")
        out[key] = value
    return out


@app.command()
def create(
    context: typer.Context,
    name: Name,
    partitions: Annotated[int, typer.Option("--partitions", "-p", min=1, max=10_000)] = 1,
    replication_factor: Annotated[
        int, typer.Option("--replication-factor", "-r", min=0, max=5, help="0: 3, or the number of nodes if fewer.")
    ] = 0,
    config: Configs = None,
    if_not_exists: Annotated[bool, typer.Option("--if-not-exists", help="An existing topic is no error.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until every partition has a leader.")] = True,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Create a topic.

    Example: fluxctl topics create orders --partitions 6 --replication-factor 3
    """
    session = session_of(context)
    with session.client() as client:
        made = Admin(client).create_topic(
            name,
            partitions=partitions,
            replication_factor=replication_factor,
            configs=parse_configs(config),
            if_not_exists=if_not_exists,
            wait_ms=_WAIT_MS if wait else 0,
        )
    if output is not OutputFormat.TABLE:
        emit(
            {
                "name": made.name,
                "topic_id": made.topic_id.hex(),
                "created": made.created,
                "partition_count": made.partitions,
                "replication_factor": made.replication_factor,
                "all_leaders_elected": made.all_leaders_elected if wait else None,
            },
            output,
        )
    else:
        verb = "created" if made.created else "exists already"
        session.out.print(
            f"topic {made.name} {verb}: {plural(made.partitions, 'partition')}, replication factor "
            f"{made.replication_factor}, id {made.topic_id.hex()}",
        )
    if wait and not made.all_leaders_elected:
        advice = f"fluxctl topics describe {name} --why"
        session.warn(f"not every partition had a leader within {_WAIT_MS // 1000} s: {advice}")


@app.command("list")
def list_topics(
    context: typer.Context,
    under_replicated: UnderReplicated = False,
    internal: Annotated[bool, typer.Option("--internal", help="Also the cluster's own topics.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List topics.

    Example: fluxctl topics list --output json
    """
    session = session_of(context)
    with session.client() as client:
        admin = Admin(client)
        topics = admin.list_topics(include_internal=internal or under_replicated)
        if under_replicated:
            troubled = {topic.name for topic in every_topic(admin, under_replicated_only=True) if topic.partitions}
            topics = [topic for topic in topics if topic.name in troubled]
    if output is not OutputFormat.TABLE:
        emit(
            [
                {
                    "name": topic.name,
                    "topic_id": topic.topic_id.hex(),
                    "partition_count": topic.partitions,
                    "replication_factor": topic.replication_factor,
                    "internal": topic.internal,
                }
                for topic in topics
            ],
            output,
        )
        return
    rows = [(topic.name, topic.partitions, topic.replication_factor, topic.topic_id.hex()) for topic in topics]
    columns = ("Topic", "Partitions", "ReplicationFactor", "TopicId")
    session.out.print(table(columns, rows, right=("Partitions", "ReplicationFactor")))


@app.command()
def describe(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Topic names; none: all.", show_default=False)] = None,
    under_replicated: UnderReplicated = False,
    why: Annotated[
        bool, typer.Option("--why", help="Say in words why a leader is missing or a replica behind.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Describe topics: per partition leader, epoch, replicas, those in sync, begin, end, and how each follower is
    doing.

    Isr is the leader's own finding; "?" when there is no leader to ask. --under-replicated shows the cluster's own
    topics, too.

    Example: fluxctl topics describe orders --why
    """
    session = session_of(context)
    with session.client() as client:
        admin = Admin(client)
        if under_replicated and not names:
            topics = every_topic(admin, under_replicated_only=True)
        else:
            topics = list(admin.describe_topics(names or [], under_replicated_only=under_replicated))
    if under_replicated:
        topics = [topic for topic in topics if topic.partitions]
    if output is not OutputFormat.TABLE:
        emit([topic_data(topic) for topic in topics], output)
        return
    print_topics(session.out, topics, why=why)


@app.command()
def alter(
    context: typer.Context,
    name: Name,
    config: Configs = None,
    delete_config: Annotated[
        list[str] | None, typer.Option("--delete-config", metavar="KEY", help="Back to the default.")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Set or remove configuration keys.

    Example: fluxctl topics alter orders --config segment.bytes=1048576
    """
    session = session_of(context)
    if not config and not delete_config:
        raise typer.BadParameter("nothing to change: give --config or --delete-config")
    with session.client() as client:
        configs = Admin(client).alter_topic(name, set_configs=parse_configs(config), delete_configs=delete_config or [])
    if output is not OutputFormat.TABLE:
        emit({"name": name, "configs": dict(sorted(configs.items()))}, output)
        return
    listed = ",".join(f"{key}={value}" for key, value in sorted(configs.items()))
    session.out.print(f"topic {name} now has {listed or 'no configuration of its own'}")


@app.command("add-partitions")
def add_partitions(
    context: typer.Context, name: Name, total: Annotated[int, typer.Argument(min=1, max=10_000, help="New total.")]
) -> None:
    """Raise the number of partitions. Keys are then spread differently; what is written stays where it is.

    Example: fluxctl topics add-partitions orders 12
    """
    session = session_of(context)
    with session.client() as client:
        partitions = Admin(client).add_partitions(name, total)
    session.out.print(f"topic {name} now has {plural(partitions, 'partition')}")


@app.command()
def delete(
    context: typer.Context,
    names: Names,
    if_exists: Annotated[bool, typer.Option("--if-exists", help="A topic that is not there is no error.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, also on a terminal.")] = False,
) -> None:
    """Delete topics with all their records.

    Example: fluxctl topics delete orders --yes
    """
    session = session_of(context)
    if not yes and sys.stdin.isatty():
        confirm(f"Delete {', '.join(names)} with all records?")
    with session.client() as client:
        admin = Admin(client)
        for name in names:
            deleted = admin.delete_topic(name, if_exists=if_exists)
            session.out.print(f"topic {name} {'deleted' if deleted else 'does not exist'}")


app.command()(offsets)
app.command("delete-records")(delete_records)
app.command()(verify)
