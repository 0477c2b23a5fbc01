"""`fluxd health` says what the gRPC health service of a real node says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fluxd import health
from tests.integration.cluster import Cluster, free_ports, wait_until

pytestmark = pytest.mark.slow


def test_serving(tmp_path: Path) -> None:
    """A node that serves: SERVING and exit code 0, through the command and through the module that containers run."""
    with Cluster(tmp_path, 1) as cluster:
        address = cluster.node(1).address
        for command in (["fluxd", "health", address], ["fluxd.health", address]):
            said = subprocess.run(
                [sys.executable, "-m", *command], capture_output=True, text=True, timeout=30, check=False
            )
            assert (said.returncode, said.stdout) == (0, "SERVING\n")


def test_not_serving(tmp_path: Path) -> None:
    """A node that waits for its cluster answers, and is not serving; no node at all is another answer."""
    cluster = Cluster(tmp_path, 3)
    waiting = cluster.node(1)
    waiting.start()
    try:
        wait_until(lambda: health.check(waiting.address) == "NOT_SERVING", "the node answers")
        port = waiting.address.rpartition(":")[2]
        assert health.run(f"0.0.0.0:{port}") == 1
    finally:
        waiting.kill()
    assert health.check(f"127.0.0.1:{free_ports(1)[0]}").startswith("UNAVAILABLE: ")
