"""fluxctl cluster: a local cluster of real processes, and the health of any."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fluxctl.exits import CommandError, ExitCode
from fluxctl.health import problems_of, wait_healthy
from fluxctl.local import LocalCluster, default_data_dir
from fluxctl.nodes import node_data, node_table
from fluxctl.options import NODES_MAX
from fluxctl.output import Output, OutputFormat, emit, plural, unread_is_well
from fluxctl.session import Session, session_of
from fluxlog.admin import Admin
from fluxlog.client import Client
from fluxlog.v1 import admin_pb2

app = typer.Typer(no_args_is_help=True, help="Start, stop and watch a cluster.")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="State directory of the local cluster; $FLUXCTL_DATA_DIR or ./fluxd-data."),
]
NODES_DEFAULT = 3
_POLL = 0.05


def _local(data_dir: Path | None) -> LocalCluster:
    directory = data_dir or default_data_dir()
    cluster = LocalCluster.load(directory)
    if cluster is None:
        raise CommandError(f"there is no local cluster in {directory}", "fluxctl cluster up starts one")
    return cluster


def start_and_wait(cluster: LocalCluster, timeout: float) -> float:
    """Start every node that does not run, and wait until the cluster is healthy.

    Returns:
        Seconds taken.

    Raises:
        CommandError: a process ended, or it was not healthy in time.
    """
    began = time.monotonic()
    for node_id in cluster.nodes:
        cluster.start(node_id)
    with Client(cluster.addresses) as client:
        while True:
            problems = wait_healthy(
                Admin(client), timeout=0.2, nodes_expected=len(cluster.nodes), addresses=cluster.addresses
            )
            for node in cluster.nodes.values():
                if not node.running:
                    log = cluster.log_path(node.node_id)
                    raise CommandError(f"node {node.node_id} ended: {cluster.last_words(node.node_id)}", f"see {log}")
            if not problems:
                return time.monotonic() - began
            if time.monotonic() - began > timeout:
                raise CommandError(
                    f"not healthy after {timeout:g} s: {'; '.join(problems)}",
                    f"the nodes go on running; see {cluster.directory / 'logs'}",
                    code=ExitCode.UNHEALTHY,
                )
            time.sleep(_POLL)


@app.command()
def up(
    context: typer.Context,
    nodes: Annotated[
        int | None, typer.Option("--nodes", "-n", min=1, max=NODES_MAX, help="How many. Default: 3, or what there are.")
    ] = None,
    data_dir: DataDir = None,
    base_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_000, help="Ports from here on. Default: its own; of a new one 9101 and up if free, else any."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is healthy.")] = 60.0,
) -> None:
    """Start a local cluster of real processes on loopback; one that exists is started again with its data.

    Example: fluxctl cluster up --nodes 3
    """
    session, directory = session_of(context), data_dir or default_data_dir()
    cluster = LocalCluster.load(directory)
    if cluster is None:
        cluster = LocalCluster.create(directory, NODES_DEFAULT if nodes is None else nodes, base_port)
    _check_as_wanted(cluster, nodes, base_port)
    already = len(cluster.running)
    seconds = start_and_wait(cluster, timeout)
    started = len(cluster.nodes) - already
    verb = f"{plural(started, 'node')} started, healthy after {seconds:.1f} s" if started else "already up"
    session.out.print(f"{verb}: {', '.join(cluster.addresses)} (data and logs in {cluster.directory})")


def _check_as_wanted(cluster: LocalCluster, nodes: int | None, base_port: int | None) -> None:
    """Raises CommandError when the cluster, which may have been there before, is another than was asked for."""
    count, ports = len(cluster.nodes), [int(address.rpartition(":")[2]) for address in cluster.addresses]
    if count > NODES_MAX:  # laid out by an earlier version; no node of it ever started
        raise CommandError(
            f"the local cluster in {cluster.directory} has {count} nodes, and {NODES_MAX} are the most there can be",
            "it never held anything: remove the directory",
        )
    if nodes is not None and nodes != count:
        other = f"{plural(count, 'node')}, not {nodes}"
    elif base_port is not None and ports != list(range(base_port, base_port + count)):
        other = f"the ports {', '.join(map(str, ports))}, not {base_port} and up"
    else:
        return
    raise CommandError(
        f"the local cluster in {cluster.directory} has {other}", "choose another --data-dir for another cluster"
    )


@app.command()
def down(
    context: typer.Context,
    data_dir: DataDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which a node that has not ended is killed.")] = 15.0,
) -> None:
    """Stop the local cluster: each node hands its leaderships over and ends. Its data stay.

    Example: fluxctl cluster down
    """
    session, cluster = session_of(context), _local(data_dir)
    running = [node.node_id for node in cluster.running]
    killed = cluster.stop(running, timeout)
    for node_id in killed:
        session.warn(f"node {node_id} did not end within {timeout:g} s and was killed; see {cluster.log_path(node_id)}")
    session.out.print(f"{plural(len(running), 'node')} stopped; data stay in {cluster.directory}")


@app.command()
def status(context: typer.Context, output: Output = OutputFormat.TABLE) -> None:
    """Show the nodes, who is controller, and what is not well.

    Example: fluxctl cluster status --output json
    """
    session = session_of(context)
    with session.client() as client:
        cluster = Admin(client).describe_cluster()
    problems = problems_of(cluster)
    if output is not OutputFormat.TABLE:
        emit(_status_data(cluster, problems), output)
        return
    controller = f"node {cluster.controller_node}" if cluster.controller_node else "none"
    session.out.print(
        f"Cluster: {cluster.cluster_id or '(not founded)'}   Controller: {controller}   "
        f"Topics: {cluster.topics}   Partitions: {cluster.partitions}   "
        f"Leaderless: {cluster.leaderless_partitions}   UnderReplicated: {cluster.under_replicated_partitions}",
    )
    session.out.print(node_table(cluster))
    _print_problems(session, problems)


def _status_data(cluster: admin_pb2.DescribeClusterResponse, problems: list[str]) -> dict[str, object]:
    return {
        "cluster_id": cluster.cluster_id,
        "controller_node": cluster.controller_node or None,
        "healthy": not problems,
        "problems": problems,
        "topics": cluster.topics,
        "partitions": cluster.partitions,
        "leaderless_partitions": cluster.leaderless_partitions,
        "under_replicated_partitions": cluster.under_replicated_partitions,
        "nodes": [node_data(node) for node in cluster.nodes],
    }


def _print_problems(session: Session, problems: list[str]) -> None:
    for problem in problems:
        session.out.print(f"- {problem}")


@app.command()
def health(context: typer.Context, output: Output = OutputFormat.TABLE) -> None:
    """Exit code 0 when all is well, 10 with the reasons when it is not.

    Example: fluxctl cluster health || alert
    """
    session = session_of(context)
    with session.client() as client:
        problems = wait_healthy(Admin(client), timeout=0)
    _conclude(session, problems, output)


@app.command()
def wait(
    context: typer.Context,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
    nodes: Annotated[int, typer.Option(help="Nodes that there must be at least.")] = 0,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Wait until all is well; exit code 10 when it is not in time.

    Example: fluxctl cluster wait --timeout 30 --nodes 3
    """
    session = session_of(context)
    with session.client() as client:
        problems = wait_healthy(Admin(client), timeout=timeout, nodes_expected=nodes)
    _conclude(session, problems, output)


def _conclude(session: Session, problems: list[str], output: OutputFormat) -> None:
    with unread_is_well():
        if output is not OutputFormat.TABLE:
            emit({"healthy": not problems, "problems": problems}, output)
        else:
            session.out.print("healthy" if not problems else "not healthy")
            _print_problems(session, problems)
    if problems:
        raise typer.Exit(ExitCode.UNHEALTHY)
