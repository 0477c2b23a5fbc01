"""A local cluster: real fluxd processes on loopback, and the file that remembers them.

DIR/cluster.json     node ids, addresses, process ids with their start times
DIR/cluster.lock     held by whoever changes that file
DIR/cluster.secret   what the nodes prove to each other (mode 0600)
DIR/node-N/          data directory of node N
DIR/logs/node-N.log  what it writes to stdout and stderr
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fluxctl.exits import CommandError
from fluxctl.process import ProcessIdentity, identify, is_running, send_signal, wait_gone

DATA_DIR_DEFAULT = Path("fluxd-data")
DATA_DIR_VARIABLE = "FLUXCTL_DATA_DIR"
BASE_PORT_DEFAULT = 9101
STOP_TIMEOUT = 15.0
_STATE_FILE = "cluster.json"
_SECRET_FILE = "cluster.secret"
_LOCK_FILE = "cluster.lock"
_HOST = "127.0.0.1"
_LOG_TAIL_BYTES = 4_000


def default_data_dir() -> Path:
    """$FLUXCTL_DATA_DIR, or ./fluxd-data."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or DATA_DIR_DEFAULT)


@dataclass(slots=True)
class LocalNode:
    """One node of a local cluster."""

    node_id: int
    address: str
    process: ProcessIdentity | None = None

    @property
    def running(self) -> bool:
        """Its process is alive."""
        return self.process is not None and is_running(self.process)

    @property
    def about(self) -> str:
        """What it is, for people."""
        return f"process {self.process.process_id}" if self.process is not None else "not started"


class LocalCluster:
    """The nodes of one state directory."""

    def __init__(self, directory: Path, nodes: dict[int, LocalNode]) -> None:
        self.directory = directory.absolute()
        self.nodes = nodes

    @classmethod
    def load(cls, directory: Path) -> LocalCluster | None:
        """What the state file says; None when there is none.

        Raises:
            CommandError: the file is not one of ours.
        """
        path = directory / _STATE_FILE
        try:
            state = json.loads(path.read_text())
            nodes = {}
            for node in state["nodes"]:
                process = node["process"] and ProcessIdentity(**node["process"])
                nodes[int(node["node_id"])] = LocalNode(int(node["node_id"]), str(node["address"]), process)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{path} is damaged: {error}", "remove it when no node of it runs") from error
        return cls(directory, nodes)

    @classmethod
    def create(cls, directory: Path, node_count: int, base_port: int | None) -> LocalCluster:
        """Lay out a new local cluster; starts nothing.

        Args:
            base_port: ports base_port, base_port + 1, …; None: 9101 and up if they are free, else any free ones.

        Raises:
            CommandError: a port that was asked for is in use.
        """
        first = base_port or BASE_PORT_DEFAULT
        ports = list(range(first, first + node_count))
        busy = [port for port in ports if not _is_free(port)]
        if busy and base_port is not None:
            raise CommandError(f"port {busy[0]} of {_HOST} is in use", "choose another --base-port")
        if busy:
            ports = free_ports(node_count)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "logs").mkdir(exist_ok=True)
        with _alone(directory):
            made = cls.load(directory)
            if made is not None:  # by somebody else, meanwhile
                return made
            secret = directory / _SECRET_FILE
            if not secret.exists():
                with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_hex(32) + "\n")
            nodes = {number: LocalNode(number, f"{_HOST}:{port}") for number, port in enumerate(ports, start=1)}
            cluster = cls(directory, nodes)
            cluster.save()
        return cluster

    @property
    def about(self) -> str:
        """What the nodes are, for people."""
        return f"each a process of its own with its own data directory in {self.directory}"

    @property
    def addresses(self) -> list[str]:
        """Of all nodes, running or not."""
        return [node.address for node in self.nodes.values()]

    @property
    def running(self) -> list[LocalNode]:
        """Nodes whose process is alive."""
        return [node for node in self.nodes.values() if node.running]

    def node(self, node_id: int) -> LocalNode:
        """One node.

        Raises:
            CommandError: there is none with this id.
        """
        if node_id not in self.nodes:
            known = ", ".join(map(str, self.nodes))
            raise CommandError(f"the local cluster in {self.directory} has no node {node_id}", f"it has {known}")
        return self.nodes[node_id]

    def log_path(self, node_id: int) -> Path:
        """Where a node's output goes."""
        return self.directory / "logs" / f"node-{node_id}.log"

    def save(self) -> None:
        """Write the state file; it is whole at any moment."""
        nodes = [
            {
                "node_id": node.node_id,
                "address": node.address,
                "process": node.process and {"process_id": node.process.process_id, "started": node.process.started},
            }
            for node in self.nodes.values()
        ]
        path = self.directory / _STATE_FILE
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"version": 1, "nodes": nodes}, indent=2) + "\n")
        fresh.replace(path)

    def start(self, node_id: int) -> bool:
        """Start a node's process, detached, and remember it; False when it runs already.

        Raises:
            CommandError: the process could not be started.
        """
        with _alone(self.directory):
            self._read_again()
            if not self.node(node_id).running:
                self._start(self.node(node_id))
                return True
        return False

    def _read_again(self) -> None:
        """Another command may have started nodes meanwhile: what is written is to name their processes, too."""
        now = LocalCluster.load(self.directory)
        for node_id, node in now.nodes.items() if now is not None else ():
            if node_id in self.nodes:
                self.nodes[node_id].process = node.process

    def _start(self, node: LocalNode) -> None:
        node_id = node.node_id
        seeds = ",".join(f"{other.node_id}@{other.address}" for other in self.nodes.values())
        command = [
            sys.executable, "-m", "fluxd", "serve",
            "--node-id", str(node_id),
            "--listen", node.address,
            "--advertise", node.address,
            "--seeds", seeds,
            "--data-dir", str(self.directory / f"node-{node_id}"),
            "--cluster-secret-file", str(self.directory / _SECRET_FILE),
            "--log-format", "json",
        ]  # fmt: skip
        with open(self.log_path(node_id), "ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        node.process = identify(child.pid)
        # The child is looked after by its identity from now on, also by processes that are not its parent.
        child.returncode = 0
        self.save()
        if node.process is None:
            raise CommandError(f"node {node_id} ended at once: {self.last_words(node_id)}")

    def kill(self, node_id: int, number: signal.Signals = signal.SIGKILL) -> bool:
        """Signal a node's process; False when it does not run."""
        process = self.node(node_id).process
        return process is not None and send_signal(process, number)

    def end(self, node_id: int) -> float | None:
        """SIGKILL a node; returns the moment of its death (monotonic), None when it did not run."""
        moment = time.monotonic()
        return moment if self.kill(node_id, signal.SIGKILL) else None

    def stop(self, node_ids: list[int], timeout: float = STOP_TIMEOUT) -> list[int]:
        """SIGTERM these nodes and wait for them; those that do not end in time are killed.

        Returns:
            The nodes that had to be killed.
        """
        asked = [node_id for node_id in node_ids if self.kill(node_id, signal.SIGTERM)]
        give_up_at = time.monotonic() + timeout
        killed = []
        for node_id in asked:
            process = self.nodes[node_id].process
            if process is not None and not wait_gone(process, max(0.1, give_up_at - time.monotonic())):
                send_signal(process, signal.SIGKILL)
                wait_gone(process, 5.0)
                killed.append(node_id)
        return killed

    def last_words(self, node_id: int) -> str:
        """Last line of a node's log, for the message that says why it ended."""
        try:
            with open(self.log_path(node_id), "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else f"nothing in {self.log_path(node_id)}"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One command at a time changes the state file."""
    with open(directory / _LOCK_FILE, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError):
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on at this moment."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((_HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
