"""Replicas that leave: all of a node that stops, and one that finds its own log damaged, to be copied anew.

A damaged one leaves when the group can do without it, not before: what is damaged is one entry, and the rest still
counts. A leader hands over first, to a follower that has everything. A follower asks its leader, who lets it go when
the others that are in sync are a majority (`Leading.may_leave`), one after the other. So damage on two of three disks
at the same time is repaired in turn, and a group that has lost too many replicas is not stopped by it. Until then the
damaged entry is refused to readers, and `why` says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId, NodeId, RaftIndex
from fluxd.raft.group import Group
from fluxd.raft.spec import Role
from fluxd.storage.errors import is_damage
from fluxlog.v1 import peer_pb2

_HAND_OVER_CHECK = 0.02
_ASK_AGAIN = 1.0
_HAND_OVER_AGAIN = (5.0, 300.0)
"""At first, and at most: each time twice as long, since whoever took over may be damaged, too, and hand back."""


def hand_over(reactor: Reactor, active: Callable[[], list[Group]], done: Callable[[], None]) -> None:
    """Hand every leadership of a node to a caught-up replica; `done` when none is left that could be, or after two
    election timeouts.
    """
    deadline = reactor.now() + limits.ELECTION_TIMEOUT_MAX
    for group in active():
        group.guard.elections.retire()

    def check() -> None:
        leading = [g for g in active() if g.role is Role.LEADER and g.guard.peers]
        if not leading or reactor.now() >= deadline:
            done()
            return
        for group in leading:
            if not group.guard.leading.handing_over:
                group.transfer(None)
        reactor.call_at(reactor.now() + _HAND_OVER_CHECK, check)

    check()


@dataclass(slots=True)
class _Damaged:
    group: Group
    why: str
    segment: RaftIndex | None
    """Where it is; None: not known."""
    nonce: int = 0
    hand_over_at: float = 0.0
    patience: float = _HAND_OVER_AGAIN[0]
    timer: Timer | None = None
    listener: Callable[[], None] = lambda: None


class Leaving:
    """All such replicas of a node.

    Args:
        set_aside: takes a replica out and has it copied.
    """

    def __init__(
        self, reactor: Reactor, log_event: Callable[..., None], set_aside: Callable[[Group, str], None]
    ) -> None:
        self._reactor, self._log_event, self._set_aside = reactor, log_event, set_aside
        self._damaged: dict[GroupId, _Damaged] = {}

    def read_failed(self, group: Group, error: BaseException) -> None:
        """Committed entries of a replica that takes part could not be read: no damage, if they were trimmed since."""
        known = self._damaged.get(group.group_id)
        if not is_damage(error) or group.log.scrub.was_trimmed(error) or (known is not None and known.group is group):
            return
        damaged = _Damaged(group, f"its log is damaged: {error}", group.log.scrub.segment_of(error))
        group.why = damaged.why
        self._log_event("log_damaged", group=str(group.group_id), why=str(error))
        self._damaged[group.group_id] = damaged
        group.guard.on_copy_reply = lambda peer, message: self._replied(damaged, peer, message)
        damaged.listener = lambda: self._reactor.call_soon(lambda: self._try(damaged))
        group.on_role.append(damaged.listener)
        damaged.listener()

    def read_again(self, group: Group, segment: RaftIndex) -> None:
        """A segment (its first index) was read from end to end, and is sound: also where it could not be read before,
        if the replica has not left meanwhile."""
        damaged = self._damaged.get(group.group_id)
        if damaged is not None and damaged.group is group and damaged.segment == segment:
            self._is_well(damaged, "damage_read_again")

    def _is_well(self, damaged: _Damaged, event: str) -> None:
        group = damaged.group
        self._forget(damaged)
        group.why = "" if group.why == damaged.why else group.why
        self._log_event(event, group=str(group.group_id), why=damaged.why)

    def _try(self, damaged: _Damaged) -> None:
        group = damaged.group
        if self._damaged.get(group.group_id) is not damaged:
            return
        if damaged.timer is not None:
            damaged.timer.cancel()
        if group.role is Role.FAILED:  # or closed
            self._forget(damaged)
            return
        if damaged.segment is not None and group.log.scrub.is_gone(damaged.segment):
            self._is_well(damaged, "damage_trimmed")
            return
        damaged.timer = self._reactor.call_at(
            self._reactor.now() + _ASK_AGAIN * damaged.group.guard.heartbeats.timeouts.slowness,
            lambda: self._try(damaged),
        )
        if group.role is Role.LEADER:
            self._hand_over(damaged)
        elif group.leader_id is not None:
            self._ask(damaged, group.leader_id)

    def _hand_over(self, damaged: _Damaged) -> None:
        now, leading = self._reactor.now(), damaged.group.guard.leading
        if now < damaged.hand_over_at or leading.handing_over:
            return
        if any(leading.in_sync_until(peer) >= now for peer in leading.progress):
            damaged.hand_over_at = now + damaged.patience
            damaged.patience = min(2 * damaged.patience, _HAND_OVER_AGAIN[1])
            damaged.group.transfer(None)

    def _ask(self, damaged: _Damaged, leader: NodeId) -> None:
        group = damaged.group
        message = group.guard.outbox.message()
        message.copy_request.leave, message.copy_request.leader_term = True, group.term
        damaged.nonce = message.copy_request.nonce = int(self._reactor.random() * (1 << 53)) + 1
        group.guard.outbox.send(leader, message)

    def _replied(self, damaged: _Damaged, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        group, reply = damaged.group, message.copy_reply
        if reply.nonce != damaged.nonce or not reply.may_leave or message.term != group.term:
            return
        damaged.nonce = 0
        self._reactor.call_soon(lambda: self._leave(damaged))

    def _leave(self, damaged: _Damaged) -> None:
        group = damaged.group
        if self._damaged.get(group.group_id) is damaged and group.role is not Role.FAILED:
            self._forget(damaged)
            self._set_aside(group, damaged.why)

    def _forget(self, damaged: _Damaged) -> None:
        del self._damaged[damaged.group.group_id]
        if damaged.timer is not None:
            damaged.timer.cancel()
        if damaged.listener in damaged.group.on_role:
            damaged.group.on_role.remove(damaged.listener)
