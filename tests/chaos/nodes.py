"""Node processes that are killed, paused, stopped and cut off their power."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from tests.chaos import power
from tests.chaos.network import Loopback, Namespaces

SECRET = "chaos-test-secret"
_STOP_SECONDS = 20.0
# What a node that is well never says, whatever happens around it: its files are whole, only unsynced bytes were lost.
_ALARMS = frozenset({"replica_unadmitted", "replica_failed", "node_gave_up", "snapshot_failed"})
# The transport library writes lines of its own when a connection ends.
_TRANSPORT_LINE = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d")


class State(Enum):
    """What was last done to a node."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"
    PAUSED = "paused"


class ChaosNode:
    """One node process on a filesystem that forgets. Used by one thread at a time, but for `watch`."""

    def __init__(self, root: Path, number: int, network: Loopback | Namespaces, seeds: str) -> None:
        self.number, self.address = number, network.addresses[number]
        self.data = root / f"data-{number}"
        self.log_path = root / f"node-{number}.log"
        self.log_path.touch()
        self.state = State.DOWN
        self._prefix, self._seeds = network.prefix(number), seeds
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process if it is down; `watch` notices when it serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUXD_")} | {
            "FLUXD_NODE_ID": str(self.number),
            "FLUXD_LISTEN": self.address,
            "FLUXD_SEEDS": self._seeds,
            "FLUXD_DATA_DIR": str(self.data),
            "FLUXD_CLUSTER_SECRET": SECRET,
            "FLUXD_LOG_FORMAT": "json",
        }
        with self._lock, self.log_path.open("ab") as log:
            if self.state is not State.DOWN:
                return
            self._log_from = self.log_path.stat().st_size
            command = [*self._prefix, sys.executable, "-m", "tests.chaos.node"]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            self.state = State.STARTING

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        with self._lock:
            self.state = State.DOWN
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def cut_power(self, rng: random.Random) -> power.Lost:
        """SIGKILL, and what was not synced is lost."""
        self.kill()
        return power.cut(self.data, rng)

    def stop(self) -> int:
        """SIGTERM; the exit code, 0 also where a process that had not begun to serve was ended by the signal."""
        with self._lock:
            serving, self.state = self.state is State.UP, State.DOWN
            assert self._process is not None
            self._process.terminate()
            try:
                code = self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                return -signal.SIGKILL
            return 0 if code == -signal.SIGTERM and not serving else code

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP, State.PAUSED)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT, State.STARTING)

    def _signal(self, number: int, state: State) -> None:
        with self._lock:
            assert self._process is not None
            self._process.send_signal(number)
            self.state = state

    def watch(self) -> str:
        """Notice that it serves; says what is wrong when it has ended by itself."""
        with self._lock:
            if self._process is None or self.state in (State.DOWN, State.PAUSED):
                return ""
            code = self._process.poll()
            if code is not None:
                self.state = State.DOWN
                return f"node {self.number} ended by itself with code {code}; see {self.log_path}"
            if self.state is State.STARTING and self._says_serving():
                self.state = State.UP
            return ""

    def _says_serving(self) -> bool:
        with self.log_path.open("rb") as log:
            log.seek(self._log_from)
            return b'"node_serving"' in log.read()

    def alarms(self) -> Iterator[str]:
        """What its log says that a node must never say."""
        events: list[tuple[str, dict[str, Any]]] = []
        for line in self.log_path.read_text().splitlines():
            event: dict[str, Any] = {}
            with contextlib.suppress(ValueError):
                event = json.loads(line)
            if not _TRANSPORT_LINE.match(line):
                events.append((line, event))
        removed = {event["directory"] for _, event in events if event.get("event") == "partition_removed"}
        for line, event in events:
            # A node that starts may not have read yet that a topic whose files it removed before is deleted.
            if event.get("event") == "replica_unadmitted" and event["group"] in removed:
                continue
            if not event or event.get("event") in _ALARMS or event.get("level") in ("error", "critical"):
                yield f"node {self.number}: {line[:600]}"


class Nodes:
    """All nodes, and a thread that watches them.

    Args:
        failures: gets a line for each node that ends by itself; it is started again.
    """

    def __init__(self, root: Path, count: int, network: Loopback | Namespaces, failures: list[str]) -> None:
        seeds = ",".join(f"{number}@{address}" for number, address in network.addresses.items())
        self.all = {number: ChaosNode(root, number, network, seeds) for number in range(1, count + 1)}
        self.network = network
        self.changes: list[tuple[float, frozenset[int], frozenset[tuple[int, int]]]] = []
        """Since when which nodes serve and which links are cut."""
        self._failures = failures
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        """Start all."""
        for node in self.all.values():
            node.start()
        self._watcher.start()

    def up(self) -> frozenset[int]:
        """Those that serve."""
        return frozenset(number for number, node in self.all.items() if node.state is State.UP)

    def close(self) -> None:
        """Kill what still runs."""
        self._over.set()
        for node in self.all.values():
            node.kill()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for node in self.all.values():
                trouble = node.watch()
                if trouble:
                    self._failures.append(trouble)
                    node.start()
            condition = self.up(), self.network.cut_links()
            if not self.changes or self.changes[-1][1:] != condition:
                self.changes.append((time.monotonic(), *condition))
