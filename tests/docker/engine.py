"""The engine that the tests run on, the images they make there, and the sweeping up of what a broken run left."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar, cast

import docker
from docker.errors import DockerException, NotFound
from docker.models.containers import Container

from fluxctl.compose import compose_command
from fluxctl.compose import docker as ask_docker
from fluxctl.exits import CommandError
from tests.integration.cluster import wait_until as wait_on_processes

T = TypeVar("T")

DEADLINE = 90.0
REPOSITORY = Path(__file__).parents[2]
COMPOSE_FILE = REPOSITORY / "deploy" / "docker-compose.yml"
IMAGE, NEWER_IMAGE = "fluxd:test", "fluxd:test-newer"
NEWER_VERSION = "9.9.9"
PROJECT = "fluxd-test"
"""Begins the names of all Compose projects of these tests."""
PROJECT_LABEL, SERVICE_LABEL = "com.docker.compose.project", "com.docker.compose.service"
_TESTCONTAINERS_LABEL = "org.testcontainers"
_BUILD_TIMEOUT = 400.0
_CALL_TIMEOUT = 60


class Removable(Protocol):
    """A network or a volume."""

    def remove(self) -> None:
        """From the engine."""


def wait_until(condition: Callable[[], T | None], what: str) -> T:
    """Ask until the answer is true. Containers start slowly where others want the machine too."""
    return wait_on_processes(condition, what, DEADLINE)


def connect() -> docker.DockerClient:
    """The engine of this machine.

    Raises:
        RuntimeError: why these tests cannot run here.
    """
    try:
        ask_docker("version", "--format", "{{.Server.Version}}")
        compose_command()
        return docker.from_env(timeout=_CALL_TIMEOUT)
    except (DockerException, CommandError) as error:
        raise RuntimeError(f"no Docker engine with Compose: {error}") from error


def build_image() -> None:
    """As `make docker-image` does."""
    command = ["deploy/build-image", IMAGE]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=_BUILD_TIMEOUT, check=False)
    assert built.returncode == 0, (built.stdout + built.stderr)[-4000:]


def build_newer_image(engine: docker.DockerClient) -> None:
    """The same image, saying that it is of a later version."""
    edit = rf"sed -i 's/^Version: .*/Version: {NEWER_VERSION}/' /opt/fluxd/lib/python3*/site-packages/fluxd-*/METADATA"
    dockerfile = f"FROM {IMAGE}\nUSER root\nRUN {edit}\nUSER 10001:10001\n"
    engine.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=NEWER_IMAGE, rm=True, forcerm=True)


def execute(container: Container, *command: str, **environment: str) -> tuple[int, str, str]:
    """Run a command inside; exit code, what it wrote to stdout, what to stderr."""
    done = container.exec_run(list(command), environment=environment, demux=True)
    out, problems = cast(tuple[bytes | None, bytes | None], done.output)
    return int(done.exit_code or 0), (out or b"").decode(), (problems or b"").decode()


def wait_exit(container: Container) -> int:
    """Exit code of a container that was stopped or ends by itself."""
    return int(container.wait(timeout=_CALL_TIMEOUT)["StatusCode"])


def sweep(engine: docker.DockerClient) -> None:
    """Remove what an earlier run of these tests left when it was killed."""
    for container in engine.containers.list(all=True, ignore_removed=True):
        labels = container.labels
        if labels.get(PROJECT_LABEL, "").startswith(PROJECT) or _TESTCONTAINERS_LABEL in labels:
            container.remove(force=True, v=True)
    _remove(one for one in engine.networks.list() if one.name is not None and one.name.startswith(f"{PROJECT}-"))
    _remove(one for one in engine.volumes.list() if one.name is not None and one.name.startswith(f"{PROJECT}-"))


def _remove(things: Iterable[Removable]) -> None:
    for thing in things:
        try:
            thing.remove()
        except NotFound:
            continue
