"""One flipped bit on the disk of a node: readers never get what it made, the cluster says where it is, and heals by
itself; nothing that was acknowledged is lost. On real processes and real disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fluxd.storage.filesystem import TEMPORARY_SUFFIX
from fluxlog.v1 import admin_pb2
from tests.integration.cluster import Cluster, NodeProcess, fetch_values, produce_request, wait_until

pytestmark = pytest.mark.slow

HEALING = 60.0
"""Seconds in which a replica is in sync again, on a machine that is busy with other tests."""


class Scene:
    """A cluster with a topic in small segments, and all values that were acknowledged."""

    def __init__(self, root: Path, *, scrub_interval_s: float = 0.5, replicas: int = 3) -> None:
        self.cluster = Cluster(root)
        self._replicas = replicas
        for node in self.cluster.nodes:
            node.environment["FLUXD_SCRUB_INTERVAL"] = str(scrub_interval_s)
        self.values: list[bytes] = []
        self._producer_id = os.urandom(16)

    def __enter__(self) -> Scene:
        self.cluster.__enter__()
        request = admin_pb2.CreateTopicRequest(
            name="orders", partitions=1, replication_factor=self._replicas, configs={"segment.bytes": "65536"},
            wait_ms=10_000,
        )  # fmt: skip
        assert self.cluster.node(1).admin.CreateTopic(request, timeout=20).all_leaders_elected
        self.write(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.__exit__()

    def write(self, batches: int) -> None:
        """Batches of 8 KB, each sent again until it is acknowledged."""
        for _ in range(batches):
            first = len(self.values)
            values = [b"%d:" % number + os.urandom(2_000) for number in range(first, first + 4)]
            request = produce_request(
                "orders", *values, producer_id=self._producer_id, base_sequence=first, timeout_ms=5_000
            )

            def attempt(request: Any = request, first: int = first) -> bool:
                node = next(node for node in self.cluster.nodes[first % 3 :] + self.cluster.nodes if node.running)
                assert node.log_stub.Produce(request, timeout=6).base_offset == first
                return True

            wait_until(attempt, f"records {first}… are acknowledged")
            self.values += values

    def directory(self, node: NodeProcess) -> Path:
        """Of the node's replica."""
        topic = node_description(self.running).topic_id.hex()
        return node.data_dir / "partitions" / f"{topic}-0"

    @property
    def running(self) -> NodeProcess:
        """Some node that answers."""
        return next(node for node in self.cluster.nodes if node.running)

    def flip(self, node: NodeProcess) -> Path:
        """Flip a bit in the middle of a closed segment; returns the file."""
        path = sorted(self.directory(node).glob("*.seg"))[1]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        with path.open("r+b") as file:
            file.seek(len(data) // 2)
            file.write(data[len(data) // 2 : len(data) // 2 + 1])
        return path

    def quarantined(self, node: NodeProcess) -> list[Path]:
        """What was set aside on a node."""
        return sorted((node.data_dir / "quarantine").glob("*-0.*"))

    def healed(self) -> bool:
        """All replicas are in sync, and nothing is wrong with any."""
        found = node_description(self.running).partitions[0]
        return len(found.isr) == 3 and not found.why

    def serves_all(self, node: NodeProcess) -> bool:
        """What a node serves is what was acknowledged, byte for byte."""
        return fetch_values(node, "orders") == self.values

    def check(self) -> None:
        """Every node serves every acknowledged value, and the replicas are the same."""
        wait_until(self.healed, "all replicas are in sync", HEALING)
        for node in self.cluster.nodes:
            wait_until(partial(self.serves_all, node), f"node {node.node_id} serves all")
        assert verify(self.running, "--deep") == (0, ["agrees", "agrees", "agrees"])


def node_description(node: NodeProcess) -> admin_pb2.TopicDescription:
    request = admin_pb2.DescribeTopicsRequest(names=["orders"])
    return node.admin.DescribeTopics(request, timeout=5).topics[0]


def fluxctl(node: NodeProcess, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "fluxctl", *arguments, "--bootstrap", node.address],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout


def verify(node: NodeProcess, *options: str) -> tuple[int, list[str]]:
    """`fluxctl topics verify`: exit code, and the verdicts in order of nodes."""
    code, out = fluxctl(node, "topics", "verify", "orders", "--output", "json", *options)
    return code, [row["verdict"] for row in sorted(json.loads(out), key=lambda row: row["node_id"])]


def told(node: NodeProcess) -> str:
    """The line of `fluxctl topics describe --why` that tells of damage; empty: there is none."""
    code, out = fluxctl(node, "topics", "describe", "orders", "--why")
    assert code == 0
    return next((line for line in out.splitlines() if "its log is damaged" in line), "")


@pytest.mark.parametrize("place", ["follower", "leader"])
def test_a_bit_flips_while_the_node_runs(tmp_path: Path, place: str) -> None:
    """The scrub finds it; the replica leaves (the leader hands over first), is copied and counts again, while records
    are written and read."""
    with Scene(tmp_path) as scene:
        cluster = scene.cluster
        assert verify(cluster.node(2)) == (0, ["agrees", "agrees", "agrees"])
        leader = cluster.leader_of("orders")
        node = cluster.node(leader if place == "leader" else leader % 3 + 1)
        path = scene.flip(node)
        writes = 0
        while not scene.quarantined(node):
            scene.write(1)
            writes += 1
            assert writes < 5_000
        assert f'"why": "partitions/{path.parent.name}/{path.name}: position ' in node.log_text
        scene.write(5)
        scene.check()
        assert cluster.leader_of("orders") in (1, 2, 3)
        assert "replica_failed" not in node.log_text


def test_a_bit_flips_while_the_node_is_stopped(tmp_path: Path) -> None:
    """And while another one is down for good measure: the damaged replica takes part until it can be spared, and
    `describe --why` says what is wrong with it."""
    with Scene(tmp_path) as scene:
        cluster = scene.cluster
        node, missing = cluster.node(2), cluster.node(3)
        node.kill()
        missing.kill()
        path = scene.flip(node)
        node.start()
        cluster.wait_ready([cluster.node(1), node])

        why = wait_until(lambda: told(cluster.node(1)), "the damage is told", HEALING)
        assert f"node 2: its log is damaged: partitions/{path.parent.name}/{path.name}: position " in why
        scene.write(5)
        assert not scene.quarantined(node)
        assert verify(cluster.node(1), "--deep") == (11, ["agrees", "damaged", "unavailable"])
        missing.start()
        wait_until(lambda: scene.quarantined(node), "the damaged replica leaves", HEALING)
        scene.write(5)
        scene.check()


def test_a_file_that_is_put_right_again(tmp_path: Path) -> None:
    """There is no other replica to copy from, but somebody had the bytes: `topics verify` sees that they are back."""
    with Scene(tmp_path, scrub_interval_s=0, replicas=1) as scene:
        cluster = scene.cluster
        node = cluster.node(cluster.leader_of("orders"))
        path = scene.flip(node)
        assert verify(node, "--deep") == (11, ["damaged"])
        wait_until(lambda: told(cluster.node(1)), "the damage is told")
        assert path.name in told(cluster.node(1))
        assert scene.flip(node) == path
        assert verify(node, "--deep") == (0, ["agrees"])
        wait_until(lambda: not told(cluster.node(1)), "it is told no more")
        assert scene.serves_all(node)


def test_a_reader_meets_the_damage_first(tmp_path: Path) -> None:
    """Without a scrub: what is damaged is not served, the replica heals, and the reader gets everything in the end."""
    with Scene(tmp_path, scrub_interval_s=0) as scene:
        cluster = scene.cluster
        node = cluster.node(2)
        node.kill()
        path = scene.flip(node)
        node.start()  # nothing of its log is in memory now
        cluster.wait_ready()
        wait_until(scene.healed, "it takes part", HEALING)
        assert verify(cluster.node(1)) == (0, ["agrees", "agrees", "agrees"])
        assert path.exists()

        def read() -> bool:
            values = fetch_values(node, "orders")
            assert values == scene.values[: len(values)]
            return len(values) == len(scene.values)

        wait_until(read, "the reader has everything", HEALING)
        wait_until(lambda: scene.quarantined(node), "the damaged replica leaves", HEALING)
        assert '"event": "log_damaged"' in node.log_text
        scene.check()


@pytest.mark.parametrize("name", ["votes", "meta.json"])
def test_a_damaged_file_of_a_node_is_told_until_it_is_mended(tmp_path: Path, name: str) -> None:
    """Something is in the way of the new file: every node says so in every place; with that gone, all is well."""
    with Scene(tmp_path) as scene:
        cluster = scene.cluster
        other, node = cluster.node(1), cluster.node(2)
        in_the_way = node.data_dir / f"{name}{TEMPORARY_SUFFIX}"
        in_the_way.mkdir()
        path = node.data_dir / name
        with path.open("r+b") as file:
            file.write(bytes([path.read_bytes()[0] ^ 0x10]))
        said = f"damaged, and being written anew: {name}: position 0: "

        def told(*command: str) -> bool:
            return said in fluxctl(other, *command)[1]

        for command in (["nodes", "list"], ["cluster", "health"], ["topics", "describe", "orders", "--why"]):
            wait_until(partial(told, *command, "--output", "json"), f"{command} tells it", HEALING)
        scene.write(2)
        in_the_way.rmdir()
        wait_until(lambda: not told("nodes", "list", "--output", "json"), "it is mended", HEALING)
        assert '"event": "file_mended"' in node.log_text
        scene.check()
