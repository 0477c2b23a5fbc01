"""Whether the replicas of a partition have the same log: what to ask them, and what their answers mean.

Each entry's checksum covers all entries before it, so replicas that have the same checksum at an index have had the
same log up to there. They are compared at the ends of their files and at the last entry that all know to be committed.
A deep verification also has each replica read all of its log again. No I/O here: `verification` is a generator of
requests that is sent their answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fluxlog.errors import FluxlogError
from fluxlog.v1 import admin_pb2

CHECK_TIMEOUT = 30.0
"""Seconds for one CheckReplica: with `read` it reads some MiB."""
INDEXES_MAX = 1_000
"""Of one CheckReplica."""

Request = admin_pb2.CheckReplicaRequest
Answer = admin_pb2.CheckReplicaResponse | FluxlogError


class Verdict(StrEnum):
    """On one replica."""

    AGREES = "agrees"
    DIFFERS = "differs"
    """Its log is another one than the others'. That should be impossible: a defect of the software, or of a disk that
    checksums did not see."""
    DAMAGED = "damaged"
    """Its disk has lost something. It is copied anew by itself."""
    UNAVAILABLE = "unavailable"
    """It could not be asked, or takes no part."""


@dataclass(frozen=True, slots=True)
class ReplicaVerification:
    """What was found of one replica."""

    node_id: int
    verdict: Verdict
    checked_offset: int
    """It was compared up to here (exclusive)."""
    checksum: int | None
    """Of the last entry before that offset: stands for the whole log up to there."""
    verified_bytes: int
    """Read again from its disk; 0 unless the verification was deep."""
    why: str
    """In words, when it does not agree."""


@dataclass(frozen=True, slots=True)
class PartitionVerification:
    """What was found of one partition, a line for each replica."""

    topic: str
    partition: int
    replicas: tuple[ReplicaVerification, ...]

    @property
    def all_agree(self) -> bool:
        """Every replica was asked, and all have the same log."""
        return all(replica.verdict is Verdict.AGREES for replica in self.replicas)


def replicas_of(topic: admin_pb2.TopicDescription, partition: int) -> list[int]:
    """Nodes that have a replica.

    Raises:
        FluxlogError: UNKNOWN_PARTITION.
    """
    if partition >= len(topic.partitions):
        raise FluxlogError(
            "UNKNOWN_PARTITION", f"topic {topic.name} has partitions 0..{len(topic.partitions) - 1}, not {partition}"
        )
    return list(topic.partitions[partition].replicas)


class _Found:
    """Of one replica, while it is asked."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.failure: FluxlogError | None = None
        self.damage = ""
        self.commit_index = self.verified_index = self.verified_bytes = 0
        self.complete = False
        self.checksums: dict[int, admin_pb2.EntryChecksum] = {}

    def take(self, answer: Answer) -> None:
        if isinstance(answer, FluxlogError):
            self.failure = answer
            return
        self.damage = self.damage or answer.damage
        self.commit_index = answer.commit_index
        self.checksums |= {entry.raft_index: entry for entry in answer.checksums}
        # no progress would mean that there is nothing more to read
        self.complete = self.complete or answer.complete or answer.verified_index <= self.verified_index
        self.verified_index = max(self.verified_index, answer.verified_index)
        self.verified_bytes += answer.verified_bytes

    @property
    def answers(self) -> bool:
        return self.failure is None and not self.damage


def verification(
    topic: str, partition: int, nodes: Sequence[int], *, deep: bool = False
) -> Generator[list[Request], list[Answer], PartitionVerification]:
    """Yields requests, is sent as many answers, in order; returns what was found.

    Args:
        nodes: that have a replica.
        deep: have all entries read and verified, too.
    """
    found = [_Found(node) for node in nodes]
    yield from _ask(found, [Request(topic=topic, partition=partition, node_id=f.node_id) for f in found])
    end_index = min((f.commit_index for f in found if f.answers), default=0)
    for f in found:
        f.complete = not deep
    while reading := [f for f in found if f.answers and not f.complete]:
        yield from _ask(
            reading,
            [
                Request(
                    topic=topic, partition=partition, node_id=f.node_id, indexes=[end_index], read=True,
                    verified_index=f.verified_index,
                )
                for f in reading
            ],
        )  # fmt: skip
    there = [f for f in found if f.answers]
    wanted = sorted({end_index, *(i for f in there for i in f.checksums if i <= end_index)})[-INDEXES_MAX:]
    yield from _ask(
        there, [Request(topic=topic, partition=partition, node_id=f.node_id, indexes=wanted) for f in there]
    )
    different = _differences([f for f in found if f.answers], wanted)
    return PartitionVerification(topic, partition, tuple(_judged(f, wanted, different) for f in found))


def _ask(found: list[_Found], requests: list[Request]) -> Generator[list[Request], list[Answer], None]:
    if requests:
        answers = yield requests
        for f, answer in zip(found, answers, strict=True):
            f.take(answer)


def _differences(found: list[_Found], indexes: Sequence[int]) -> Mapping[int, str]:
    """node -> why it differs, at the first index where not all are the same."""
    for index in indexes:
        values = {f.node_id: f.checksums[index] for f in found if index in f.checksums}
        counts = Counter(entry.checksum for entry in values.values())
        if len(counts) < 2:
            continue
        common, count = counts.most_common(1)[0]
        where = f"at entry {index}, offset {max(entry.next_offset for entry in values.values())}"
        if 2 * count <= len(values):
            told = ", ".join(f"node {node} {entry.checksum:08x}" for node, entry in sorted(values.items()))
            return dict.fromkeys(values, f"{where} the replicas differ, and no majority says which is right: {told}")
        return {
            node: f"{where} it has checksum {entry.checksum:08x}, {count} of {len(values)} replicas have {common:08x}"
            for node, entry in values.items()
            if entry.checksum != common
        }
    return {}


def _judged(found: _Found, indexes: Sequence[int], different: Mapping[int, str]) -> ReplicaVerification:
    last = max((index for index in indexes if index in found.checksums), default=0)
    entry = found.checksums.get(last)
    if found.damage:
        verdict, why = Verdict.DAMAGED, found.damage
    elif found.failure is not None:
        verdict, why = Verdict.UNAVAILABLE, found.failure.message
    elif found.node_id in different:
        verdict, why = Verdict.DIFFERS, different[found.node_id]
    elif entry is None:
        verdict, why = Verdict.UNAVAILABLE, f"its log begins behind entry {max(indexes)}, there is nothing to compare"
    else:
        verdict, why = Verdict.AGREES, ""
    return ReplicaVerification(
        found.node_id, verdict, entry.next_offset if entry else 0, entry.checksum if entry else None,
        found.verified_bytes, why,
    )  # fmt: skip
