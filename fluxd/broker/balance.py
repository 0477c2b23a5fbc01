"""Brings leadership back to the preferred leaders, so that after a failure the load is spread again.

Each leader looks after its own partitions: it alone knows first-hand whether the preferred replica has everything, so
no controller and no call to another node is needed, and each node bounds what it hands back per round.

A leadership that the preferred leader itself handed over (an operator moved it, or the node is stopping) stays where it
is as long as that replica has been well ever since, on a node that was not away: otherwise `nodes transfer` would be
undone within seconds. One that was lost is brought back, however soon the node is well again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fluxd.broker.cluster import ClusterView, Replica, leader_status
from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.spec import Role


class TransferableReplica(Replica, Protocol):
    """This node's replica of a group, as the balancer uses it."""

    @property
    def voters(self) -> tuple[NodeId, ...]: ...
    @property
    def was_handed_over(self) -> bool: ...
    def transfer(self, to: NodeId | None) -> FluxError | None: ...


class LeaderBalancer:
    """See the module.

    Args:
        groups: the host's table, read live.
    """

    def __init__(self, reactor: Reactor, view: ClusterView, groups: Mapping[GroupId, TransferableReplica]) -> None:
        self._reactor = reactor
        self._view = view
        self._groups = groups
        self._last_leader: dict[GroupId, NodeId] = {}
        """Last leader other than this node."""
        self._given: set[GroupId] = set()
        """Led here because the preferred leader handed it over, and well ever since."""
        self._well_since: dict[GroupId, float] = {}
        """Led here, and the preferred leader has been in sync since then."""
        self._leading_since: dict[GroupId, float] = {}
        self._timer: Timer | None = None
        self._unwatch: Callable[[], None] | None = None

    def start(self) -> None:
        """Look every LEADER_BALANCE_INTERVAL from now on."""
        self._unwatch = self._view.watch_leaders(self._leader_changed)
        self._arm()

    def stop(self) -> None:
        """Hand nothing back any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _arm(self) -> None:
        self._timer = self._reactor.call_at(self._reactor.now() + limits.LEADER_BALANCE_INTERVAL, self._round)

    def _leader_changed(self, group_id: GroupId) -> None:
        group = self._groups.get(group_id)
        if group is None:
            self._last_leader.pop(group_id, None)
            self._ended(group_id)
            return
        if group.role is Role.LEADER:
            self._leading_since.setdefault(group_id, self._reactor.now())
            if self._last_leader.get(group_id) == group.voters[0] and group.was_handed_over:
                self._given.add(group_id)
        else:
            self._ended(group_id)
            if group.leader_id is not None:
                self._last_leader[group_id] = group.leader_id

    def _ended(self, group_id: GroupId) -> None:
        self._given.discard(group_id)
        self._well_since.pop(group_id, None)
        self._leading_since.pop(group_id, None)

    def _round(self) -> None:
        now = self._reactor.now()
        left = limits.LEADER_TRANSFERS_PER_ROUND
        me = self._view.local.node_id
        for group_id, group in tuple(self._groups.items()):
            if group.role is not Role.LEADER or group.voters[0] == me:
                continue
            leading_since = self._leading_since.setdefault(group_id, now)
            if group_id in self._given and self._view.joined_since(group.voters[0], leading_since):
                self._given.discard(group_id)
                self._well_since.pop(group_id, None)
            if not self._is_well(group, group.voters[0]):
                self._well_since.pop(group_id, None)
                if now - leading_since > limits.IN_SYNC_TIMEOUT:
                    self._given.discard(group_id)
                continue
            since = self._well_since.setdefault(group_id, now)
            if left and group_id not in self._given and now - since >= limits.LEADER_BALANCE_SETTLE:
                left -= 1
                self._well_since[group_id] = now  # if nothing comes of it, wait as long again
                group.transfer(group.voters[0])
        self._arm()

    def _is_well(self, group: Replica, node_id: NodeId) -> bool:
        status = leader_status(group)
        return (
            status is not None
            and self._view.is_up(node_id)
            and any(follower.node_id == node_id and follower.in_sync for follower in status.followers)
        )
