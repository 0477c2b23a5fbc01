"""All Raft groups of a node (`Replicas`): steps those that have work, has their files synced, keeps their timers.

Nothing polls. A group is stepped when a message, a proposal, a finished sync or a deadline asks for it; all groups that
became ready in one turn of the loop are stepped together, then their dirty files go to the pool, one job per group and
one for the votes of all.

Fail-stop: any exception in a group's step takes that replica out, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.runtime import NEVER_DUE, Reactor, Timer
from fluxd.core.types import GroupId, NodeId
from fluxd.raft import library
from fluxd.raft.group import Group
from fluxd.raft.healing import Healing
from fluxd.raft.heartbeats import Confirmed, Row
from fluxd.raft.leaving import hand_over
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.opening import Opened
from fluxd.raft.replicas import LogEvent, Replicas
from fluxd.raft.scrubbing import NodeFile
from fluxd.raft.spec import Role
from fluxd.raft.transport import Transport
from fluxd.raft.vote_syncing import VoteSyncing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2

_STALLED_AFTER = 0.5
"""The loop stood still for this long: read what arrived meanwhile before any timer acts (H22)."""
_STALL_GRACE = 0.05
_ALIVE_EVERY = 0.1


class Host(Replicas):
    """Runs a node's groups; arguments as of Replicas."""

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
        super().__init__(
            node_id, directory_id, reactor=reactor, fs=fs, votes=votes, transport=transport, log_event=log_event,
            votes_why=votes_why,
        )  # fmt: skip
        self._ready: dict[GroupId, Group] = {}
        self._scheduled = False
        self._syncing: dict[GroupId, float] = {}
        self._wait_for_votes: dict[GroupId, Group] = {}
        self._vote_syncing = (
            None
            if votes is None
            else VoteSyncing(reactor, votes, log_event, synced=self._votes_synced, stuck=self._votes_stuck)
        )
        self.files: list[NodeFile] = [self._vote_syncing] if self._vote_syncing is not None else []
        """Of the node, for the scrub."""
        self._healing = Healing(
            reactor, fs, log_event, in_use=self._in_use,
            may_open=lambda group: not votes or not votes.trouble or group.guard.votes_durable(),
            opened=self._opened_again, damaged=self._set_aside,
        )  # fmt: skip
        self._timers: dict[GroupId, tuple[float, Timer]] = {}
        self._library_now = 0.0
        self._alive_at = reactor.now()
        self._grace_until = self._alive_at
        self._disk_check_at = 0.0
        self._reactor.call_at(self._alive_at + _ALIVE_EVERY, self._alive)
        self._reactor.call_at(self._alive_at + limits.HEARTBEAT_INTERVAL * reactor.random(), self._beat)

    def close(self, group_id: GroupId) -> None:
        """Stop a replica; its files stay."""
        self._healing.forget(group_id)
        self._ready.pop(group_id, None)
        timer = self._timers.pop(group_id, None)
        if timer is not None:
            timer[1].cancel()
        super().close(group_id)

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

    def _confirm(self, peer: NodeId, row: Row, confirmed: Confirmed) -> bool:
        group = self.groups.get(row.group)
        return isinstance(group, Group) and group.confirm(peer, row, confirmed)

    def _lapsed(self, group_id: GroupId) -> None:
        group = self.groups[group_id]
        assert isinstance(group, Group)
        group.guard.stir()
        self._arm(group)

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
        self.heartbeats.peer_up(peer)
        for group in self._active():
            group.peer_up(peer)
            self.wake(group)

    def peer_down(self, peer: NodeId, *, gone: bool) -> None:
        """A link broke. `gone`: the peer's process has ended (its port refuses connections)."""
        self.heartbeats.peer_lost(peer)
        for group in self._active():
            group.peer_down(peer, gone=gone)
            self._arm(group)  # not stepped: of a thousand a third elects, and must not wait for the others

    def _in_use(self, group_id: GroupId) -> bool:
        """A step that changes its files is under way."""
        return group_id in self._syncing or self.housekeeping.is_busy(group_id)

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
        ready, proposed = self._some_ready(), list[Group]()
        for group in ready.values():
            if group.role is not Role.FAILED:
                self._guarded(group, group.step)
        for group in ready.values():
            if group.role is not Role.FAILED and group.group_id in self.groups:
                self._arm(group)
                if group.guard.waits_for_votes:
                    self._wait_for_votes[group.group_id] = group
                if group.trimming.moved:
                    group.trimming.moved = False
                    self.housekeeping.keep(group)
                if group.log.dirty and group.guard.is_leader and group.guard.peers:
                    proposed.append(group)
                else:
                    self._sync_log(group)
        self._sync_votes()
        if proposed:  # behind what was sent, which takes the next turn: to wake a thread first would hold it up
            self._reactor.call_soon(partial(self._sync_proposed, proposed))

    def _sync_proposed(self, groups: list[Group]) -> None:
        for group in groups:
            if self._is_open(group):
                self._sync_log(group)

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
            if self._reactor.now() >= self._grace_until:  # lists may have arrived
                self.heartbeats.expire()
            if self._reactor.now() >= self._disk_check_at:
                self._check_disk()
            self._reactor.call_at(self._reactor.now() + _ALIVE_EVERY, self._alive)

    def _check_disk(self) -> None:
        self._disk_check_at = self._reactor.now() + limits.DISK_CHECK_INTERVAL
        try:
            full = self._fs.free_bytes() < limits.DISK_RESERVE_BYTES
        except OSError:
            return  # whoever writes will find out
        if full != self.disk_full:
            self.disk_full = full
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
        library.CLOCK.leader_fallback = self.heartbeats.timeouts.election_min

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
            damaged = isinstance(error, CorruptDataError)
            why = f"its log is damaged: {error}" if damaged else f"{type(error).__name__}: {error}"
            group.fail(why)
            if damaged:
                self._set_aside(group, why)

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
        there = self.groups.get(group.group_id)
        if there is not group and isinstance(there, Group):
            group = there  # this was the timer of the one before it
        if there is not group or self._stopped or group.role is Role.FAILED:
            return
        if group.deadline > self._reactor.now():
            self._arm(group)  # it has moved since: nothing to be done yet
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
            self.housekeeping.keep(group)

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
