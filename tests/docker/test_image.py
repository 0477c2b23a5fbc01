"""The image by itself: what is in it, who runs it, how it answers to its health check and to signals."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from tests.docker.engine import execute, wait_exit, wait_until

_ABOVE_BASE_BYTES_MAX = 150_000_000
_UID = "10001"
_DATA = "/var/lib/fluxd"


@pytest.fixture
def node(image: str) -> Iterator[Container]:
    """One node by itself, as `docker run` starts it: without an init."""
    with DockerContainer(image).with_envs(FLUXD_NODE_ID="1", FLUXD_ADVERTISE="127.0.0.1:9640") as started:
        yield started.get_wrapped_container()


def test_image_is_small(engine: docker.DockerClient, image: str, facts: list[str]) -> None:
    """Under 150 MB above its base, from which it inherits every one of the base's layers."""
    ours = engine.images.get(image)
    layers = ours.attrs["RootFS"]["Layers"]
    bases = [
        other
        for other in engine.images.list()
        if (others := other.attrs["RootFS"]["Layers"]) != layers and layers[: len(others)] == others and other.tags
    ]
    base = max(bases, key=lambda other: len(other.attrs["RootFS"]["Layers"]))
    above = ours.attrs["Size"] - base.attrs["Size"]
    facts.append(f"image: {above / 1e6:.0f} MB above {base.tags[0]}, which has {base.attrs['Size'] / 1e6:.0f} MB")
    assert above < _ABOVE_BASE_BYTES_MAX


def test_image_runs_unprivileged_and_brings_no_tools(node: Container) -> None:
    """Not root, writes to its volume only, and nothing to build with is there."""
    _, status, _ = execute(node, "cat", "/proc/1/status")
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert set(uids) == {_UID}
    assert [mount["Destination"] for mount in node.attrs["Mounts"]] == [_DATA]
    assert execute(node, "touch", "/opt/fluxd/x")[0] != 0
    for tool in ("gcc", "cc", "make", "/opt/fluxd/bin/pip"):
        assert execute(node, "sh", "-c", f"command -v {tool}")[0] != 0
    for module in ("pip", "setuptools"):
        assert execute(node, "python3", "-c", f"import {module}")[0] != 0


def test_health_check_is_the_health_service(node: Container) -> None:
    """The engine's verdict comes from grpc.health.v1: not healthy until the node serves, then healthy, then gone."""

    def status() -> str:
        node.reload()
        return str(node.attrs["State"]["Health"]["Status"])

    assert status() == "starting"
    wait_until(lambda: status() == "healthy", "the container is healthy")
    log = node.attrs["State"]["Health"]["Log"]
    assert log[-1]["Output"].strip() == "SERVING"
    code, said, _ = execute(node, "fluxd", "health", "127.0.0.1:1")
    assert code == 1
    assert said.startswith("UNAVAILABLE")


def test_sigterm_ends_it_with_0_and_the_volume_keeps_the_records(node: Container) -> None:
    """PID 1 handles SIGTERM itself; what was acknowledged is there after the next start."""

    def run(*command: str) -> str:
        code, out, problems = execute(node, *command, FLUXCTL_BOOTSTRAP="127.0.0.1:9640")
        assert code == 0, problems
        return out

    run("fluxctl", "cluster", "wait")
    run("fluxctl", "topics", "create", "kept", "--replication-factor", "1")
    run("sh", "-c", "echo one | fluxctl produce kept")
    node.stop(timeout=15)
    assert wait_exit(node) == 0
    assert b'"event": "node_stopped"' in node.logs()
    node.start()
    run("fluxctl", "cluster", "wait")
    assert run("fluxctl", "consume", "kept", "--from-beginning", "--max-messages", "1") == "one\n"
