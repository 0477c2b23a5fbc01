"""Until when a partition that is revoked may stay with its owner; past that it is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fluxd.core.groups import Group, Ownership
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId as PartitionId

_RETRY = 0.5
"""Should taking not succeed (no majority at the moment)."""

Take = Callable[[str, bytes, Sequence[PartitionId]], None]


class Revocations:
    """See the module.

    Args:
        take: group, member id, partitions: they are overdue.
    """

    def __init__(self, reactor: Reactor, take: Take) -> None:
        self._reactor, self._take = reactor, take
        self._due: dict[str, dict[PartitionId, tuple[float, bytes]]] = {}
        """When, and from whom, by group."""
        self._timers: dict[str, Timer] = {}

    def watch(self, group: Group, owned_by: Mapping[bytes, Mapping[PartitionId, Ownership]]) -> None:
        """A group has changed: its revocations are these now. Those that go on keep their time."""
        before, now = self._due.pop(group.name, {}), self._reactor.now()
        due = {}
        for member_id, owned in owned_by.items():
            limit = (now + group.members[member_id].rebalance_timeout_ms / 1000, member_id)
            for each, owner in owned.items():
                if owner.revoking:
                    due[each] = before.get(each, limit)
        if due:
            self._due[group.name] = due
        self._arm(group.name)

    def left_ms(self, group: str, partition: PartitionId) -> int:
        """How long a partition may stay, milliseconds."""
        now = self._reactor.now()
        when, _ = self._due.get(group, {}).get(partition, (now, b""))
        return max(0, round((when - now) * 1000))

    def end(self) -> None:
        """This node coordinates no more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._due.clear()

    def _arm(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        due = self._due.get(name)
        if due:
            earliest = min(when for when, _ in due.values())
            self._timers[name] = self._reactor.call_at(earliest, partial(self._overdue, name))

    def _overdue(self, name: str) -> None:
        now, due = self._reactor.now(), self._due.get(name, {})
        overdue: dict[bytes, list[PartitionId]] = {}
        for each, (when, member_id) in due.items():
            if when <= now:
                overdue.setdefault(member_id, []).append(each)
                due[each] = (now + _RETRY, member_id)
        for member_id, partitions in overdue.items():
            self._take(name, member_id, partitions)
        self._arm(name)
