"""What one replica says of its own entries when replicas are compared."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from fluxd.broker.checking import CheckingReplicas
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import RaftIndex
from fluxd.raft.spec import Role
from fluxd.storage.log import PartitionLog
from fluxlog.v1 import admin_pb2
from tests.simulation.disk import SimDisk
from tests.storage_kit import DIRECTORY, GROUP, append, create_log, open_log, run, sync

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


def _group(log: PartitionLog, failures: list[BaseException]) -> Any:
    return SimpleNamespace(
        log=log, commit_index=log.last_index, log_start_offset=0, high_watermark=log.log_end_offset,
        role=Role.FOLLOWER, read_failed=lambda error, log: failures.append(error), read_again=lambda segment: None,
    )  # fmt: skip


async def _check(reading: Any, group: Any, request: admin_pb2.CheckReplicaRequest) -> admin_pb2.CheckReplicaResponse:
    routes: Any = SimpleNamespace(named=lambda error, route: error)
    route: Any = SimpleNamespace(name="orders-3")
    nothing: Any = None
    return await CheckingReplicas(reading, routes, {}, nothing)._check(group, request, route)


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
    group = _group(log, failures)
    out = asyncio.run(_check(_Reading(log), group, admin_pb2.CheckReplicaRequest(**asked)))
    assert log.first_index > 2
    assert (out.damage, failures) == ("", [])
    assert out.complete == ("read" in asked)
    assert out.checksums[-1].checksum == log.stamp_at(RaftIndex(out.checksums[-1].raft_index)).checksum
    assert 2 not in [checksum.raft_index for checksum in out.checksums]


@pytest.mark.parametrize("asked", [{"read": True, "verified_index": 2}, {"indexes": [21]}])
@pytest.mark.parametrize("is_open", [True, False], ids=["opened", "opening"])
def test_what_is_cut_off_meanwhile_is_no_damage(asked: dict[str, Any], is_open: bool) -> None:
    """A follower knows as committed what its own disk does not have yet. Its sync fails, and its log is cut there and
    opened again while it is read: who asked is told to ask again, and the replica is not copied anew.
    """
    disk = SimDisk(random.Random(1))
    log = create_log(disk)
    for number in range(20):
        append(log, bytes(60))
        if number == 10:
            sync(log, log.last_index)
    failures: list[BaseException] = []
    group = _group(log, failures)

    class _Reopening:
        async def read(self, step: Callable[[], T]) -> T:
            if group.log is log and group.role is not Role.FAILED:
                log.close()
                again = PartitionLog.open(disk, DIRECTORY, GROUP, 0, segment_bytes=1 << 20, after=log.synced)
                assert again.last_index == 12
                group.log, group.role = (again, Role.FOLLOWER) if is_open else (log, Role.FAILED)
            return step()

    with pytest.raises(FluxError, match="orders-3 stopped while it was being read") as raised:
        asyncio.run(_check(_Reopening(), group, admin_pb2.CheckReplicaRequest(**asked)))
    assert (raised.value.reason, raised.value.traits.retriable) == (Reason.REPLICA_OFFLINE, True)
    assert failures == []
