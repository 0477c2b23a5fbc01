"""What one replica says of its own entries when replicas are compared."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from fluxd.broker.checking import CheckingReplicas
from fluxd.core.types import RaftIndex
from fluxd.storage.log import PartitionLog
from fluxlog.v1 import admin_pb2
from tests.simulation.disk import SimDisk
from tests.storage_kit import append, create_log, open_log, run, sync

T = TypeVar("T")
SEGMENT_BYTES = 600


class _Reading:
    """Reads; the log is trimmed before the first one begins."""

    def __init__(self, log: PartitionLog) -> None:
        self._log = log

    async def read(self, step: Callable[[], T]) -> T:
        log = self._log
        if log.log_start_offset == 0:
            log.log_start_offset = log.log_end_offset
            run(log.write_snapshot(log.last_index, b""))
            run(log.trim_prefix(log.log_start_offset, log.last_index))
        return step()


@pytest.mark.parametrize(
    "asked", [{"indexes": [2, 20]}, {"read": True, "verified_index": 2, "indexes": [20]}, {"read": True}]
)
def test_what_is_trimmed_meanwhile_is_no_damage(asked: dict[str, Any]) -> None:
    """It is left out; what is still there is told."""
    disk = SimDisk(random.Random(1))
    log = create_log(disk, SEGMENT_BYTES)
    for _ in range(20):
        append(log, bytes(60))
    sync(log, log.last_index)
    log.close()
    log = open_log(disk, SEGMENT_BYTES)
    failures: list[BaseException] = []
    group: Any = SimpleNamespace(
        log=log, commit_index=log.last_index, log_start_offset=0, high_watermark=log.log_end_offset,
        read_failed=failures.append, read_again=lambda segment: None,
    )  # fmt: skip
    nothing: Any = None
    replicas = CheckingReplicas(_Reading(log), nothing, {}, nothing)  # type: ignore[arg-type]
    out = asyncio.run(replicas._check(group, admin_pb2.CheckReplicaRequest(**asked)))
    assert log.first_index > 2
    assert (out.damage, failures) == ("", [])
    assert out.complete == ("read" in asked)
    assert out.checksums[-1].checksum == log.stamp_at(RaftIndex(out.checksums[-1].raft_index)).checksum
    assert 2 not in [checksum.raft_index for checksum in out.checksums]
