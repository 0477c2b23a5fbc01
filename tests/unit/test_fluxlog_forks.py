"""A child that is forked after gRPC was used is told so; one that is forked before may use the library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.unit.fluxlog_fake import FakeCluster

PROGRAM = """
import asyncio, os, signal, sys
import fluxlog
from fluxlog.sync import Admin, Producer

address = sys.argv[1]

def in_child(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # what hangs is ended
        try:
            work()
        except fluxlog.FluxlogError as failure:
            print(failure.reason, failure.outcome.name)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def write():
    with Producer(address) as producer:
        print(producer.send("t", b"x").offset)

def list_topics():
    with Admin(address) as admin:
        admin.list_topics()

async def write_on_a_loop():
    async with fluxlog.Producer(address) as producer:
        await producer.send("t", b"x")


in_child(write)
write()
in_child(write)
with Producer(address) as opened:
    in_child(lambda: opened.send("t", b"x"))
    in_child(write)
    in_child(list_topics)
    in_child(lambda: asyncio.run(write_on_a_loop()))
    in_child(lambda: opened.__exit__(None, None, None))
    in_child(lambda: in_child(write))
    print(opened.send("t", b"x").offset)
"""


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    fake.create("t", 1)
    yield fake
    fake.stop()


def test_what_is_called_in_a_forked_child_says_that_it_cannot_be(cluster: FakeCluster) -> None:
    """At once, whatever it is; the parent is not disturbed."""
    command = [sys.executable, "-c", PROGRAM, cluster.addresses[1]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["0", "1", *["FORKED REJECTED"] * 6, "2"]
