"""A scene: a topic under load while something happens to a cluster, judged and entered into the table at its end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fluxlog.checker import Phase, report
from tests.docker.compose import NODES, ComposeProject
from tests.docker.load import PARTITIONS, Load
from tests.docker.table import Row, row_of


class Scene:
    """What a test does in it."""

    def __init__(self, cluster: ComposeProject, topic: str, load: Load) -> None:
        self.cluster, self.topic, self.load = cluster, topic, load
        self.since = time.monotonic()

    def begin(self) -> None:
        """It happens now."""
        self.load.phase(Phase.FAULTS)
        self.count_from_now()

    def count_from_now(self) -> None:
        """What was unavailable before was meant to be."""
        self.since = time.monotonic()

    def leader(self, partition: int = 0) -> int:
        """Node id."""
        return self.cluster.leader_of(self.topic, partition)


@contextmanager
def scene(
    cluster: ComposeProject, topic: str, event: str, rows: list[Row], *, lost: Iterable[int] = ()
) -> Iterator[Scene]:
    """Open a scene.

    Args:
        topic: to be created.
        event: how the table calls it.
        lost: nodes that will not be well again: nobody waits for them, and their copies are not compared.
    """
    remaining = [node for node in NODES if node not in lost]
    cluster.admin.create_topic(topic, partitions=PARTITIONS, replication_factor=len(NODES), wait_ms=20_000)
    cluster.wait_healthy()
    with Load(cluster.addresses, topic) as load:
        on_stage = Scene(cluster, topic, load)
        yield on_stage
        load.phase(Phase.HEAL)
        load.wait_progress()
        if len(remaining) == len(NODES):
            cluster.wait_healthy()
        unavailable_ms = load.unavailable_ms(on_stage.since)
        verdict = load.finish(remaining)
    rows.append(row_of(event, unavailable_ms, verdict))
    assert verdict.valid, report(verdict)
