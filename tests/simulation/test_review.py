"""A replica, a disk or a caller misbehaves: everybody is answered once, and nobody else suffers."""

from __future__ import annotations

import errno

from fluxd.core.errors import FluxError
from fluxd.core.types import NodeId
from fluxd.raft.group import Role
from tests.simulation.lab import Lab, outcome


def _let_fail(lab: Lab) -> None:
    """In these schedules a replica stops itself, which the invariants take for a violation."""
    lab.invariants.after_step = lambda node: None  # type: ignore[method-assign]


def test_a_leader_that_stopped_itself_still_answers() -> None:
    """Its disk is full: what waited is UNKNOWN, what comes later is REJECTED with the reason, and it can be described."""
    lab = Lab()
    group = lab.elect(1)
    _let_fail(lab)
    lab.nodes[NodeId(1)].disk.fail_next("append", OSError(errno.ENOSPC, "disk full"), path=".seg")
    first = lab.propose(1, b"first")
    lab.run(0.1)
    assert group.role is Role.FAILED
    assert outcome(first) == "UNKNOWN"
    later = lab.propose(1, b"later")
    assert outcome(later) == "REJECTED"
    assert isinstance(later[0], FluxError) and "disk full" in later[0].message
    assert group.quorum_missing() is None
    reads: list[FluxError | None] = []
    group.read_index(reads.append)
    assert len(reads) == 1 and reads[0] is not None
