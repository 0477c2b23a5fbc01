"""A disk that is full but for its reserve: records are refused, everything else goes on, and it heals."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from tests.simulation.lab import Lab

RESERVE = limits.DISK_RESERVE_BYTES


def test_records_are_refused_while_there_is_little_space() -> None:
    """REJECTED, with a time to wait; nothing was written; when there is room it works again."""
    lab = Lab(3)
    lab.elect(1)
    lab.commit(1, b"before")
    lab.nodes[NodeId(1)].disk.free = RESERVE - 1
    lab.run(limits.DISK_CHECK_INTERVAL + 0.2)
    (answer,) = lab.propose(1, b"refused")
    assert isinstance(answer, FluxError)
    assert (answer.reason, answer.retry_after_ms) == (Reason.DISK_FULL, limits.DISK_FULL_RETRY_MS)
    assert answer.traits.outcome.name == "REJECTED"
    lab.nodes[NodeId(1)].disk.free = RESERVE
    lab.run(limits.DISK_CHECK_INTERVAL + 0.2)
    lab.commit(1, b"after")
    assert lab.values(1) == [b"before", b"after"]


def test_a_leader_with_a_full_disk_still_deletes_and_leads() -> None:
    """Deleting records is how room is made; elections and a leader's own entry need no more than the reserve."""
    lab = Lab(3)
    lab.elect(1)
    for _ in range(3):
        lab.commit(1, bytes(40_000))
    for node in lab.nodes.values():
        node.disk.free = 0
    lab.run(limits.DISK_CHECK_INTERVAL + 0.2)
    answers: list[FluxError | None] = []
    lab[1].trim(lab[1].high_watermark, answers.append)
    lab.until(lambda: answers == [None] and all(lab[n].log.first_index > 1 for n in (1, 2, 3)))
    lab.elect(2)
    assert lab.leader() == 2
