"""The README's programs and the examples of use, run as they are written, against a real cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxlog.sync import Admin, Consumer, Producer
from tests.integration.cluster import Cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
_SECONDS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("examples")) as running:
        yield running


def python(*arguments: object, code: int = 0) -> str:
    """Run it; what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, timeout=_SECONDS, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert not done.stderr
    return done.stdout


def readme_program(cluster: Cluster, wanted: str) -> str:
    """A program of the README, to this cluster."""
    text = (ROOT / "README.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program: str = next(program for program in programs if wanted in program)
    return program.replace("127.0.0.1:9101", cluster.node(1).address)


def test_the_readmes_producer_and_consumer(cluster: Cluster) -> None:
    """Five lines each."""
    cluster.create_topic("orders")
    producer = readme_program(cluster, "fluxlog.Producer(")
    consumer = readme_program(cluster, "fluxlog.Consumer(")
    assert max(len(program.strip().splitlines()) for program in (producer, consumer)) == 5
    assert "offset=0" in python("-c", producer)
    with subprocess.Popen([sys.executable, "-u", "-c", consumer], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "0 b'customer-7' b'3 apples'\n"
        finally:
            process.kill()


def test_website_activity(cluster: Cluster) -> None:
    assert "counted as visited" in python("examples/website_activity.py", cluster.node(1).address)


def test_log_aggregation(cluster: Cluster, tmp_path: Path) -> None:
    for number in range(5):
        lines = "".join(f"{number} says {line}\n" for line in range(100 * number))
        (tmp_path / f"source-{number}.log").write_text(lines)
    assert "1000 lines of 5 sources shipped" in python("examples/log_aggregation.py", cluster.node(2).address, tmp_path)
    for number in range(1, 5):
        name = f"source-{number}.log"
        assert (tmp_path / "collected" / name).read_text() == (tmp_path / name).read_text()


def test_stream_processing_through_a_crash(cluster: Cluster) -> None:
    """What was handled since the last commit is repeated, nothing is skipped; a reader can tell."""
    program, address = "examples/stream_processing.py", cluster.node(3).address
    python(program, address, "--crash-after", 200, code=1)
    said = python(program, address)
    assert "each once and in order" in said
    repetitions = re.search(r"(\d+) of them repetitions", said)
    assert repetitions is not None
    assert 1 <= int(repetitions[1]) <= 200, "the one in hand at least"


def test_event_sourcing(cluster: Cluster) -> None:
    assert "as the events say: True" in python("examples/event_sourcing.py", cluster.node(1).address)


def test_commit_log(cluster: Cluster) -> None:
    assert python("examples/commit_log.py", cluster.node(1).address).endswith("equal\n")


def test_a_script_without_asyncio(cluster: Cluster) -> None:
    """fluxlog.sync: a producer, a consumer, a group member and an admin share one background thread."""
    address = cluster.node(1).address
    with Admin(address) as admin:
        admin.create_topic("script", partitions=2, wait_ms=10_000)
    with Producer(address) as producer, Consumer(address, "script", start="earliest") as consumer:
        placed = producer.send("script", b"one", key=b"k")
        assert producer.send_many("script", [b"two", b"three"], partition=placed.partition).record_count == 2
        values = []
        for record in consumer:
            values.append(record.value)
            if len(values) == 3:
                break
        assert values == [b"one", b"two", b"three"]
        consumer.seek("script", placed.partition, 1)
        assert next(iter(consumer)).value == b"two"
    with Consumer(address, "script", group="scripts", start="earliest") as member:
        assert next(iter(member)).value == b"one"
        member.commit()
    with Consumer(address, "script", start="earliest", stop_at_end=True) as finite:
        assert len(list(finite)) == 3
