"""Who has lost a leader is told the new one, on real nodes: counted by the requests that the nodes have handled."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from fluxlog.client import Client
from fluxlog.delivery import BatchResult
from fluxlog.errors import Outcome
from fluxlog.reader import Reader, iter_until
from fluxlog.sender import Sender
from fluxlog.sync import Consumer
from tests.integration.cluster import DEADLINE, Cluster, NodeProcess, produce_request, wait_until

pytestmark = pytest.mark.slow

PARTITIONS = 6
TOLD_WAIT_S = 0.2
"""Of one AwaitLeaders that is told nothing; those of readers are longer."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes that log every request."""
    made = Cluster(tmp_path)
    for node in made.nodes:
        node.extra = ["--log-level", "debug"]
    with made:
        yield made


class Handled:
    """Requests that nodes have handled since this was made, by method."""

    def __init__(self, nodes: Iterable[NodeProcess]) -> None:
        self._nodes = {node: node.log_path.stat().st_size for node in nodes}
        self._began = time.monotonic()

    def methods(self) -> Counter[str]:
        """So far; a stream counts when it has ended."""
        counted: Counter[str] = Counter()
        for node, position in self._nodes.items():
            with node.log_path.open() as log:
                log.seek(position)
                lines = [json.loads(line) for line in log if '"rpc_handled"' in line and line.endswith("\n")]
            counted.update(line["method"] for line in lines)
        return counted

    @property
    def awaited_max(self) -> int:
        """Calls of AwaitLeaders that one client can have made, one at a time: those that were told nothing waited."""
        return PARTITIONS + 3 + int((time.monotonic() - self._began) / TOLD_WAIT_S)


def test_a_sender_and_a_reader_ask_no_more_than_they_have_to(cluster: Cluster) -> None:
    """The leader of all partitions is killed. The sender waits with one call for all of them, and describes nothing;
    the reader goes on at another replica, and asks nobody for a leader.
    """
    results: list[BatchResult] = []
    cluster.create_topic("orders", partitions=PARTITIONS)
    leader = cluster.leader_of("orders", 0)
    led = [number for number in range(PARTITIONS) if cluster.leader_of("orders", number) == leader]
    others = cluster.others(leader)
    dead, *alive = [cluster.node(leader).address, *(node.address for node in others)]
    leaders = dict.fromkeys(led, dead)
    with Client([dead, *alive]) as client:
        sender = Sender(client, "orders", on_result=results.append, leaders=leaders)
        with Reader(client, "orders", dict.fromkeys(led, 0), leaders=leaders) as reader:
            for number in led:
                sender.send(number, [b"before"])
            assert sender.flush(DEADLINE)
            handled = Handled(others)
            cluster.node(leader).kill()
            for number in led:
                sender.send(number, [b"after"])
            assert sender.flush(DEADLINE)
            read: dict[int, list[bytes | None]] = {number: [] for number in led}
            for fetched in iter_until(reader, dict.fromkeys(led, 2), timeout=DEADLINE):
                for batch in fetched.batches():
                    read[fetched.partition] += batch.decode().values()
            methods, awaited_max = handled.methods(), handled.awaited_max
        sender.close()
    assert {result.outcome for result in results} == {Outcome.COMMITTED}
    assert read == {number: [b"before", b"after"] for number in led}
    assert 1 <= methods["Admin/AwaitLeaders"] <= awaited_max
    assert methods["Admin/DescribeTopics"] == 0
    assert methods["Admin/DescribeCluster"] <= len(alive) * 2, "each stream begins with one"
    wait_until(
        lambda: not any(thread.name.startswith(("sender", "produce")) for thread in threading.enumerate()),
        "its threads have ended",
    )


def test_readers_of_a_partition_without_any_replica_are_told_when_it_is_back(cluster: Cluster) -> None:
    """Its only node is killed and started again: both kinds of reader go on with what is written then, and ask no
    topic's description.
    """
    cluster.create_topic("orders", replication_factor=1)
    leader = cluster.node(cluster.leader_of("orders"))
    others = cluster.others(leader.node_id)
    addresses = [leader.address, *(node.address for node in others)]

    def write(value: bytes) -> None:
        request = produce_request("orders", value)
        wait_until(lambda: leader.log_stub.Produce(request, timeout=5), f"{value!r} is written")

    write(b"before")
    with (
        Consumer(addresses, "orders", start=0) as consumer,
        Client(addresses) as client,
        Reader(client, "orders", {0: 0}) as reader,
    ):
        records = iter(consumer)
        assert next(records).value == b"before"
        read = values_of(reader, 1)
        handled = Handled(others)
        leader.kill()
        wait_until(lambda: reader.poll(0.1) is None and handled.methods()["Admin/AwaitLeaders"], "both wait")
        leader.start()
        write(b"after")
        assert next(records).value == b"after"
        read += values_of(reader, 2)
        methods, awaited_max = handled.methods(), handled.awaited_max
    assert read == [b"before", b"after"]
    assert 1 <= methods["Admin/AwaitLeaders"] <= 2 * awaited_max
    assert methods["Admin/DescribeTopics"] == 0


def values_of(reader: Reader, end: int) -> list[bytes | None]:
    """Of partition 0 up to an offset (exclusive), which has just been written."""
    values: list[bytes | None] = []
    deadline = time.monotonic() + DEADLINE
    while reader.position(0) < end and time.monotonic() < deadline:
        fetched = reader.poll(DEADLINE)
        for batch in fetched.batches() if fetched is not None else ():
            values += batch.decode().values()
    return values
