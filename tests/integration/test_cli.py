"""fluxctl as a user runs it: real processes, a real cluster on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TIMEOUT = 90.0


class Fluxctl:
    """The command, bound to one state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "FLUXCTL_DATA_DIR": str(directory)}
        self.environment.pop("FLUXCTL_BOOTSTRAP", None)
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "fluxctl", *arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._children.append(child)
        return child

    def end_children(self) -> None:
        """Those that a failed test left."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
            with child:
                pass
        self._children.clear()

    def __call__(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
        child = self.start(*arguments)
        out, err = child.communicate(stdin, timeout=TIMEOUT)
        assert child.returncode == code, (arguments, out.decode(), err.decode())
        return out.decode() if code == 0 else err.decode()

    def process_ids(self) -> dict[int, int]:
        state = json.loads((self.directory / "cluster.json").read_text())
        return {node["node_id"]: node["process"]["process_id"] for node in state["nodes"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fluxctl]:
    command = Fluxctl(tmp_path_factory.mktemp("cluster"))
    command("cluster", "up", "--nodes", "3")
    yield command
    command("cluster", "down")
    command.end_children()


@pytest.fixture
def fluxctl(shared: Fluxctl) -> Iterator[Fluxctl]:
    """The cluster of this module, all nodes up whatever the test before did."""
    shared("cluster", "up")
    yield shared
    shared.end_children()


def _topic(fluxctl: Fluxctl, name: str, partitions: int = 2) -> None:
    fluxctl("topics", "create", name, "--partitions", str(partitions), "--replication-factor", "3")


def test_up_twice_is_up_once(fluxctl: Fluxctl) -> None:
    before = fluxctl.process_ids()
    assert "already up" in fluxctl("cluster", "up")
    assert fluxctl.process_ids() == before
    assert "healthy" in fluxctl("cluster", "wait", "--nodes", "3")


def test_what_is_produced_from_stdin_is_consumed(fluxctl: Fluxctl) -> None:
    _topic(fluxctl, "lines", 3)
    lines = [b"line %d \xff" % number for number in range(20_000)]
    report = json.loads(fluxctl("produce", "lines", "--codec", "zstd", "-o", "json", stdin=b"\n".join(lines)))
    assert report["acknowledged"] == 20_000
    assert all(partition["copies_on_disk_min"] >= 2 for partition in report["partitions"])
    child = fluxctl.start("consume", "lines", "--from-beginning", "--exit-at-end")
    out, _ = child.communicate(timeout=TIMEOUT)
    assert sorted(out.splitlines()) == sorted(lines)
    described = json.loads(fluxctl("topics", "describe", "lines", "--output", "json"))[0]
    assert sum(partition["high_watermark"] for partition in described["partitions"]) == 20_000
    assert [len(partition["isr"]) for partition in described["partitions"]] == [3, 3, 3]


def test_a_killed_leader_costs_no_line_of_a_pipe(fluxctl: Fluxctl) -> None:
    """Lines go on through SIGKILL of the leader; every one is acknowledged, once and in order."""
    _topic(fluxctl, "pipe", 1)
    described = json.loads(fluxctl("topics", "describe", "pipe", "--output", "json"))[0]
    leader = described["partitions"][0]["leader_node"]
    child = fluxctl.start("produce", "pipe", "-o", "json")
    assert child.stdin is not None
    for number in range(100):
        if number == 50:
            assert "would lose the leader" in fluxctl("nodes", "kill", str(leader), "--dry-run")
            fluxctl("nodes", "kill", str(leader))
        child.stdin.write(b"".join(b"%d.%d\n" % (number, each) for each in range(100)))
        child.stdin.flush()
    out, err = child.communicate(timeout=TIMEOUT)
    assert child.returncode == 0, err.decode()
    assert json.loads(out)["acknowledged"] == 10_000
    expected = "".join(f"{number}.{each}\n" for number in range(100) for each in range(100))
    assert fluxctl("consume", "pipe", "--from-beginning", "--exit-at-end") == expected
    assert f"node {leader}: its node is down" in fluxctl("topics", "describe", "pipe", "--why")
    fluxctl("cluster", "health", code=10)
    fluxctl("nodes", "start", str(leader))
    fluxctl("cluster", "wait")


def test_without_a_quorum_writes_are_rejected_and_reads_go_on(fluxctl: Fluxctl) -> None:
    _topic(fluxctl, "quorum", 1)
    fluxctl("produce", "quorum", stdin=b"before\n")
    fluxctl("cluster", "wait")
    for node in ("1", "2"):
        fluxctl("nodes", "kill", node)
    _wait_noticed(fluxctl, "quorum")
    refused = fluxctl("produce", "quorum", "--timeout", "2", stdin=b"during\n", code=3)
    assert "(NO_QUORUM)" in refused
    assert "missing" in refused
    assert fluxctl("consume", "quorum", "--from-beginning", "-n", "1") == "before\n"
    fluxctl("nodes", "start", "1")
    fluxctl("produce", "quorum", stdin=b"after\n")
    assert fluxctl("consume", "quorum", "--from-beginning", "--exit-at-end") == "before\nafter\n"
    fluxctl("nodes", "start", "2")
    fluxctl("cluster", "wait")


def _wait_noticed(fluxctl: Fluxctl, topic: str) -> None:
    """Until the node that is left knows that it is alone: before that, a write's outcome is UNKNOWN."""
    give_up_at = time.monotonic() + TIMEOUT
    while time.monotonic() < give_up_at:
        partition = json.loads(fluxctl("topics", "describe", topic, "--output", "json"))[0]["partitions"][0]
        if partition["leader_node"] is None or "refused" in partition["why"]:
            return
    pytest.fail("the loss of the quorum was not noticed")


def test_stop_and_transfer(fluxctl: Fluxctl) -> None:
    """A stopped node hands over and ends with nobody's help; a topic goes on being led."""
    _topic(fluxctl, "moved", 3)
    fluxctl("nodes", "transfer", "1", "--topic", "moved")
    assert "the cluster has no node 9" in fluxctl("nodes", "transfer", "9", code=1)
    assert "has no partition 3" in fluxctl("nodes", "transfer", "1", "--topic", "moved", "--partition", "3", code=1)
    assert "give --topic" in fluxctl("nodes", "transfer", "1", "--partition", "0", code=2)
    described = json.loads(fluxctl("topics", "describe", "moved", "--output", "json"))[0]
    assert all(partition["leader_node"] for partition in described["partitions"])
    fluxctl("nodes", "stop", "3")
    assert "does not run" in fluxctl("nodes", "stop", "3", code=1)
    fluxctl("produce", "moved", stdin=b"a\nb\nc\n")
    fluxctl("nodes", "start", "3")
    fluxctl("cluster", "wait")


def test_ctrl_c_is_clean(fluxctl: Fluxctl) -> None:
    """consume ends with 130 and no noise; produce reports what it read before."""
    _topic(fluxctl, "interrupted", 1)
    producer = fluxctl.start("produce", "interrupted")
    consumer = fluxctl.start("consume", "interrupted", "--from-beginning")
    assert producer.stdin is not None
    assert consumer.stdout is not None
    producer.stdin.write(b"one\n")
    producer.stdin.flush()
    assert consumer.stdout.readline() == b"one\n"  # without the pipe's end: a slow pipe is not held back
    for child in (producer, consumer):
        child.send_signal(signal.SIGINT)
    out, _ = producer.communicate(timeout=TIMEOUT)
    assert producer.returncode == 130
    assert b"1 line, 1 acknowledged" in out
    _, err = consumer.communicate(timeout=TIMEOUT)
    assert (consumer.returncode, err) == (130, b"")


def test_a_group_goes_on_where_it_was(fluxctl: Fluxctl) -> None:
    """consume --group commits what it printed; Ctrl-C leaves the group."""
    fluxctl("topics", "create", "grouped", "--partitions", "1")
    fluxctl("produce", "grouped", stdin=b"one\ntwo\nthree\n")
    assert fluxctl("consume", "grouped", "--group", "readers", "-b", "-n", "2") == "one\ntwo\n"
    consumer = fluxctl.start("consume", "grouped", "--group", "readers")
    assert consumer.stdout is not None
    assert consumer.stdout.readline() == b"three\n"
    consumer.send_signal(signal.SIGINT)
    _, err = consumer.communicate(timeout=TIMEOUT)
    assert (consumer.returncode, err) == (130, b"assigned: grouped partitions 0\n")
    described = json.loads(fluxctl("groups", "describe", "readers", "--output", "json"))
    assert "'members': []" in str(described), "it has left"
    assert "--group" in fluxctl("consume", "grouped", "--group", "readers", "--partition", "0", code=2)


def test_records_are_deleted_on_demand(fluxctl: Fluxctl) -> None:
    """First only said, then done; what is read begins behind it; more than there is, is refused."""
    _topic(fluxctl, "expired", partitions=1)
    fluxctl("produce", "expired", stdin=b"".join(b"%d\n" % number for number in range(10)))
    said = fluxctl("topics", "delete-records", "expired", "--before", "7")
    assert "7 records would be deleted" in said
    assert json.loads(fluxctl("topics", "offsets", "expired", "--output", "json")) == [
        {"partition": 0, "log_start_offset": 0, "high_watermark": 10, "records": 10}
    ]
    assert "7 records deleted" in fluxctl("topics", "delete-records", "expired", "--before", "7", "--execute")
    (row,) = json.loads(fluxctl("topics", "offsets", "expired", "--output", "json"))
    assert (row["log_start_offset"], row["high_watermark"]) == (7, 10)
    assert fluxctl("consume", "expired", "--from-beginning", "--exit-at-end").split() == ["7", "8", "9"]
    assert "behind the end 10" in fluxctl("topics", "delete-records", "expired", "--before", "11", code=2)


def test_transfer_takes_along_what_the_cluster_needs_itself(fluxctl: Fluxctl) -> None:
    """Above all the controller."""
    controller = json.loads(fluxctl("cluster", "status", "-o", "json"))["controller_node"]
    assert f"__cluster_metadata-0: node {controller} -> node " in fluxctl("nodes", "transfer", str(controller))
    fluxctl("cluster", "wait")


def test_bench_says_what_it_measured(fluxctl: Fluxctl) -> None:
    fluxctl("topics", "create", "measured", "--partitions", "2")
    said = fluxctl("bench", "produce", "measured", "--num-records", "20000")
    assert "replication factor 3, acknowledged = fdatasync on a majority" in said
    assert "20,000 records sent" in said
    steady = ("bench", "produce", "measured", "--num-records", "200", "--throughput", "1000", "--output", "json")
    produced = json.loads(fluxctl(*steady))
    assert produced["records"] == 200
    assert 0 < produced["latency_ms"]["p50"] <= produced["latency_ms"]["p99.9"]
    consumed = json.loads(fluxctl("bench", "consume", "measured", "--output", "json"))
    assert (consumed["records"], consumed["latency_ms"]) == (20_200, None)
    assert "300 records sent and consumed" in fluxctl("bench", "e2e", "measured", "--num-records", "300")


def test_a_closed_pipe_is_quiet(fluxctl: Fluxctl) -> None:
    _topic(fluxctl, "closed", 1)
    fluxctl("produce", "closed", stdin=b"line\n" * 300_000)
    consumer = fluxctl.start("consume", "closed", "--from-beginning", "--exit-at-end")
    assert consumer.stdout is not None
    assert consumer.stdout.readline() == b"line\n"
    consumer.stdout.close()
    consumer.stdout = None
    _, err = consumer.communicate(timeout=TIMEOUT)
    assert (consumer.returncode, err) == (0, b"")


def test_the_demo_loses_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    demo = Fluxctl(directory)
    out = demo("demo", "failover", "--lines", "30000", "--kills", "2", "--data-dir", str(directory))
    last = out.strip().splitlines()[-1]
    assert "lost 0, duplicated 0, out of order 0" in last
    assert "NO_QUORUM" in out
    assert all(not _is_alive(process) for process in demo.process_ids().values())


def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    demo = Fluxctl(directory)
    child = demo.start("demo", "failover", "--data-dir", str(directory))
    assert child.stdout is not None
    for line in child.stdout:
        if b"healthy after" in line:
            break
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=TIMEOUT)
    assert child.returncode == 130
    assert all(not _is_alive(process) for process in demo.process_ids().values())


def _is_alive(process_id: int) -> bool:
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at:  # its new parent may take a moment to collect it
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return False
    return True
