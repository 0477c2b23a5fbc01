"""Three containers are one cluster, for clients outside and inside."""

from __future__ import annotations

import os
import subprocess
import sys

from fluxlog.v1 import admin_pb2
from tests.docker.compose import NODES, ComposeProject
from tests.docker.engine import COMPOSE_FILE, REPOSITORY, execute

_DEMO_LINES = 50_000


def fluxctl(address: str, *arguments: str, given: str = "") -> str:
    """Output of a command that knows one address only."""
    command = [sys.executable, "-m", "fluxctl", "--bootstrap", address, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_any_node_from_the_host(cluster: ComposeProject) -> None:
    """A topic made through one node, written through another, read through the third."""
    first, second, third = (cluster.addresses[node] for node in NODES)
    fluxctl(first, "topics", "create", "tour", "--partitions", "3")
    for partition in range(3):
        lines = "".join(f"{partition}-{number}\n" for number in range(100))
        fluxctl(second, "produce", "tour", "--partition", str(partition), given=lines)
    out = fluxctl(third, "consume", "tour", "--from-beginning", "--max-messages", "300")
    assert sorted(out.split()) == sorted(f"{partition}-{number}" for partition in range(3) for number in range(100))


def test_every_node_is_told_of_by_its_published_address(cluster: ComposeProject) -> None:
    """What a client on the host is told is what it can connect to, for every node and as a partition's leader."""
    cluster.admin.create_topic("addresses", partitions=3, replication_factor=3, wait_ms=20_000)
    told = cluster.admin.describe_cluster()
    assert {node.node_id: node.address for node in told.nodes} == cluster.addresses
    leaders = {partition.leader_node for partition in cluster.admin.describe_topic("addresses").partitions}
    assert leaders <= set(NODES)
    for address in cluster.addresses.values():
        assert cluster.admin.describe_cluster(address=address).cluster_id == told.cluster_id


def test_a_client_inside_the_network(cluster: ComposeProject) -> None:
    """It cannot reach what leaders are said to be at; the node that it was given passes everything on."""
    cluster.admin.create_topic("inside", partitions=3, replication_factor=3, wait_ms=20_000)
    script = """
        for p in 0 1 2; do echo from-$p | fluxctl produce inside --partition $p >&2 || exit 1; done
        fluxctl consume inside --from-beginning --max-messages 3
    """
    code, out, problems = execute(cluster.container(1), "sh", "-c", script, FLUXCTL_BOOTSTRAP="node2:9640")
    assert code == 0, problems
    assert sorted(out.split()) == ["from-0", "from-1", "from-2"]


def test_remote_stop_is_off(cluster: ComposeProject) -> None:
    """Nobody on the network can end a node of this file."""
    nodes = cluster.admin.describe_cluster().nodes
    assert not any(node.allows_remote_stop for node in nodes)
    assert all(node.state == admin_pb2.NODE_STATE_UP for node in nodes)


def test_demo_on_containers(image: str, cluster: ComposeProject) -> None:
    """`fluxctl demo failover --compose` kills containers, finds everything again, and leaves nothing behind."""
    command = [
        sys.executable, "-m", "fluxctl", "demo", "failover", "--compose", "--compose-file", str(COMPOSE_FILE),
        "--lines", str(_DEMO_LINES),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=False,
        env=os.environ | {"FLUXD_IMAGE": image},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.strip().splitlines()[-1]
    assert "lost 0, duplicated 0, out of order 0" in last
