"""fluxctl nodes: list them, end them, start them, move leadership away from them."""

from __future__ import annotations

import signal
from typing import Annotated

import typer
from rich.table import Table

from fluxctl.exits import CommandError
from fluxctl.impact import impact_of
from fluxctl.local import LocalCluster
from fluxctl.output import Output, OutputFormat, emit, milliseconds, plural, table
from fluxctl.process import wait_gone
from fluxctl.routes import every_topic
from fluxctl.session import Session, session_of
from fluxlog.admin import Admin
from fluxlog.errors import FluxlogError
from fluxlog.v1 import admin_pb2

app = typer.Typer(no_args_is_help=True, help="List, kill, stop and start nodes; move leadership.")

NodeId = Annotated[int, typer.Argument(min=1, max=65_535, help="Node id, as `fluxctl nodes list` shows it.")]
_STATES = {admin_pb2.NODE_STATE_UP: "up", admin_pb2.NODE_STATE_DOWN: "down"}


def _node_rows(cluster: admin_pb2.DescribeClusterResponse) -> list[tuple[object, ...]]:
    """Cells of the node table; the controller has a star."""
    rows: list[tuple[object, ...]] = []
    for node in cluster.nodes:
        star = "*" if node.node_id == cluster.controller_node else ""
        heard = milliseconds(node.last_heard_ms if node.HasField("last_heard_ms") else None)
        rows.append(
            (
                f"{star}{node.node_id}",
                node.address,
                _STATES.get(node.state, "?"),
                heard if heard == "never" else f"{heard} ago",
                node.leader_partitions,
                node.replica_partitions,
                node.process_id or "",
                node.version,
            )
        )
    return rows


def node_data(node: admin_pb2.NodeDescription) -> dict[str, object]:
    """A node for programs."""
    return {
        "node_id": node.node_id,
        "address": node.address,
        "state": _STATES.get(node.state, "unknown"),
        "last_heard_ms": node.last_heard_ms if node.HasField("last_heard_ms") else None,
        "leader_partitions": node.leader_partitions,
        "replica_partitions": node.replica_partitions,
        "process_id": node.process_id or None,
        "version": node.version,
        "allows_remote_stop": node.allows_remote_stop,
        "why": node.why,
    }


def node_table(cluster: admin_pb2.DescribeClusterResponse) -> Table:
    """Nodes as a table."""
    columns = ("Node", "Address", "State", "Last heard", "Leads", "Replicas", "Process", "Version")
    return table(columns, _node_rows(cluster), right=("Node", "Leads", "Replicas", "Process"))


@app.command("list")
def list_nodes(context: typer.Context, output: Output = OutputFormat.TABLE) -> None:
    """List the nodes; * is the controller.

    Example: fluxctl nodes list
    """
    session = session_of(context)
    with session.client() as client:
        cluster = Admin(client).describe_cluster()
    if output is not OutputFormat.TABLE:
        emit([node_data(node) for node in cluster.nodes], output)
        return
    session.out.print(node_table(cluster))
    for node in cluster.nodes:
        if node.why:
            session.out.print(f"  node {node.node_id}: {node.why}", soft_wrap=True)


@app.command()
def kill(
    context: typer.Context,
    node: NodeId,
    signal_name: Annotated[
        str, typer.Option("--signal", "-s", help="KILL, TERM, STOP, CONT, … Over the network: KILL and TERM only.")
    ] = "KILL",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which partitions would lose their leader or their quorum.")
    ] = False,
) -> None:
    """End a node's process at once (SIGKILL), as a crash would.

    On the local cluster by process id; elsewhere by a call, which the node refuses unless it was started with
    --allow-remote-stop.

    Examples: fluxctl nodes kill 2 --dry-run; fluxctl nodes kill 2; fluxctl nodes kill 2 --signal STOP
    """
    session = session_of(context)
    number = _signal_of(signal_name)
    if dry_run:
        _print_impact(session, node)
        return
    local = _local_with(session, node)
    if local is not None:
        if not local.kill(node, number):
            raise CommandError(f"node {node} does not run")
        process = local.nodes[node].process
        if number is signal.SIGKILL and process is not None:
            wait_gone(process, 5.0)
        session.out.print(f"node {node}: {number.name} sent to process {process and process.process_id}")
        return
    with session.client() as client:
        if number is signal.SIGKILL:
            Admin(client).kill_node(node)
        elif number is signal.SIGTERM:
            Admin(client).stop_node(node)
        else:
            raise CommandError(f"{number.name} cannot be sent over the network", "KILL and TERM can")
    session.out.print(f"node {node}: asked to end ({number.name})")


@app.command()
def stop(
    context: typer.Context,
    node: NodeId,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for its end (local cluster).")] = 15.0,
) -> None:
    """Stop a node in good order: it hands its leaderships over first.

    Example: fluxctl nodes stop 3
    """
    session = session_of(context)
    local = _local_with(session, node)
    if local is None:
        with session.client() as client:
            Admin(client).stop_node(node)
        session.out.print(f"node {node}: asked to stop")
        return
    if not local.node(node).running:
        raise CommandError(f"node {node} does not run")
    if local.stop([node], timeout):
        raise CommandError(
            f"node {node} did not end within {timeout:g} s and was killed", f"see {local.log_path(node)}"
        )
    session.out.print(f"node {node}: stopped")


@app.command()
def start(context: typer.Context, node: NodeId) -> None:
    """Start a node of the local cluster again, with its data.

    Example: fluxctl nodes start 3
    """
    session = session_of(context)
    local = session.local_cluster()
    if local is None:
        raise CommandError("only nodes of a local cluster can be started from here", "fluxctl cluster up starts one")
    if not local.start(node):
        raise CommandError(f"node {node} runs already")
    process = local.nodes[node].process
    session.out.print(f"node {node}: started (process {process and process.process_id})")


@app.command()
def transfer(
    context: typer.Context,
    node: Annotated[int, typer.Argument(min=1, help="Node to move leadership away from.")],
    topic: Annotated[str, typer.Option(help="Only of this topic.")] = "",
    partition: Annotated[int, typer.Option(min=-1, help="Only of this partition (with --topic).")] = -1,
    to: Annotated[
        int, typer.Option(min=0, max=65_535, help="Node to move it to; 0: any replica that is caught up.")
    ] = 0,
) -> None:
    """Move the leadership of partitions from a node to others, before maintenance for instance.

    Without --topic also those of the cluster's own topics, and with them the controller.

    Examples: fluxctl nodes transfer 2; fluxctl nodes transfer 2 --topic orders --partition 0 --to 3
    """
    if partition >= 0 and not topic:
        raise typer.BadParameter("names a partition of a topic: give --topic, too", param_hint="--partition")
    session = session_of(context)
    with session.client() as client:
        admin = Admin(client)
        _check_known(admin.describe_cluster(), node)
        topics = [admin.describe_topic(topic)] if topic else every_topic(admin)
        if partition >= 0 and partition not in {one.partition for each in topics for one in each.partitions}:
            raise CommandError(f"topic {topic!r} has no partition {partition}", f"see fluxctl topics describe {topic}")
        led = [
            (each.name, one.partition)
            for each in topics
            for one in each.partitions
            if one.leader_node == node and partition in (-1, one.partition)
        ]
        failed: list[FluxlogError] = []
        for name, number in led:
            try:
                moved = admin.transfer_leadership(name, number, to_node=to)
                session.out.print(f"{name}-{number}: node {node} -> node {moved.leader_node}")
            except FluxlogError as failure:
                session.warn(f"{name}-{number}: {failure.message} ({failure.reason})")
                failed.append(failure)
    session.out.print(f"{len(led) - len(failed)} of {plural(len(led), 'leadership')} of node {node} moved")
    if failed:
        raise failed[0]


def _check_known(cluster: admin_pb2.DescribeClusterResponse, node_id: int) -> None:
    if node_id not in {node.node_id for node in cluster.nodes}:
        raise CommandError(f"the cluster has no node {node_id}", "see fluxctl nodes list")


def _signal_of(name: str) -> signal.Signals:
    try:
        return (
            signal.Signals(int(name)) if name.isdecimal() else signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
        )
    except (KeyError, ValueError) as error:
        raise typer.BadParameter(f"no such signal: {name}", param_hint="--signal") from error


def _local_with(session: Session, node_id: int) -> LocalCluster | None:
    """The local cluster, when the session's cluster is that one."""
    local = session.local_cluster()
    if local is None or node_id not in local.nodes or not set(session.addresses()) <= set(local.addresses):
        return None
    return local


def _print_impact(session: Session, node_id: int) -> None:
    with session.client() as client:
        admin = Admin(client)
        cluster, topics = admin.describe_cluster(), every_topic(admin)
    live = frozenset(node.node_id for node in cluster.nodes if node.state == admin_pb2.NODE_STATE_UP)
    _check_known(cluster, node_id)
    impacts = impact_of(node_id, topics, live)
    rows = [(impact.topic, impact.partition, impact.consequence) for impact in impacts]
    if rows:
        session.out.print(table(("Topic", "Partition", "Without this node"), rows, right=("Partition",)))
    if cluster.controller_node == node_id:
        session.out.print(f"node {node_id} is the controller: another one is elected while a majority is up")
    lost = sum(impact.loses_quorum for impact in impacts)
    session.out.print(
        f"dry run, nothing was done: of {plural(sum(len(topic.partitions) for topic in topics), 'partition')} "
        f"{sum(impact.loses_leader for impact in impacts)} would lose the leader, {lost} the quorum"
    )
