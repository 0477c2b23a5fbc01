"""All Raft groups of a node: opens them, steps those that have work, has their files synced, keeps their timers.

Nothing polls. A group is stepped when a message, a proposal, a finished sync or a deadline asks for it; all groups that
became ready in one turn of the loop are stepped together, then their dirty files go to the pool, one job per group and
one for the votes of all.

Fail-stop: any exception in a group's step takes that replica out, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId, NodeId
from fluxd.raft import library
from fluxd.raft.campaigns import Campaigns
from fluxd.raft.catching_up import CatchingUp
from fluxd.raft.context import GroupContext
from fluxd.raft.copy_pace import CopyPace
from fluxd.raft.copying import CopyContext, Copying
from fluxd.raft.group import Group
from fluxd.raft.healing import Backoff, Healing
from fluxd.raft.heartbeats import Heartbeats, Row
from fluxd.raft.housekeeping import Housekeeping
from fluxd.raft.leaving import Leaving, hand_over
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.opening import Damaged, Opened, open_replica
from fluxd.raft.progress import NEVER_DUE
from fluxd.raft.spec import GroupSpec, Role
from fluxd.raft.transport import Transport
from fluxd.raft.vote_syncing import VoteSyncing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.tail import TailBudget
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2

Replica = Group | OfflineGroup

_STALLED_AFTER = 0.5
"""The loop stood still for this long: read what arrived meanwhile before any timer acts (H22)."""
_STALL_GRACE = 0.05
_ALIVE_EVERY = 0.1
_IDLE_CHECK = 0.02


class LogEvent(Protocol):
    """Structured logging: an event and its fields."""

    def __call__(self, event: str, **fields: object) -> None:
        """Log it."""


class Host:
    """Runs a node's groups.

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
        library.check_library()
        self.node_id, self.directory_id = node_id, directory_id
        self.groups: dict[GroupId, Replica] = {}
        self.bind: Callable[[GroupSpec, Callable[[], None]], None] | None = None
        """Commits that a replica's vote is bound to this node's directory, then calls back: set by who can. Without it
        a replica that is out stays out."""
        self.on_reopened: Callable[[Replica], None] = lambda replica: None
        """A replica took the place of another object."""
        self._reactor, self._fs, self._votes, self._votes_why = reactor, fs, votes, votes_why
        self._transport, self._log_event = transport, log_event
        self._leaving = Leaving(reactor, log_event, self._set_aside)
        self._ready: dict[GroupId, Group] = {}
        self._scheduled = False
        self._syncing: dict[GroupId, float] = {}
        self._reopening: set[GroupId] = set()
        self._wait_for_votes: dict[GroupId, Group] = {}
        self._copy_pace = CopyPace(reactor)
        self._housekeeping = Housekeeping(reactor, log_event, is_open=self._is_open, trimmed=self._trimmed)
        self._vote_syncing = (
            None
            if votes is None
            else VoteSyncing(reactor, votes, log_event, synced=self._votes_synced, stuck=self._votes_stuck)
        )
        self._healing = Healing(
            reactor, fs, in_use=self._in_use,
            may_open=lambda group: not votes or not votes.trouble or group.guard.votes_durable(),
            opened=self._opened_again, damaged=self._set_aside,
        )  # fmt: skip
        self._backoffs: dict[GroupId, Backoff] = {}
        self._timers: dict[GroupId, tuple[float, Timer]] = {}
        self._library_now = 0.0
        self._alive_at = reactor.now()
        self._grace_until = self._alive_at
        self._stopped = False
        self._disk_full, self._disk_check_at = False, 0.0
        self._campaigns, self._tails = Campaigns(reactor.now), TailBudget()
        self.heartbeats = Heartbeats(reactor, transport, self._confirm)
        self._catching_up = CatchingUp(
            reactor, fs, context=self._copy_context, replace=self._replace,
            is_busy=lambda group: self._in_use(group.group_id),
        )  # fmt: skip
        self._reactor.call_at(self._alive_at + _ALIVE_EVERY, self._alive)
        self._reactor.call_at(self._alive_at + limits.HEARTBEAT_INTERVAL * reactor.random(), self._beat)

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
            enter=self._enter, read_failed=self._leaving.read_failed, heartbeats=self.heartbeats,
            campaigns=self._campaigns, disk_full=lambda: self._disk_full,
        )  # fmt: skip
        group = Group(spec, opened.log, opened.producers, opened.log_start, context)
        self._catching_up.watch(group, begun=opened.copy_begun)
        return group

    def _note_opened(self, spec: GroupSpec, opened: Opened) -> None:
        opened.log.configure(segment_bytes=spec.segment_bytes, segment_ms=spec.segment_ms)
        opened.log.share_tail(self._tails)
        self._housekeeping.opened(spec.group_id, opened)

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
            bind=self.bind, pace=self._copy_pace, finished=finished, disk_full=lambda: self._disk_full,
        )  # fmt: skip

    def _replace(self, group: Group, decide: Callable[[], None]) -> None:
        """A replica stops; a blocking step decides what is its log from now on; whatever that is then is opened."""
        self._log_event("log_replaced", group=str(group.group_id), last_index=group.log.last_index)
        offline = OfflineGroup(group.spec, "its log is being replaced by a copy of the leader's")
        self.close(group.group_id)
        self.groups[group.group_id] = offline
        self._reactor.run_blocking([decide], lambda error: self._reopen(offline))

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
        self._healing.forget(group_id)
        self._housekeeping.forget(group_id)
        self._backoffs.pop(group_id, None)
        replica = self.groups.pop(group_id, None)
        self._ready.pop(group_id, None)
        timer = self._timers.pop(group_id, None)
        if timer is not None:
            timer[1].cancel()
        if isinstance(replica, Group):
            self._catching_up.close(replica)
            replica.close()
        elif replica is not None and replica.copying is not None:
            replica.copying.close()

    # ------------------------------------------------------------------ events
    def receive(self, peer: NodeId, messages: Iterable[peer_pb2.GroupMessage]) -> None:
        """Messages of one peer, as its stream authenticated it."""
        for message in messages:
            if not message.topic_id:
                self._receive_list(peer, message)
                continue
            group = self.groups.get(GroupId(message.topic_id, message.partition))
            if isinstance(group, Group) and group.role is not Role.FAILED:
                self._guarded(group, lambda group=group, message=message: group.receive(peer, message))  # type: ignore[misc]
                self.wake(group)
            elif isinstance(group, OfflineGroup) and group.copying is not None:
                group.copying.receive(peer, message)

    def _receive_list(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        if message.HasField("heartbeat_list"):
            self.heartbeats.on_list(peer, message.heartbeat_list)
        elif message.HasField("heartbeat_list_reply"):
            self.heartbeats.on_reply(peer, message.heartbeat_list_reply)

    def _confirm(self, peer: NodeId, row: Row) -> bool:
        group = self.groups.get(row.group)
        return isinstance(group, Group) and group.role is not Role.FAILED and group.guard.confirm(peer, row)

    def _beat(self) -> None:
        if self._stopped:
            return
        self._notice_stall()
        if self._reactor.now() < self._grace_until:  # the answers may have arrived
            self._reactor.call_at(self._grace_until, self._beat)
            return
        self.heartbeats.beat()
        self._reactor.call_at(self._reactor.now() + limits.HEARTBEAT_INTERVAL, self._beat)

    def peer_up(self, peer: NodeId) -> None:
        """A link to a peer stands."""
        for group in self._active():
            group.peer_up(peer)
            self.wake(group)

    def peer_down(self, peer: NodeId, *, gone: bool) -> None:
        """A link broke. `gone`: the peer's process has ended (its port refuses connections)."""
        self.heartbeats.peer_lost(peer)
        for group in self._active():
            group.peer_down(peer, gone=gone)
            self.wake(group)

    def _in_use(self, group_id: GroupId) -> bool:
        """A step that changes its files is under way."""
        return group_id in self._syncing or self._housekeeping.is_busy(group_id)

    def _is_open(self, group: Group) -> bool:
        return not self._stopped and self.groups.get(group.group_id) is group and group.role is not Role.FAILED

    def _trimmed(self, group: Group) -> None:
        group.on_trimmed()
        self.wake(group)

    def _active(self) -> list[Group]:
        return [g for g in self.groups.values() if isinstance(g, Group) and g.role is not Role.FAILED]

    # ------------------------------------------------------------------ stepping
    def wake(self, group: Group) -> None:
        """Step a group soon."""
        self._ready[group.group_id] = group
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._reactor.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        self._notice_stall()
        if self._reactor.now() < self._grace_until:
            self._scheduled = True
            self._reactor.call_at(self._grace_until, self._run)
            return
        ready = self._some_ready()
        for group in ready.values():
            if group.role is not Role.FAILED:
                self._guarded(group, group.step)
        for group in ready.values():
            if group.role is not Role.FAILED and group.group_id in self.groups:
                self._sync_log(group)
                self._arm(group)
                if group.guard.waits_for_votes:
                    self._wait_for_votes[group.group_id] = group
                if group.trimming.moved:
                    group.trimming.moved = False
                    self._housekeeping.keep(group)
        self._sync_votes()

    def _some_ready(self) -> dict[GroupId, Group]:
        """Those that are stepped in this turn; the others follow when what has arrived meanwhile was read."""
        if len(self._ready) <= limits.GROUPS_STEPPED_MAX:
            ready, self._ready = self._ready, {}
            return ready
        self._scheduled = True
        self._reactor.call_soon(self._run)
        return {group_id: self._ready.pop(group_id) for group_id in list(self._ready)[: limits.GROUPS_STEPPED_MAX]}

    def _alive(self) -> None:
        if not self._stopped:
            self._notice_stall()
            self._campaigns.expire()
            if self._reactor.now() >= self._disk_check_at:
                self._check_disk()
            self._reactor.call_at(self._reactor.now() + _ALIVE_EVERY, self._alive)

    def _check_disk(self) -> None:
        self._disk_check_at = self._reactor.now() + limits.DISK_CHECK_INTERVAL
        try:
            full = self._fs.free_bytes() < limits.DISK_RESERVE_BYTES
        except OSError:
            return  # whoever writes will find out
        if full != self._disk_full:
            self._disk_full = full
            self._log_event("disk_filled" if full else "disk_has_room_again", node=self.node_id)

    def _notice_stall(self) -> None:
        now = self._reactor.now()
        if now - self._alive_at > _STALLED_AFTER:
            self._log_event("loop_stalled", seconds=round(now - self._alive_at, 3))
            self._grace_until = now + _STALL_GRACE
        self._alive_at = now

    def _enter(self) -> None:
        self._library_now = max(self._reactor.now(), self._library_now + library.STEP)
        library.CLOCK.now = self._library_now

    def _guarded(self, group: Group, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the boundary of fail-stop: whatever it is, this replica does not go on
            self._stop_group(group, error)

    # ------------------------------------------------------------------ errors of the disk
    def _stop_group(self, group: Group, error: BaseException) -> None:
        """Until its files are open again, or it was copied; for good after anything else: that is not the disk's."""
        if isinstance(error, OSError):
            self._healing.stop(group, error)
        else:
            group.fail(f"{type(error).__name__}: {error}")
            if isinstance(error, CorruptDataError):
                self._set_aside(group, f"its log is damaged: {error}")

    def _opened_again(self, group: Group, opened: Opened) -> None:
        self._note_opened(group.spec, opened)
        group.reopen(opened.log, opened.producers, opened.log_start)
        self._catching_up.watch(group, begun=opened.copy_begun)
        self.wake(group)

    def _votes_stuck(self, why: str) -> None:
        for group in self._active():
            if not group.guard.votes_durable():
                self._healing.stop(group, OSError(f"the node's votes cannot be written: {why}"))

    def _votes_synced(self) -> None:
        # Who has not been stepped since it may have begun to wait is ready. Not all: with thousands of groups of which
        # hundreds elect, there are many syncs.
        waiting, self._wait_for_votes = self._wait_for_votes | self._ready, {}
        for group in waiting.values():
            if self._is_open(group) and group.guard.waits_for_votes:
                self._guarded(group, group.on_votes_synced)
                self.wake(group)
        for replica in tuple(self.groups.values()):
            if isinstance(replica, OfflineGroup) and replica.copying is not None:
                replica.copying.on_votes_synced()

    def _arm(self, group: Group) -> None:
        deadline = group.deadline
        if deadline == NEVER_DUE:
            return
        known = self._timers.get(group.group_id)
        if known is not None:
            if known[0] <= deadline:
                return  # fires early and is set again then: cheaper than moving it with every message
            known[1].cancel()
        deadline = max(deadline, self._reactor.now())
        timer = self._reactor.call_at(deadline, lambda: self._timer_fired(group))
        self._timers[group.group_id] = (deadline, timer)

    def _timer_fired(self, group: Group) -> None:
        self._timers.pop(group.group_id, None)
        if self.groups.get(group.group_id) is not group or self._stopped or group.role is Role.FAILED:
            return
        if group.deadline > self._reactor.now():
            self._arm(group)  # it has moved since, as a follower's does with each heartbeat: nothing to be done yet
        else:
            self.wake(group)

    # ------------------------------------------------------------------ syncing
    def _sync_log(self, group: Group) -> None:
        since = self._syncing.get(group.group_id)
        if since is not None:
            if self._reactor.now() - since > limits.ELECTION_TIMEOUT_MIN:
                group.disk_hangs()
            return
        if not group.log.dirty:
            return
        job = group.log.begin_sync()
        self._syncing[group.group_id] = self._reactor.now()

        def synced(error: BaseException | None) -> None:
            self._syncing.pop(group.group_id, None)
            if self._stopped or self.groups.get(group.group_id) is not group or group.role is Role.FAILED:
                return
            if error is not None:
                self._stop_group(group, error)
                return

            def finish() -> None:
                group.log.finish_sync(job, group.commit_index)
                group.on_log_synced()

            self._guarded(group, finish)
            self.wake(group)
            self._housekeeping.keep(group)

        self._reactor.run_blocking(job.steps, synced)

    def _sync_votes(self) -> None:
        if self._vote_syncing is not None:
            self._vote_syncing.sync()

    # ------------------------------------------------------------------ end
    def hand_over(self, done: Callable[[], None]) -> None:
        """Hand every leadership to a caught-up replica; `done` when none is left that could be, or after two
        election timeouts.
        """
        hand_over(self._reactor, self._active, done)

    def stop(self) -> None:
        """Stop all groups. What is in the logs stays; a clean stop syncs it, so that the next start has
        little to check.
        """
        for group in self._active():
            if group.log.dirty and group.group_id not in self._syncing:
                try:
                    self._sync_now(group)
                except OSError as error:
                    self._log_event("last_sync_failed", group=str(group.group_id), why=str(error))
        self._stopped = True
        if self._vote_syncing is not None:
            self._vote_syncing.stop()
        for group_id in tuple(self.groups):
            self.close(group_id)

    @staticmethod
    def _sync_now(group: Group) -> None:
        job = group.log.begin_sync()
        for step in job.steps:
            step()
        group.log.finish_sync(job, group.commit_index)
