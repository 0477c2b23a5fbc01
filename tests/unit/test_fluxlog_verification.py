"""Replicas are compared at what all have committed, and the one that stands alone is named."""

from __future__ import annotations

import pytest

from fluxlog.errors import FluxlogError
from fluxlog.v1 import admin_pb2
from fluxlog.verification import Answer, PartitionVerification, Request, Verdict, replicas_of, verification

CHAIN = {10: (5, 0xA), 20: (12, 0xB), 30: (20, 0xC)}
"""index -> (offset behind it, checksum)"""


class Replica:
    """One that answers as a node does."""

    def __init__(
        self, commit_index: int = 30, chain: dict[int, tuple[int, int]] | None = None, begins: int = 1
    ) -> None:
        self.commit_index, self.chain, self.begins = commit_index, CHAIN if chain is None else chain, begins
        self.reads: list[int] = []
        self.damage_at = 0
        self.failure: FluxlogError | None = None

    def __call__(self, request: Request) -> Answer:
        if self.failure is not None:
            return self.failure
        out = admin_pb2.CheckReplicaResponse(commit_index=self.commit_index)
        if request.read:
            self.reads.append(request.verified_index)
            out.verified_index = min(request.verified_index + 20, self.commit_index)
            out.verified_bytes, out.complete = 100, out.verified_index == self.commit_index
            if 0 < self.damage_at <= out.verified_index:
                out.damage = "000.seg: position 7: bad"
                return out
        for index in request.indexes or self.chain:
            if self.begins <= index <= self.commit_index:
                offset, checksum = self.chain.get(index, (index - 8, index))
                out.checksums.add(raft_index=index, next_offset=offset, checksum=checksum)
        return out


def verify(replicas: dict[int, Replica], *, deep: bool = False) -> PartitionVerification:
    steps = verification("t", 0, list(replicas), deep=deep)
    try:
        requests = next(steps)
        while True:
            requests = steps.send([replicas[request.node_id](request) for request in requests])
    except StopIteration as end:
        found: PartitionVerification = end.value
        return found


def verdicts(found: PartitionVerification) -> list[Verdict]:
    return [replica.verdict for replica in found.replicas]


def test_replicas_that_are_the_same() -> None:
    """All agree, up to the last entry."""
    found = verify({1: Replica(), 2: Replica(), 3: Replica()})
    assert found.all_agree
    assert [(r.checked_offset, r.checksum, r.verified_bytes, r.why) for r in found.replicas] == [(20, 0xC, 0, "")] * 3


def test_they_are_compared_at_what_all_have_committed() -> None:
    """A replica that is behind is no other replica."""
    found = verify({1: Replica(), 2: Replica(25), 3: Replica()})
    assert found.all_agree
    assert {(r.checked_offset, r.checksum) for r in found.replicas} == {(17, 25)}


def test_the_one_that_stands_alone_is_named() -> None:
    """With the first place at which it differs."""
    other = Replica(chain={10: (5, 0xA), 20: (12, 0xBAD), 30: (20, 0xBADD)})
    found = verify({1: Replica(), 2: other, 3: Replica()})
    assert not found.all_agree
    assert verdicts(found) == [Verdict.AGREES, Verdict.DIFFERS, Verdict.AGREES]
    expected = "at entry 20, offset 12 it has checksum 00000bad, 2 of 3 replicas have 0000000b"
    assert found.replicas[1].why == expected


def test_without_a_majority_nobody_is_right() -> None:
    """Of two."""
    found = verify({1: Replica(), 2: Replica(chain={10: (5, 0xA), 20: (12, 1), 30: (20, 2)})})
    assert verdicts(found) == [Verdict.DIFFERS, Verdict.DIFFERS]
    assert "no majority says which is right: node 1 0000000b, node 2 00000001" in found.replicas[0].why


def test_who_cannot_be_asked_does_not_count() -> None:
    """And is not in order either."""
    away = Replica()
    away.failure = FluxlogError("REPLICA_OFFLINE", "it is being copied")
    found = verify({1: Replica(), 2: away, 3: Replica()})
    assert verdicts(found) == [Verdict.AGREES, Verdict.UNAVAILABLE, Verdict.AGREES]
    assert found.replicas[1].why == "it is being copied"
    assert not found.all_agree
    for replica in (gone := {1: Replica(), 2: Replica()}).values():
        replica.failure = away.failure
    assert verdicts(verify(gone)) == [Verdict.UNAVAILABLE, Verdict.UNAVAILABLE]


def test_a_deep_verification_reads_everything() -> None:
    """In as many calls as it takes; who is damaged is not compared."""
    replicas = {1: Replica(50), 2: Replica(), 3: Replica()}
    replicas[3].damage_at = 25
    found = verify(replicas, deep=True)
    assert replicas[1].reads == [0, 20, 40]
    assert replicas[2].reads == [0, 20]
    assert verdicts(found) == [Verdict.AGREES, Verdict.AGREES, Verdict.DAMAGED]
    assert [r.verified_bytes for r in found.replicas] == [300, 200, 200]
    assert found.replicas[2].why == "000.seg: position 7: bad"


def test_a_log_that_begins_behind_what_is_compared() -> None:
    """Nothing can be said of it."""
    found = verify({1: Replica(), 2: Replica(40, begins=35), 3: Replica()})
    assert verdicts(found) == [Verdict.AGREES, Verdict.UNAVAILABLE, Verdict.AGREES]


def test_a_partition_that_is_not_there() -> None:
    """Is said so."""
    topic = admin_pb2.TopicDescription(name="t", partitions=[admin_pb2.PartitionDescription(replicas=[2, 1])])
    assert replicas_of(topic, 0) == [2, 1]
    with pytest.raises(FluxlogError, match=r"partitions 0\.\.0, not 1"):
        replicas_of(topic, 1)
