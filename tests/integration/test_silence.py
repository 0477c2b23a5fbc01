"""A node falls silent: its process is stopped, its connections stay open, and nothing says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxlog import pipeline
from fluxlog.client import Client
from fluxlog.delivery import BatchResult
from fluxlog.errors import FluxlogError, Outcome
from fluxlog.sender import Sender
from fluxlog.v1 import log_pb2
from tests.integration.cluster import DEADLINE, Cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[tuple[Cluster, int, Client, Sender, list[BatchResult]]]:
    """A cluster whose leader has just been stopped, and a sender that was connected to it."""
    results: list[BatchResult] = []
    with Cluster(tmp_path) as cluster:
        cluster.create_topic("orders")
        leader = cluster.leader_of("orders")
        with Client([cluster.node(leader).address, *(node.address for node in cluster.others(leader))]) as client:
            acknowledged = threading.Event()

            def take(result: BatchResult) -> None:
                results.append(result)
                acknowledged.set()

            sender = Sender(client, "orders", on_result=take)
            sender.send(0, [b"before"])
            assert acknowledged.wait(DEADLINE)
            process = cluster.node(leader).process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP)
            try:
                yield cluster, leader, client, sender, results
            finally:
                os.kill(process.pid, signal.SIGCONT)
                sender.close()


def test_a_silent_leader_is_left_without_waiting_for_an_answer(
    silent: tuple[Cluster, int, Client, Sender, list[BatchResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection notices, although the sender would wait for its answer for ever."""
    _, _, _, sender, results = silent
    monkeypatch.setattr(pipeline, "ATTEMPT_TIMEOUT", float("inf"))
    sender.send(0, [b"after"])
    assert sender.flush(DEADLINE)
    assert [result.outcome for result in results] == [Outcome.COMMITTED] * 2


def test_a_call_to_a_silent_node_fails_before_its_own_time_is_up(
    silent: tuple[Cluster, int, Client, Sender, list[BatchResult]],
) -> None:
    """What was asked may have been done: UNKNOWN, and retriable."""
    cluster, leader, client, _, _ = silent
    request = log_pb2.FetchRequest(topic="orders", partition=0, offset=0)
    began = time.monotonic()
    with pytest.raises(FluxlogError) as failure:
        client.call_node(cluster.node(leader).address, lambda node: node.log.Fetch, request, timeout=10 * DEADLINE)
    assert time.monotonic() - began < DEADLINE
    assert (failure.value.outcome, failure.value.retriable) == (Outcome.UNKNOWN, True)
