"""The cluster of deploy/docker-compose.yml as a project of its own, and what can be done to its containers."""

from __future__ import annotations

import os
import subprocess
import time
from functools import partial
from types import TracebackType
from typing import Self

import docker
from docker.models.containers import Container
from docker.models.networks import Network

from fluxctl.compose import compose_command
from fluxctl.health import wait_healthy
from fluxctl.local import free_ports
from fluxlog.admin import Admin
from fluxlog.client import Client
from fluxlog.v1 import admin_pb2
from tests.docker.engine import COMPOSE_FILE, DEADLINE, PROJECT_LABEL, SERVICE_LABEL, wait_exit, wait_until

NODES = (1, 2, 3)
_SECRET = "container-test-secret"
_COMMAND_TIMEOUT = 120.0
_STOP_TIMEOUT = 15


class ComposeProject:
    """Three nodes in containers. Use as a context manager: leaving it removes all that was made."""

    def __init__(self, engine: docker.DockerClient, name: str, image: str) -> None:
        self._engine, self.name, self._image = engine, name, image
        self.addresses = {node: f"127.0.0.1:{port}" for node, port in zip(NODES, free_ports(len(NODES)), strict=True)}
        self.healthy_after_s = 0.0
        self.client = Client(list(self.addresses.values()))
        self.admin = Admin(self.client)

    def __enter__(self) -> Self:
        self.down()
        began = time.monotonic()
        try:
            self.up(*NODES)
            self.wait_healthy()
        except BaseException:
            print(self.logs())
            self.__exit__(None, None, None)
            raise
        self.healthy_after_s = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.down()

    # ---- as a person does, by the command line

    def compose(self, *arguments: str, image: str = "") -> str:
        """Output of a Compose command on this project."""
        ports = {f"FLUXD_PORT_{node}": address.rpartition(":")[2] for node, address in self.addresses.items()}
        environment = os.environ | ports | {"FLUXD_CLUSTER_SECRET": _SECRET, "FLUXD_IMAGE": image or self._image}
        command = [*compose_command(), "-p", self.name, "-f", str(COMPOSE_FILE), *arguments]
        ended = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=_COMMAND_TIMEOUT, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout[-4000:]
        return ended.stdout

    def up(self, *nodes: int, image: str = "") -> None:
        """Make and start containers; those of another image are replaced by ones of this one."""
        self.compose("up", "-d", "--no-build", "--no-deps", *(f"node{node}" for node in nodes), image=image)

    def down(self) -> None:
        """Remove containers, network and volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "2")

    def logs(self) -> str:
        """The end of every node's log."""
        return self.compose("logs", "--no-color", "--tail", "30")

    # ---- what happens to containers

    def container(self, node: int) -> Container:
        """A node's container as it is now."""
        labels = [f"{PROJECT_LABEL}={self.name}", f"{SERVICE_LABEL}=node{node}"]
        found: list[Container] = self._engine.containers.list(all=True, filters={"label": labels})
        assert len(found) == 1, f"{len(found)} containers of node {node}"
        return found[0]

    def kill(self, *nodes: int) -> None:
        """SIGKILL."""
        for container in [self.container(node) for node in nodes]:
            container.kill()

    def start(self, *nodes: int) -> None:
        """What was killed or stopped."""
        for node in nodes:
            self.container(node).start()

    def stop(self, node: int) -> int:
        """As `docker stop` does; the exit code."""
        container = self.container(node)
        container.stop(timeout=_STOP_TIMEOUT)
        return wait_exit(container)

    def disconnect(self, node: int) -> None:
        """Cut a node off its network: from the others, and from the host, since its published port goes too."""
        self._network().disconnect(self.container(node))

    def connect(self, node: int) -> None:
        """Join it again under its name."""
        self._network().connect(self.container(node), aliases=[f"node{node}"])

    def lose_disk(self, node: int) -> None:
        """Remove container and volume; nothing is started."""
        container = self.container(node)
        container.kill()
        container.remove()
        self._engine.volumes.get(f"{self.name}_data{node}").remove()

    def _network(self) -> Network:
        return self._engine.networks.get(f"{self.name}_cluster")

    # ---- what should become true

    def wait_healthy(self) -> None:
        """Until the engine calls every container healthy, and every node says that all is well."""
        for node in NODES:
            wait_until(partial(self.engine_says_healthy, node), f"node {node} is healthy")
        problems = wait_healthy(
            self.admin, timeout=DEADLINE, nodes_expected=len(NODES), addresses=list(self.addresses.values())
        )
        assert not problems, problems

    def engine_says_healthy(self, node: int) -> bool:
        """By the image's health check."""
        return bool(self.container(node).attrs["State"].get("Health", {}).get("Status") == "healthy")

    def leader_of(self, topic: str, partition: int = 0) -> int:
        """Node id, once a leader is known."""
        return wait_until(
            lambda: self.admin.describe_topic(topic).partitions[partition].leader_node, f"{topic} has a leader"
        )

    def version_of(self, node: int) -> str:
        """What it says that it is."""
        return next(one.version for one in self.admin.describe_cluster().nodes if one.node_id == node)

    def describe(self, topic: str, partition: int = 0) -> admin_pb2.PartitionDescription:
        """As any node sees it."""
        return self.admin.describe_topic(topic).partitions[partition]
