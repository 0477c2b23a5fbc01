"""Is the cluster well? One set of criteria for `cluster health`, `cluster wait`, `cluster up` and the demo."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fluxctl.output import milliseconds, plural
from fluxlog.admin import Admin
from fluxlog.errors import FluxlogError
from fluxlog.v1 import admin_pb2

_POLL = 0.1


def problems_of(cluster: admin_pb2.DescribeClusterResponse, *, nodes_expected: int = 0) -> list[str]:
    """What is not well, in words; empty when all is.

    Args:
        nodes_expected: how many nodes there are to be at least.
    """
    out = []
    if not cluster.cluster_id:
        out.append("the cluster is not founded yet: its seed nodes must all be up for that")
    if not cluster.controller_node:
        out.append("there is no controller: topics cannot be changed")
    for node in cluster.nodes:
        if node.state != admin_pb2.NODE_STATE_UP:
            heard = milliseconds(node.last_heard_ms if node.HasField("last_heard_ms") else None)
            since = "never heard from" if heard == "never" else f"last heard {heard} ago"
            out.append(f"node {node.node_id} at {node.address} is down ({since})")
        elif node.why:
            out.append(f"node {node.node_id}: {node.why}")
    if len(cluster.nodes) < nodes_expected:
        out.append(f"{plural(len(cluster.nodes), 'node')} of {nodes_expected} known")
    if cluster.leaderless_partitions:
        out.append(f"{plural(cluster.leaderless_partitions, 'partition')} without a leader: no writes there")
    if cluster.under_replicated_partitions:
        out.append(f"{plural(cluster.under_replicated_partitions, 'partition')} with a replica out of sync")
    return out


def wait_healthy(admin: Admin, *, timeout: float, nodes_expected: int = 0, addresses: Sequence[str] = ()) -> list[str]:
    """Wait until there is no problem.

    Args:
        timeout: seconds.
        addresses: nodes that must each say so themselves; none: any one node's word is enough.

    Returns:
        What is still not well; empty: healthy.
    """
    give_up_at = time.monotonic() + timeout
    while True:
        problems: list[str] = []
        for address in addresses or [""]:
            try:
                cluster = admin.describe_cluster(address=address, timeout=2.0)
                problems += problems_of(cluster, nodes_expected=nodes_expected)
            except FluxlogError as failure:
                problems.append(failure.message)
        if not problems or time.monotonic() >= give_up_at:
            return list(dict.fromkeys(problems))
        time.sleep(_POLL)
