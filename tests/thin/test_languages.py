"""The thin programs of examples/thin, each against a real cluster: a producer and group consumers with stubs alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, fetch_values, wait_until
from tests.integration.members import committed
from tests.thin.toolchains import BUILDERS, EXAMPLES, MissingToolchain

pytestmark = pytest.mark.slow
PARTITIONS, COUNT = 3, 60
LANGUAGES = sorted(BUILDERS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("thin")) as running:
        yield running


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Builds a language's program once; without its toolchain the test is skipped, unless all are required."""
    built: dict[str, list[str]] = {}

    def build(language: str) -> list[str]:
        if language not in built:
            try:
                built[language] = BUILDERS[language](tmp_path_factory.mktemp(language))
            except MissingToolchain as missing:
                if os.environ.get("REQUIRE_TOOLCHAINS"):
                    raise
                pytest.skip(str(missing))
        return built[language]

    return build


def run(program: list[str], cluster: Cluster, *arguments: str) -> list[str]:
    addresses = ",".join(node.address for node in cluster.nodes)
    done = subprocess.run([*program, addresses, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_program_produces_and_consumes(language: str, cluster: Cluster, command: Callable[[str], list[str]]) -> None:
    """All that it produced is there once, in order; it consumes all of it, and what it acknowledged is committed."""
    program, topic = command(language), f"thin-{language}"
    cluster.create_topic(topic, partitions=PARTITIONS)
    run(program, cluster, "produce", topic, str(PARTITIONS), str(COUNT))
    for partition in range(PARTITIONS):
        values = [f"{language}-{number}".encode() for number in range(partition, COUNT, PARTITIONS)]
        assert fetch_values(cluster.node(1), topic, partition) == values
    lines = run(program, cluster, "consume", topic, f"group-{language}", str(COUNT))
    assert sorted(lines) == sorted(
        f"{number % PARTITIONS} {number // PARTITIONS} {language}-{number}" for number in range(COUNT)
    )
    wanted = {(topic, partition): COUNT // PARTITIONS for partition in range(PARTITIONS)}
    assert committed(cluster.node(2), f"group-{language}") == wanted


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_programs_are_short(language: str) -> None:
    """Each under 100 lines."""
    (source,) = [
        path for path in (EXAMPLES / language).rglob("*") if path.is_file() and path.stem.lower() in ("thin", "main")
    ]
    assert len(source.read_text().splitlines()) < 100


def test_two_programs_share_and_one_that_is_killed_loses_nothing(cluster: Cluster) -> None:
    """What the killed one had not acknowledged comes to the other one."""
    topic, program = "thin-kill", [sys.executable, str(EXAMPLES / "python" / "thin.py")]
    cluster.create_topic(topic, partitions=PARTITIONS)
    addresses = ",".join(node.address for node in cluster.nodes)
    consumers = [
        subprocess.Popen(
            [*program, addresses, "consume", topic, "kill", str(10 * COUNT)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path.cwd(),
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        run(program, cluster, "produce", topic, str(PARTITIONS), str(COUNT))
        wait_until(lambda: sum(committed(cluster.node(1), "kill").values()) > 0, "something is committed")
        consumers[0].kill()
        run(program, cluster, "produce", topic, str(PARTITIONS), str(COUNT))
        wait_until(lambda: sum(committed(cluster.node(1), "kill").values()) == 2 * COUNT, "all is committed")
    finally:
        for consumer in consumers:
            consumer.kill()
    seen = {line for consumer in consumers for line in consumer.communicate()[0].splitlines()}
    places = {tuple(line.split()[:2]) for line in seen}
    assert len(places) == 2 * COUNT, "every record was handed out"


def test_every_program_is_built_by_these_tests() -> None:
    """No example that nobody runs."""
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == set(LANGUAGES)
