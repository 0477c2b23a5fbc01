"""The demo's cluster, what it counts, and how it tells of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from fluxctl.demo_ledger import Ledger
from fluxctl.describe import print_topics
from fluxctl.exits import CommandError
from fluxctl.health import wait_healthy
from fluxctl.local import LocalCluster
from fluxlog.admin import Admin
from fluxlog.client import Client
from fluxlog.delivery import Retry

TEXT, PLAIN = "text", "plain"
"""The two topics."""
NODES = 3
HEALTHY_TIMEOUT = 60.0
ANSWER_TIMEOUT = 60.0
_SETTLE_TIMEOUT = 5.0


@dataclass(slots=True)
class Stage:
    console: Console
    cluster: LocalCluster
    client: Client
    admin: Admin
    lines: list[bytes]
    text: Ledger = field(default_factory=Ledger)
    plain: Ledger = field(default_factory=Ledger)
    probe_ledger: Ledger = field(default_factory=Ledger)
    retries: list[Retry] = field(default_factory=list)
    kills_ms: list[float] = field(default_factory=list)
    outage_ms: float = 0.0
    """From the second kill, which took the quorum away, to the next acknowledgement."""
    back_ms: float = 0.0
    """From the start of a node to that acknowledgement."""
    step: int = 0

    def tell(self, text: str) -> None:
        """A numbered step in one sentence."""
        self.step += 1
        self.console.print(Text.assemble("\n", (f"{self.step}.", "bold"), f" {text}"), soft_wrap=True)

    def show(self, text: str) -> None:
        """A result."""
        self.console.print(f"   {text}", soft_wrap=True)

    def describe(self, *names: str) -> None:
        """As `fluxctl topics describe` does."""
        print_topics(self.console, self.admin.describe_topics(names), why=True)

    def wait_in_sync(self, copies: int) -> None:
        """Until every partition of the replicated topic has a leader and so many replicas in sync; not for ever."""
        give_up_at = time.monotonic() + _SETTLE_TIMEOUT
        while time.monotonic() < give_up_at:
            partitions = self.admin.describe_topic(TEXT).partitions
            if all(len(partition.isr) >= copies and self._lives(partition.leader_node) for partition in partitions):
                return
            time.sleep(0.02)

    def _lives(self, node_id: int) -> bool:
        return node_id in self.cluster.nodes and self.cluster.nodes[node_id].running

    def leader_of_partition_0(self) -> int:
        """Node id; waits for one that lives."""
        give_up_at = time.monotonic() + ANSWER_TIMEOUT
        while True:
            leader = self.admin.describe_topic(TEXT).partitions[0].leader_node
            if self._lives(leader):
                return leader
            if time.monotonic() >= give_up_at:
                raise CommandError(f"partition 0 had no leader for {ANSWER_TIMEOUT:g} s")
            time.sleep(0.05)

    def kill(self, node_id: int) -> float:
        """SIGKILL a node; returns when (monotonic)."""
        moment = self.cluster.end(node_id)
        if moment is None:
            raise CommandError(f"node {node_id} had ended by itself", f"see {self.cluster.log_path(node_id)}")
        return moment

    def start(self, node_id: int) -> float:
        """Start a node again; returns when (monotonic)."""
        moment = time.monotonic()
        self.cluster.start(node_id)
        return moment

    def wait_healthy(self) -> None:
        """Until every node is up and every replica in sync."""
        problems = wait_healthy(
            self.admin, timeout=HEALTHY_TIMEOUT, nodes_expected=NODES, addresses=self.cluster.addresses
        )
        if problems:
            raise CommandError(f"not healthy after {HEALTHY_TIMEOUT:g} s: {'; '.join(problems)}")
