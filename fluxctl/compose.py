"""The demo's cluster as containers: the nodes of deploy/docker-compose.yml as a project of their own.

Drives the command lines of Docker and of Compose (`docker compose`, or docker-compose 1.29), since whoever has an
engine has them.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fluxctl.exits import CommandError
from fluxctl.local import STOP_TIMEOUT, LocalCluster, LocalNode, free_ports

COMPOSE_FILE_DEFAULT = Path("deploy/docker-compose.yml")
_HOST = "127.0.0.1"
_COMMAND_TIMEOUT = 120.0
_PROJECT_LABEL = "com.docker.compose.project"
_SERVICE_LABEL = "com.docker.compose.service"


@dataclass(slots=True)
class ComposeNode(LocalNode):
    """One container."""

    container: str = ""
    """Its id; empty until it was made."""

    @property
    def running(self) -> bool:
        """Its process is alive."""
        if not self.container:
            return False
        return docker("inspect", "--format", "{{.State.Running}}", self.container, check=False) == "true"

    @property
    def about(self) -> str:
        """What it is, for people."""
        return f"container {self.container[:12]}"


class ComposeCluster(LocalCluster):
    """Three containers, their network and volumes; all of it is removed by `stop`.

    Args:
        directory: takes the nodes' logs in the end.
        file: a docker-compose.yml with the services node1, node2, ….
        addresses: by node id, as published.
    """

    def __init__(self, directory: Path, file: Path, addresses: Mapping[int, str]) -> None:
        self._containers = {node_id: ComposeNode(node_id, address) for node_id, address in addresses.items()}
        super().__init__(directory, dict(self._containers))
        self._project = f"fluxd-demo-{os.getpid()}"
        self._compose = [*compose_command(), "-p", self._project, "-f", str(file)]
        ports = {f"FLUXD_PORT_{node_id}": address.rpartition(":")[2] for node_id, address in addresses.items()}
        self._environment = os.environ | ports | {"FLUXD_CLUSTER_SECRET": secrets.token_hex(32)}

    @classmethod
    def lay_out(cls, directory: Path, file: Path, node_count: int) -> ComposeCluster:
        """On free ports; starts nothing.

        Raises:
            CommandError: there is no such file, or no Docker.
        """
        if not file.is_file():
            raise CommandError(
                f"there is no {file}", "run it in a checkout of fluxd, or name the file with --compose-file"
            )
        docker("version", "--format", "{{.Server.Version}}")
        ports = enumerate(free_ports(node_count), start=1)
        return cls(directory, file, {node_id: f"{_HOST}:{port}" for node_id, port in ports})

    @property
    def about(self) -> str:
        """What the nodes are, for people."""
        return f"each a container of its own with its own volume, in the Compose project {self._project}"

    def start(self, node_id: int) -> bool:
        """Start a node's container, the first time all of them; False when it runs already.

        Raises:
            CommandError: it could not be started.
        """
        node = self._containers[node_id]
        if not node.container:
            _run([*self._compose, "up", "-d", "--no-build"], self._environment)
            for each in self._containers.values():
                each.container = self._find(each.node_id)
            return True
        if node.running:
            return False
        docker("start", node.container)
        return True

    def kill(self, node_id: int, number: signal.Signals = signal.SIGKILL) -> bool:
        """Signal a node's process; False when it does not run."""
        node = self._containers[node_id]
        if not node.running:
            return False
        docker("kill", "--signal", number.name, node.container)
        return True

    def end(self, node_id: int) -> float | None:
        """SIGKILL a node; returns the moment of its death (monotonic), None when it did not run.

        The engine takes a while for both the kill and the answer, so it is asked when the process ended.
        """
        if not self.kill(node_id, signal.SIGKILL):
            return None
        container = self._containers[node_id].container
        docker("wait", container)
        ended = parse_time(docker("inspect", "--format", "{{.State.FinishedAt}}", container))
        return time.monotonic() - (time.time() - ended)

    def stop(self, node_ids: list[int], timeout: float = STOP_TIMEOUT) -> list[int]:
        """Keep the logs, then stop and remove everything that was made."""
        for node in self._containers.values():
            if node.container:
                path = self.log_path(node.node_id)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(docker("logs", node.container, check=False))
        down = [*self._compose, "down", "--volumes", "--remove-orphans", "--timeout", f"{timeout:.0f}"]
        _run(down, self._environment)
        return []

    def save(self) -> None:
        """Nothing to remember: the cluster does not outlive the demo."""

    def last_words(self, node_id: int) -> str:
        """Last line of a node's log, for the message that says why it ended."""
        container = self._containers[node_id].container
        return docker("logs", "--tail", "1", container, check=False) or "nothing in its log"

    def _find(self, node_id: int) -> str:
        """The container of a service. Names differ between versions of Compose; labels do not."""
        labels = [f"label={_PROJECT_LABEL}={self._project}", f"label={_SERVICE_LABEL}=node{node_id}"]
        filters = [part for label in labels for part in ("--filter", label)]
        found = docker("ps", "--all", "--quiet", "--no-trunc", *filters)
        if not found:
            raise CommandError(f"Compose made no container for node{node_id}")
        return found.splitlines()[0]


def compose_command() -> list[str]:
    """`docker compose` where it is there, else `docker-compose`.

    Raises:
        CommandError: neither is.
    """
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            _run([*command, "version"], os.environ)
        except CommandError:
            continue
        return command
    raise CommandError("neither `docker compose` nor docker-compose works here", "install Docker Compose")


def docker(*arguments: str, check: bool = True) -> str:
    """Output of a docker command, stripped.

    Args:
        check: a failure is an error; otherwise its output is what counts.

    Raises:
        CommandError: no docker, no engine, a failure, or no end within two minutes.
    """
    return _run(["docker", *arguments], os.environ, check=check)


def parse_time(text: str) -> float:
    """Seconds since the epoch of the engine's "2026-01-31T12:00:00.123456789Z"."""
    return datetime.fromisoformat(f"{text.rstrip('Z')[:26]}+00:00").timestamp()


def _run(command: Sequence[str], environment: Mapping[str, str], *, check: bool = True) -> str:
    shown = " ".join(command[:4])
    try:
        ended = subprocess.run(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=_COMMAND_TIMEOUT, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandError(
            f"{command[0]} is not installed", "the demo runs without it when --compose is left out"
        ) from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"`{shown} …` did not end within {_COMMAND_TIMEOUT:g} s") from None
    if check and ended.returncode:
        last = ended.stdout.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
        raise CommandError(f"`{shown} …` failed: {last[0]}", "is the image there (make docker-image)?")
    return ended.stdout.strip()
