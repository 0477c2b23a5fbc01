"""What one replica has, for those who compare replicas: its chain checksums, and on request all of it read again.

Only committed entries are looked at: of these all replicas must have the same. What is found damaged is told to the
replica, which is then copied anew by itself, as if the scrub had found it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from fluxd.broker.currency import Calls
from fluxd.broker.routes import Route, Routes
from fluxd.core import limits
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxd.core.runtime import ReadingReactor
from fluxd.core.types import GroupId, NodeId, RaftIndex
from fluxd.raft.group import Group
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.spec import Role
from fluxd.storage.log import PartitionLog
from fluxd.storage.scrub import Verified
from fluxlog.v1 import admin_pb2

T = TypeVar("T")

CHECK_REPLICA = "/fluxlog.v1.Admin/CheckReplica"
_HOP_TIMEOUT = 30.0


class CheckingReplicas:
    """Serves CheckReplica.

    Args:
        groups: this node's replicas, read live.
    """

    def __init__(
        self,
        reactor: ReadingReactor,
        routes: Routes,
        groups: Mapping[GroupId, Group | OfflineGroup],
        calls: Calls,
    ) -> None:
        self._reactor, self._routes, self._groups, self._calls = reactor, routes, groups, calls

    async def check_replica(
        self, request: admin_pb2.CheckReplicaRequest, *, forwarded: bool
    ) -> admin_pb2.CheckReplicaResponse:
        """See admin.proto."""
        if len(request.indexes) > limits.CHECK_INDEXES_MAX:
            raise FluxError(
                Reason.INVALID_ARGUMENT,
                f"{len(request.indexes)} indexes are above the bound {limits.CHECK_INDEXES_MAX}",
            )
        route = await self._routes.find(request.topic, request.partition, b"")
        if request.node_id not in route.replicas:
            raise FluxError(
                Reason.UNKNOWN_NODE,
                f"node {request.node_id} has no replica of {route.name}; nodes {list(route.replicas)} have one",
            )
        if request.node_id != self._routes.node_id:
            if forwarded:
                raise FluxError(Reason.UNKNOWN_NODE, f"this is node {self._routes.node_id}, not {request.node_id}")
            answer = await self._calls.unary(
                NodeId(request.node_id),
                CHECK_REPLICA,
                request.SerializeToString(),
                timeout_s=_HOP_TIMEOUT,
                writes=False,
            )
            return admin_pb2.CheckReplicaResponse.FromString(answer)
        return await self._check(self._replica(route), request, route)

    def _replica(self, route: Route) -> Group:
        group = self._groups.get(route.group_id)
        if isinstance(group, Group) and group.role is not Role.FAILED:
            return group
        why = group.why if group is not None else "it has not been opened yet"
        raise self._routes.named(
            FluxError(Reason.REPLICA_OFFLINE, f"the replica of {route.name} on this node takes no part: {why}"), route
        )

    async def _check(
        self, group: Group, request: admin_pb2.CheckReplicaRequest, route: Route
    ) -> admin_pb2.CheckReplicaResponse:
        log = group.log
        out = admin_pb2.CheckReplicaResponse(
            first_index=log.first_index, commit_index=group.commit_index,
            log_start_offset=group.log_start_offset, high_watermark=group.high_watermark,
        )  # fmt: skip
        damage: CorruptDataError | OSError | None = None
        try:
            if request.read:
                await self._read(group, log, RaftIndex(request.verified_index), out)
            await self._add_checksums(log, list(request.indexes), out)
        except (CorruptDataError, OSError) as error:
            damage = error
        if group.log is not log or group.role is Role.FAILED:
            # What it was writing was cut off meanwhile: the leader has it, and nothing is wrong with what is left.
            stopped = FluxError(Reason.REPLICA_OFFLINE, f"the replica of {route.name} stopped while it was being read")
            raise self._routes.named(stopped, route) from damage
        if damage is not None:
            out.damage = str(damage)
            group.read_failed(damage, log)
        return out

    async def _read(
        self, group: Group, log: PartitionLog, behind: RaftIndex, out: admin_pb2.CheckReplicaResponse
    ) -> None:
        scrub, end_index = log.scrub, RaftIndex(out.commit_index)
        at = Verified()
        if log.first_index <= behind <= end_index:
            at = await self._read_unless_trimmed(log, lambda: scrub.behind(behind)) or at
        while out.verified_bytes < limits.CHECK_BYTES_MAX:
            piece = scrub.next_piece(at, end_index=end_index, max_bytes=limits.SCRUB_PIECE_BYTES)
            if piece is None:
                out.complete = True
                break
            read = await self._read_unless_trimmed(log, piece.read)
            if read is None:
                continue
            at = read
            out.verified_bytes += at.size
            if at.is_end and group.log is log:
                group.read_again(piece.segment)
        out.verified_index = at.last.raft_index if at.last is not None else 0

    async def _read_unless_trimmed(self, log: PartitionLog, read: Callable[[], T]) -> T | None:
        """None: what was to be read went meanwhile."""
        try:
            return await self._reactor.read(read)
        except (CorruptDataError, OSError) as error:
            if log.scrub.was_trimmed(error):
                return None
            raise

    async def _add_checksums(self, log: PartitionLog, wanted: list[int], out: admin_pb2.CheckReplicaResponse) -> None:
        """As they are known, without reading, of the ends of segments."""
        commit_index = RaftIndex(out.commit_index)
        ends = log.scrub.segment_ends(commit_index)
        if not wanted:
            step = len(ends) // (limits.CHECK_INDEXES_MAX - 1) + 1
            wanted = [*list(ends)[::-step][::-1], commit_index]
        for index in sorted(set(wanted)):
            if index in ends:
                offset, checksum = ends[RaftIndex(index)]
            elif log.first_index <= index <= commit_index:
                read = partial(log.scrub.verified_stamp, RaftIndex(index))
                stamp = await self._read_unless_trimmed(log, read)
                if stamp is None:
                    continue
                offset, checksum = stamp.next_offset, stamp.checksum
            else:
                continue
            out.checksums.add(raft_index=index, next_offset=offset, checksum=checksum)
