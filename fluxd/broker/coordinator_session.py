"""One member's stream, as its coordinator sees it: what the member was told, and what it has to be told.

There is no queue of messages. What is to be said is the difference between what the member was told last and what the
groups' log says now, worked out when the stream can take it: so a slow member costs no memory, and hears of what counts
only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from fluxd.core.errors import FluxError, Reason
from fluxd.core.groups import Group, Member, Ownership
from fluxd.core.types import GroupId as PartitionId
from fluxlog.v1 import groups_pb2

TAKEN_OVER = "taken_over"
"""Key in the metadata of FENCED_MEMBER: the member goes on over another stream, and who has this one is to end."""

Named = Callable[[PartitionId], groups_pb2.TopicPartition]


def taken_over() -> FluxError:
    """What ends a stream whose member has come over another one."""
    return FluxError(Reason.FENCED_MEMBER, "the member has come over another stream", metadata={TAKEN_OVER: "true"})


class Session:
    """See the module.

    Args:
        member: as of the JoinMember that began this stream.
        named: a partition as clients call it.
    """

    def __init__(self, group: str, member: Member, *, resumed: bool, named: Named) -> None:
        self.group, self.member, self.resumed = group, member, resumed
        self.stuck_ms = 0
        """As the member said last."""
        self.leaving = False
        """The member said that it goes: the end of its membership is no error."""
        self._named = named
        self._names: dict[PartitionId, groups_pb2.TopicPartition] = {}
        """As the member knows what it has: a deleted topic has no name any more."""
        self._told: dict[PartitionId, Ownership] = {}
        self._began = False
        self._changed = asyncio.Event()
        self._changed.set()
        self._ended = False
        self._error: FluxError | None = None

    @property
    def ended(self) -> bool:
        """Nothing more is to be said."""
        return self._ended

    def wake(self) -> None:
        """Something may have changed."""
        self._changed.set()

    def end(self, error: FluxError | None = None) -> None:
        """The stream ends, with an error or in good order."""
        if not self._ended:
            self._ended, self._error = True, None if self.leaving else error
        self._changed.set()

    async def wait(self) -> bool:
        """Wait until there may be something to say; False: the stream has ended in good order.

        Raises:
            FluxError: it ended otherwise.
        """
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None:
            raise self._error
        return not self._ended

    def released(self, partitions: Iterable[PartitionId]) -> None:
        """The member gave these up, and that is applied: it has not got them, and need not be told."""
        for partition in partitions:
            self._told.pop(partition, None)
            self._names.pop(partition, None)

    def messages(
        self, group: Group, owned: Mapping[PartitionId, Ownership], revoke_ms: Callable[[PartitionId], int]
    ) -> list[groups_pb2.CoordinatorMessage]:
        """What the member has to be told, which counts as told then.

        Args:
            owned: what it has, as the log says.
            revoke_ms: how long it may take to give one up.
        """
        told, self._told = self._told, dict(owned)
        lost = [
            partition
            for partition, before in told.items()
            if partition not in owned or owned[partition].since_generation != before.since_generation
        ]
        given = [partition for partition in owned if partition not in told or partition in lost]
        revoked = [
            partition
            for partition, owner in owned.items()
            if owner.revoking and (partition in given or not told[partition].revoking)
        ]
        out = []
        if lost:
            out.append(groups_pb2.CoordinatorMessage(lost=self._lost(lost, group)))
        if given or not self._began:
            out.append(groups_pb2.CoordinatorMessage(assigned=self._assigned(given, group)))
            self._began = True
        if revoked:
            deadline_ms = min(revoke_ms(partition) for partition in revoked)
            names = [self._names[partition] for partition in sorted(revoked)]
            revoke = groups_pb2.Revoke(partitions=names, deadline_ms=deadline_ms, generation=group.generation)
            out.append(groups_pb2.CoordinatorMessage(revoke=revoke))
        return out

    def _lost(self, partitions: Iterable[PartitionId], group: Group) -> groups_pb2.Lost:
        names = [self._names.pop(partition) for partition in sorted(partitions)]
        return groups_pb2.Lost(partitions=names, generation=group.generation)

    def _assigned(self, partitions: Iterable[PartitionId], group: Group) -> groups_pb2.Assigned:
        assigned = groups_pb2.Assigned(generation=group.generation)
        for partition in sorted(partitions):
            committed = group.offsets.get(partition)
            self._names[partition] = self._named(partition)
            assigned.assignments.add(
                partition=self._names[partition], committed_offset=None if committed is None else committed.offset
            )
        return assigned
