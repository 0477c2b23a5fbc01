"""The replicas that a node has: how each is opened, put aside, repaired, replaced by a copy, and closed.

What is missing or damaged becomes an `OfflineGroup`; where the others can say what was committed, it is copied and then
opened as if the node had just started.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.runtime import Reactor
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.campaigns import Campaigns
from fluxd.raft.catching_up import CatchingUp
from fluxd.raft.context import GroupContext
from fluxd.raft.copy_pace import CopyPace
from fluxd.raft.copying import CopyContext, Copying
from fluxd.raft.group import Group
from fluxd.raft.healing import Backoff
from fluxd.raft.heartbeats import Confirmed, Heartbeats, Row
from fluxd.raft.housekeeping import Housekeeping
from fluxd.raft.leaving import Leaving
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.opening import Damaged, Opened, open_replica
from fluxd.raft.spec import GroupSpec
from fluxd.raft.transport import Transport
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.tail import TailBudget
from fluxd.storage.votes import VoteFile

Replica = Group | OfflineGroup

_IDLE_CHECK = 0.02


class LogEvent(Protocol):
    """Structured logging: an event and its fields."""

    def __call__(self, event: str, **fields: object) -> None:
        """Log it."""


class Replicas(ABC):
    """A node's replicas. What steps them and syncs their files is the `Host`.

    Args:
        directory_id: of this node's data directory; a replica bound to another one stays out.
        votes: None when the vote file is missing or corrupt: then every replica stays out, for `votes_why`.
    """

    def __init__(
        self,
        node_id: NodeId,
        directory_id: bytes,
        *,
        reactor: Reactor,
        fs: FileSystem,
        votes: VoteFile | None,
        transport: Transport,
        log_event: LogEvent,
        votes_why: str = "",
    ) -> None:
        self.node_id, self.directory_id = node_id, directory_id
        self.groups: dict[GroupId, Replica] = {}
        self.bind: Callable[[GroupSpec, Callable[[], None]], None] | None = None
        """Commits that a replica's vote is bound to this node's directory, then calls back: set by who can. Without it
        a replica that is out stays out."""
        self.on_reopened: Callable[[Replica], None] = lambda replica: None
        """A replica took the place of another object."""
        self._reactor, self._fs, self._votes, self._votes_why = reactor, fs, votes, votes_why
        self._transport, self._log_event = transport, log_event
        self._stopped = False
        self.disk_full = False
        """Only the reserve of free space is left."""
        self._reopening: set[GroupId] = set()
        self._backoffs: dict[GroupId, Backoff] = {}
        self._tails = TailBudget()
        self._copy_pace = CopyPace(reactor, lambda pace: log_event("copy_pace_raised", bytes_per_second=pace))
        self.heartbeats = Heartbeats(reactor, transport, self._confirm, self._lapsed)
        self._campaigns = Campaigns(reactor.now, self.heartbeats.timeouts)
        self._leaving = Leaving(reactor, log_event, self._set_aside)
        self.housekeeping = Housekeeping(reactor, log_event, is_open=self._is_open, trimmed=self._trimmed)
        self._catching_up = CatchingUp(
            reactor, fs, context=self._copy_context, replace=self._replace,
            is_busy=lambda group: self._in_use(group.group_id),
        )  # fmt: skip

    # ------------------------------------------------------------------ what the host does
    @abstractmethod
    def wake(self, group: Group) -> None:
        """Step a group soon."""

    @abstractmethod
    def _enter(self) -> None:
        """Set the library's clock."""

    @abstractmethod
    def _in_use(self, group_id: GroupId) -> bool:
        """A step that changes its files is under way."""

    @abstractmethod
    def _is_open(self, group: Group) -> bool:
        """It is one of the node's replicas, and takes part."""

    @abstractmethod
    def _trimmed(self, group: Group) -> None:
        """Its log has lost its head."""

    @abstractmethod
    def _confirm(self, peer: NodeId, row: Row, confirmed: Confirmed) -> bool:
        """A row of a heartbeat list is right."""

    @abstractmethod
    def _lapsed(self, group_id: GroupId) -> None:
        """It is not repeated."""

    @abstractmethod
    def _sync_votes(self) -> None:
        """Begin to make durable what was voted."""

    # ------------------------------------------------------------------ open and close
    def open(self, spec: GroupSpec) -> Replica:
        """Open or create this node's replica of a group. Blocks.

        A replica whose disk was lost is UNADMITTED, with the reason.
        """
        why = self._why_unadmitted(spec)
        return self._adopt(spec, why or open_replica(self._fs, spec, has_voted=self._has_voted(spec)))

    def open_soon(self, spec: GroupSpec, done: Callable[[Replica], None]) -> None:
        """As `open`, with the disk's part off the loop; `done` is not called when the host is stopped before."""
        found: list[Opened | str] = [self._why_unadmitted(spec)]
        has_voted = self._has_voted(spec)

        def read() -> None:
            found[0] = found[0] or open_replica(self._fs, spec, has_voted=has_voted)

        def opened(error: BaseException | None) -> None:
            if self._stopped:
                if isinstance(found[0], Opened):
                    found[0].log.close()
                return
            done(self._adopt(spec, found[0] if error is None else f"it could not be opened: {error}"))

        self._reactor.run_blocking([read], opened)

    def _has_voted(self, spec: GroupSpec) -> bool:
        return self._votes is not None and self._votes.get(spec.group_id, spec.generation) is not None

    def _adopt(self, spec: GroupSpec, opened: Opened | str) -> Replica:
        assert not isinstance(self.groups.get(spec.group_id), Group)
        replica: Replica
        if isinstance(opened, Opened):
            try:
                replica = self._begin(spec, opened)
            except CorruptDataError as failure:  # an entry that nothing had read before
                opened.log.close()
                opened = Damaged(failure)
            except Exception as failure:  # noqa: BLE001 - the boundary of fail-stop, before there is a replica to stop
                opened.log.close()
                opened = f"it could not be started: {type(failure).__name__}: {failure}"
        if isinstance(opened, str):
            replica = OfflineGroup(spec, opened)
            self._log_event("replica_unadmitted", group=str(spec.group_id), why=opened)
            if isinstance(opened, Damaged):
                self._repair(replica)
            elif self._votes is not None:
                self._open_later(replica)
        self.groups[spec.group_id] = replica
        if isinstance(replica, Group):
            self.wake(replica)
        return replica

    def _begin(self, spec: GroupSpec, opened: Opened) -> Group:
        assert self._votes is not None
        self._note_opened(spec, opened)
        context = GroupContext(
            self.node_id, self._reactor, self._transport, self._votes, self._log_event, wake=self.wake,
            enter=self._enter, read_failed=self._leaving.read_failed, read_again=self._leaving.read_again,
            heartbeats=self.heartbeats, campaigns=self._campaigns, disk_full=lambda: self.disk_full,
        )  # fmt: skip
        group = Group(spec, opened.log, opened.producers, opened.log_start, context)
        self._catching_up.watch(group, begun=opened.copy_begun)
        return group

    def _note_opened(self, spec: GroupSpec, opened: Opened) -> None:
        opened.log.configure(segment_bytes=spec.segment_bytes, segment_ms=spec.segment_ms)
        opened.log.share_tail(self._tails)
        self.housekeeping.opened(spec.group_id, opened)

    def _why_unadmitted(self, spec: GroupSpec) -> str:
        if self._votes is None:
            return self._votes_why or "the node's votes are missing"
        if spec.bound_directory != self.directory_id:
            bound, own = spec.bound_directory.hex()[:8], self.directory_id.hex()[:8]
            return Damaged(
                f"its vote is bound to data directory {bound}…, this is {own}…: the disk was replaced or wiped"
            )
        return ""

    def _can_copy(self, spec: GroupSpec) -> bool:
        """A majority without this replica can say what was committed."""
        return self.bind is not None and self._votes is not None and len(spec.voters) >= limits.COPY_VOTERS_MIN

    def _repair(self, offline: OfflineGroup) -> None:
        """Begin to copy."""
        if len(offline.voters) < limits.COPY_VOTERS_MIN:
            offline.say_why_it_stays_out()
        if not self._can_copy(offline.spec):
            return
        offline.copying = Copying(offline.spec, self._copy_context(lambda: self._reopen(offline)))
        offline.copying.start()

    def _set_aside(self, group: Group, why: str) -> None:
        """The replica's log is damaged: from now on it takes no part."""
        group_id = group.group_id
        if self.groups.get(group_id) is not group:
            return
        offline = self.groups[group_id] = OfflineGroup(group.spec, Damaged(why))
        offline.on_role = group.on_role
        self._log_event("replica_unadmitted", group=str(group_id), why=why)
        self._catching_up.close(group)
        group.close()

        def repair() -> None:
            if self._in_use(group_id):  # its files are still being changed
                self._reactor.call_at(self._reactor.now() + _IDLE_CHECK, repair)
            elif self.groups.get(group_id) is offline and not self._stopped:
                self._repair(offline)

        repair()

    def _open_later(self, offline: OfflineGroup) -> None:
        """Its files could not be opened: that may pass."""
        now = self._reactor.now()
        wait = self._backoffs.setdefault(offline.group_id, Backoff()).next(now)
        self._reactor.call_at(now + wait, lambda: self._reopen(offline))

    def _copy_context(self, finished: Callable[[], None]) -> CopyContext:
        assert self._votes is not None
        return CopyContext(
            self._reactor, self._fs, self._transport, self._votes, self._log_event, sync_votes=self._sync_votes,
            bind=self.bind, pace=self._copy_pace, finished=finished, disk_full=lambda: self.disk_full,
        )  # fmt: skip

    def _replace(self, group: Group, decide: Callable[[], None]) -> None:
        """A replica stops; a blocking step decides what is its log from now on; whatever that is then is opened."""
        self._log_event("log_replaced", group=str(group.group_id), last_index=group.log.last_index)
        offline = OfflineGroup(group.spec, "its log is being replaced by a copy of the leader's")
        self.close(group.group_id)
        self.groups[group.group_id] = offline

        def decided(error: BaseException | None) -> None:
            if error is not None:
                self._log_event("log_not_replaced", group=str(group.group_id), why=str(error))
            self._reopen(offline)

        self._reactor.run_blocking([decide], decided)

    def _reopen(self, offline: OfflineGroup) -> None:
        """What is on the disk now is this node's replica: a copy is finished, or an error may have passed."""
        spec = replace(offline.spec, bound_directory=self.directory_id)
        if self._stopped or self.groups.get(spec.group_id) is not offline:
            return

        def reopened(replica: Replica) -> None:
            if spec.group_id not in self._reopening:
                self.close(spec.group_id)  # the partition was deleted meanwhile
                return
            self._reopening.discard(spec.group_id)
            self.on_reopened(replica)

        self._reopening.add(spec.group_id)
        self.open_soon(spec, reopened)

    def close(self, group_id: GroupId) -> None:
        """Stop a replica; its files stay."""
        self._reopening.discard(group_id)
        self.housekeeping.forget(group_id)
        self._backoffs.pop(group_id, None)
        replica = self.groups.pop(group_id, None)
        if isinstance(replica, Group):
            self._catching_up.close(replica)
            replica.close()
        elif replica is not None and replica.copying is not None:
            replica.copying.close()
