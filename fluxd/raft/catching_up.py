"""Replicas that take part, but whose leader no longer has what they need next: its log was trimmed while they were
away.

Such a replica keeps its log, its term and its vote, and goes on voting and answering heartbeats: with another replica
gone for good it may be needed for a majority. What the leader has left is copied beside its log (`Copying`). When the
copy is whole, the replica stands still and the copy takes the log's place.

Why nothing is lost by that. The copy begins with an entry F that was committed, and goes on with committed entries
only. It takes the log's place only if that log does not have F, looked at in the moment in which the replica stops to
write (`Group.lacks`). Then no entry of the log at or behind F is committed or can be: it would stand behind another
entry at F, or behind none. What is committed below F is in the snapshot that the copy brings. So all that this
replica's acknowledgements may ever have counted for is still there, and its promises to candidates are where they were,
with the votes. It is Raft's InstallSnapshot (thesis §5.1), done while the log still works.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fluxd.core.errors import CorruptDataError, InvariantViolation
from fluxd.core.runtime import Reactor
from fluxd.core.types import NodeId
from fluxd.raft.copying import CopyContext, Copying
from fluxd.raft.spec import Role
from fluxd.storage import copies
from fluxd.storage.filesystem import FileSystem

if TYPE_CHECKING:
    from fluxd.raft.group import Group

_AGAIN = 0.02
"""Until a sync or a snapshot of the log that is replaced is looked for again."""


class CatchingUp:
    """Of one node.

    Args:
        context: a copy's, made with what it does at its end.
        is_busy: something writes to the group's directory in the background.
        replace: close the replica, run a blocking step, open what is there then.
    """

    def __init__(
        self,
        reactor: Reactor,
        fs: FileSystem,
        *,
        context: Callable[[Callable[[], None]], CopyContext],
        is_busy: Callable[[Group], bool],
        replace: Callable[[Group, Callable[[], None]], None],
    ) -> None:
        self._reactor, self._fs, self._context, self._is_busy, self._replace = reactor, fs, context, is_busy, replace
        self._ending: set[Group] = set()
        """Their last copy is still being put away."""

    def watch(self, group: Group, *, begun: bool) -> None:
        """Help a replica when it needs it; call again when its files were opened again.

        Args:
            begun: there is something of a copy from an earlier process.
        """
        self.close(group)
        guard = group.guard
        guard.following.is_behind = begun
        guard.on_behind = partial(self._behind, group)
        guard.on_connected = partial(self._connected, group)
        guard.on_copy_piece = lambda peer, message: group.copying.receive(peer, message) if group.copying else None

    def close(self, group: Group) -> None:
        """The replica is closed; what was copied stays."""
        copying, group.copying = group.copying, None
        if copying is not None:
            self._ending.add(group)
            copying.close(when_idle=lambda: self._ending.discard(group))

    def _behind(self, group: Group, term: int, leader: NodeId) -> None:
        if group in self._ending:
            return  # the next heartbeat says so again
        if group.copying is None:
            group.copying = Copying(group.spec, self._context(lambda: self._copied(group)), beside=True)
        group.copying.leader_heard(term, leader)

    def _connected(self, group: Group) -> None:
        """Another leader has what it needs."""
        copying, group.copying = group.copying, None
        self._ending.add(group)
        if copying is None:
            self._discard(group)
        else:
            copying.close(when_idle=lambda: self._discard(group))

    def _discard(self, group: Group) -> None:
        self._reactor.run_blocking(
            [lambda: copies.discard(self._fs, group.group_id)], lambda error: self._ending.discard(group)
        )

    def _copied(self, group: Group) -> None:
        copying = group.copying
        if copying is None or copying.first is None or group.role is Role.FAILED:
            return
        if self._is_busy(group):
            self._reactor.call_at(self._reactor.now() + _AGAIN, lambda: self._copied(group))
            return
        try:
            lacks = group.lacks(*copying.first)
        except InvariantViolation as error:
            group.fail(str(error))
            return
        except (OSError, CorruptDataError) as error:  # of the log: the next heartbeat begins again, with what is there
            group.copying = None
            group.read_failed(error)
            return
        if lacks:
            self._replace(group, partial(copies.decide, self._fs, group.group_id, group.spec.generation))
        else:
            self._connected(group)
