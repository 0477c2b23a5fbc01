"""The coordinator of the groups of one partition of __consumer_offsets: members' streams, deadlines, assignments.

    follows      applies the log, answers nothing
    leads        made sure of it with a majority and applied all that was committed: serves. Members that were here
                 before get their session's time anew, to come back
    leads no more: every stream ends with NOT_LEADER; members come back to the next one

Everything a member is told has been committed before. Timers decide nothing by themselves: they propose, and the log
has the last word (a member that came back meanwhile stays).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from fluxd.broker.coordinator_assigning import Assigning, Topics
from fluxd.broker.coordinator_log import Applied, CoordinatorLog, OffsetsReplica
from fluxd.broker.coordinator_revocations import Revocations
from fluxd.broker.coordinator_session import Session, taken_over
from fluxd.broker.coordinator_trimming import GroupsStateLog
from fluxd.broker.log_trimming import LogTrimming
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.group_commands import GroupCommands
from fluxd.core.groups import Group, GroupResult, Member, Ownership, partition_ids
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId as PartitionId
from fluxd.core.types import Term
from fluxd.observability import get_logger
from fluxd.raft.spec import Role
from fluxlog.v1 import group_log_pb2, groups_pb2

log = get_logger()

_RETRY = 0.5
"""After a timer's proposal failed (no majority at the moment)."""

MemberKey = tuple[str, bytes]


class Coordinator:
    """See the module.

    Args:
        wants_metadata: called when the coordinator begins to serve; `metadata_confirmed` is due after that.
    """

    def __init__(
        self, reactor: Reactor, replica: OffsetsReplica, topics: Topics, wants_metadata: Callable[[], None]
    ) -> None:
        self._reactor, self._replica, self._topics = reactor, replica, topics
        self._wants_metadata = wants_metadata
        self.commands = GroupCommands(reactor.random, reactor.wall_ms)
        self.log = CoordinatorLog(reactor, replica, self._applied)
        self.assigning = Assigning(reactor, self.log, self.commands, topics)
        self._term: Term | None = None
        """The term in which this coordinator serves, or is about to."""
        self._serving = False
        self._served = asyncio.Event()
        self._metadata_known = False
        """Topics that are not there were deleted, rather than not heard of yet."""
        self._sessions: dict[MemberKey, Session] = {}
        self._lapses: dict[MemberKey, tuple[float, Timer]] = {}
        self._trimming = LogTrimming(reactor, GroupsStateLog(self.log, self.commands))
        self._revocations = Revocations(reactor, self._take_overdue)
        self._owned: dict[str, tuple[int, dict[bytes, dict[PartitionId, Ownership]]]] = {}
        """Per group: generation, and what each member owns in it."""
        self._expiry: Timer | None = None
        replica.on_role.append(self._role_changed)
        self._role_changed()

    # ---- whether it serves

    @property
    def serving(self) -> bool:
        """It answers for its groups."""
        return self._serving

    @property
    def term(self) -> Term | None:
        """In which it leads; None: it does not."""
        return self._term

    async def wait_serving(self, seconds: float) -> None:
        """Wait until it serves.

        Raises:
            FluxError: NOT_LEADER; or NO_LEADER: it has just begun to lead, and is not ready in time.
        """
        if self._term is None:
            raise FluxError(Reason.NOT_LEADER, "this node does not coordinate the group (any more)")
        try:
            async with asyncio.timeout(seconds):
                await self._served.wait()
        except TimeoutError:
            raise FluxError(Reason.NO_LEADER, "the group's coordinator has just changed and reads its log") from None
        if not self._serving:
            raise FluxError(Reason.NOT_LEADER, "this node does not coordinate the group (any more)")

    def stop(self) -> None:
        """The node stops, or the replica is gone."""
        self._end_term()
        self.log.stop()
        if self._role_changed in self._replica.on_role:
            self._replica.on_role.remove(self._role_changed)

    def _role_changed(self) -> None:
        leads = self._replica.role is Role.LEADER
        if leads and self._term == self._replica.term:
            return
        self._end_term()
        if leads:
            self._term = self._replica.term
            self._begin(self._term)

    def _begin(self, term: Term) -> None:
        """Serve as soon as this node has made sure that it leads, and has applied all that was committed."""

        def confirmed(error: FluxError | None) -> None:
            if self._term != term:
                return
            if error is not None:
                self._reactor.call_at(self._reactor.now() + _RETRY, again)
                return
            self._serve()

        def again() -> None:
            if self._term == term:
                self.log.confirm(confirmed)

        self.log.confirm(confirmed)

    def _serve(self) -> None:
        self._serving = True
        self._served.set()
        groups = self.log.state.groups
        log.info("group_coordinator_began", partition=str(self._replica.group_id), groups=len(groups), term=self._term)
        for name, group in groups.items():
            for member in group.members.values():
                self._arm_lapse(name, member)
            self._group_changed(name)
        self._arm_expiry()
        self._trimming.begin()
        self._wants_metadata()

    def _end_term(self) -> None:
        if self._term is None:
            return
        self._term, self._serving, self._metadata_known = None, False, False
        self._served.set()  # whoever waits looks again
        self._served = asyncio.Event()
        for key in tuple(self._lapses):
            self._cancel_lapse(key)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._trimming.end()
        self._revocations.end()
        self.assigning.end()
        self._owned.clear()
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.end(FluxError(Reason.NOT_LEADER, f"the coordinator of group {session.group} has moved"))

    # ---- members

    async def join(self, group: str, join: group_log_pb2.JoinMember) -> Session:
        """Make a member, or let one go on; its stream is the returned session's. `leave_stream` is due at its end.

        Raises:
            FluxError: REJECTED; or UNKNOWN: join again with the same id.
        """
        future: asyncio.Future[Session | FluxError] = asyncio.get_running_loop().create_future()

        def joined(answer: GroupResult | FluxError) -> None:
            outcome = self._joined(group, answer)
            if not future.done():
                future.set_result(outcome)
            elif isinstance(outcome, Session):
                self.leave_stream(outcome)  # the stream broke while it was being opened

        self.log.propose(self.commands.join_member(group, join), joined)
        try:
            outcome = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and isinstance(opened := future.result(), Session):
                self.leave_stream(opened)
            raise
        if isinstance(outcome, FluxError):
            raise outcome
        return outcome

    def _joined(self, group: str, answer: GroupResult | FluxError) -> Session | FluxError:
        if isinstance(answer, FluxError):
            return answer
        if answer.reason is not None or answer.member is None:
            return FluxError(answer.reason or Reason.INTERNAL, answer.message, metadata=answer.metadata)
        if not self._serving:
            return FluxError(Reason.NOT_LEADER, f"the coordinator of group {group} has moved")
        key = (group, answer.member.member_id)
        self._cancel_lapse(key)
        earlier = self._sessions.get(key)
        if earlier is not None:
            earlier.end(taken_over())
        session = self._sessions[key] = Session(group, answer.member, resumed=answer.resumed, named=self.named)
        return session

    def leave_stream(self, session: Session) -> None:
        """A member's stream has ended: from now on it may be away for its session's time."""
        session.end()
        key = (session.group, session.member.member_id)
        if self._sessions.get(key) is session:
            del self._sessions[key]
            group = self.log.state.groups.get(session.group)
            member = group.members.get(session.member.member_id) if group else None
            if self._serving and member is not None and member.stream_epoch == session.member.stream_epoch:
                self._arm_lapse(session.group, member)

    async def leave(self, session: Session) -> None:
        """The member goes at once.

        Raises:
            FluxError: it may not have: then its session ends after its time.
        """
        session.leaving = True
        await self.log.ask(self.commands.remove_member(session.group, session.member, lapsed=False))

    async def release(self, session: Session, partitions: Iterable[PartitionId]) -> None:
        """The member gives partitions up.

        Raises:
            FluxError: it may not be so.
        """
        await self.log.ask(self.commands.free_partitions(session.group, session.member, partitions, taken=False))

    def messages(self, session: Session) -> list[groups_pb2.CoordinatorMessage]:
        """What the member has to be told now."""
        group = self.log.state.groups.get(session.group)
        if group is None or session.ended:
            return []
        owned = self._owned_by(group).get(session.member.member_id, {})
        return session.messages(group, owned, partial(self._revocations.left_ms, session.group))

    def session(self, group: str, member_id: bytes) -> Session | None:
        """A member's stream, if it has one."""
        return self._sessions.get((group, member_id))

    def away_remaining_ms(self, group: str, member_id: bytes) -> int | None:
        """How long a member without a stream has left; None: it has a stream."""
        lapse = self._lapses.get((group, member_id))
        return None if lapse is None else max(0, round((lapse[0] - self._reactor.now()) * 1000))

    def _arm_lapse(self, group: str, member: Member) -> None:
        self._lapse_at(group, member, self._reactor.now() + member.session_timeout_ms / 1000)

    def _lapse_at(self, group: str, member: Member, when: float) -> None:
        self._cancel_lapse((group, member.member_id))
        timer = self._reactor.call_at(when, partial(self._lapsed, group, member))
        self._lapses[group, member.member_id] = (when, timer)

    def _cancel_lapse(self, key: MemberKey) -> None:
        lapse = self._lapses.pop(key, None)
        if lapse is not None:
            lapse[1].cancel()

    def _lapsed(self, group: str, member: Member) -> None:
        log.info("group_member_lapsed", group=group, member=member.member_id.hex(), client=member.client_name)

        def removed(answer: GroupResult | FluxError) -> None:
            if isinstance(answer, FluxError) and self._serving and (group, member.member_id) in self._lapses:
                self._lapse_at(group, member, self._reactor.now() + _RETRY)

        self.log.propose(self.commands.remove_member(group, member, lapsed=True), removed)

    # ---- what the log says

    def _applied(self, applied: Applied) -> None:
        if not self._serving:
            return
        command = applied.command
        if command.HasField("free_partitions") and not command.free_partitions.taken and not applied.result.reason:
            session = self._sessions.get((command.group, command.free_partitions.member_id))
            if session is not None:
                session.released(partition_ids(command.free_partitions.topics))
        for name in applied.changed:
            self._group_changed(name)

    def _group_changed(self, name: str) -> None:
        group = self.log.state.groups.get(name)
        generation = self._owned.get(name, (None, {}))[0]
        if group is None:
            self._owned.pop(name, None)
        elif group.generation == generation:
            return  # offsets, or a member that came back
        self._check_members(name, group or Group(name))
        self._revocations.watch(group or Group(name), self._owned_by(group) if group is not None else {})
        for (of, _), session in self._sessions.items():
            if of == name:
                session.wake()
        self.assigning.plan(name)

    def _check_members(self, name: str, group: Group) -> None:
        """Streams of those who are members no more end."""
        for key in [key for key in self._sessions if key[0] == name and key[1] not in group.members]:
            self._sessions.pop(key).end(FluxError(Reason.FENCED_MEMBER, f"no member of group {name} any more"))
        for key in [key for key in self._lapses if key[0] == name and key[1] not in group.members]:
            self._cancel_lapse(key)

    def _owned_by(self, group: Group) -> dict[bytes, dict[PartitionId, Ownership]]:
        generation, owned = self._owned.get(group.name, (-1, {}))
        if generation != group.generation:
            owned = {}
            for each, owner in group.owners.items():
                owned.setdefault(owner.member_id, {})[each] = owner
            self._owned[group.name] = (group.generation, owned)
        return owned

    def _take_overdue(self, name: str, member_id: bytes, partitions: Sequence[PartitionId]) -> None:
        group = self.log.state.groups.get(name)
        member = group.members.get(member_id) if group is not None else None
        if member is not None:
            log.info("group_partitions_taken", group=name, member=member_id.hex(), partitions=len(partitions))
            command = self.commands.free_partitions(name, member, partitions, taken=True)
            self.log.propose(command, lambda answer: None)

    # ---- topics

    def metadata_confirmed(self, term: Term | None) -> None:
        """This node's metadata holds all that was committed when this coordinator had begun to serve in a term. That of
        a later one asks anew: topics that were created meanwhile are unknown here, not deleted.
        """
        if not self._serving or self._metadata_known or term != self._term:
            return
        self._metadata_known = True
        known = {
            each.topic_id
            for group in self.log.state.groups.values()
            for table in (group.offsets, group.owners, group.target)
            for each in table
        }
        self.forget_topics(topic_id for topic_id in known if self._topics.topic_by_id(topic_id) is None)
        self.assigning.begin()

    def forget_topics(self, topic_ids: Iterable[bytes]) -> None:
        """These were deleted."""
        ids = frozenset(topic_ids)
        if not self._serving or not ids:
            return
        for group in self.log.state.groups.values():
            if any(each.topic_id in ids for table in (group.offsets, group.owners, group.target) for each in table):
                self.log.propose(self.commands.forget_topics(ids), lambda answer: None)
                return

    def topics_changed(self) -> None:
        """Topics or partitions came or went."""
        for name in self.log.state.groups if self._serving else ():
            self.assigning.plan(name)

    # ---- expiry

    def _arm_expiry(self) -> None:
        when = self._reactor.now() + limits.OFFSETS_EXPIRY_INTERVAL
        self._expiry = self._reactor.call_at(when, self._expire)

    def _expire(self) -> None:
        before = self._reactor.wall_ms() - limits.OFFSETS_RETENTION_MS
        for name, group in self.log.state.groups.items():
            if not group.members and group.idle_since_ms < before:
                command = self.commands.remove_group(name, idle_since_ms=group.idle_since_ms)
                self.log.propose(command, lambda answer: None)
        self._arm_expiry()

    # ---- names

    def named(self, each: PartitionId) -> groups_pb2.TopicPartition:
        """A partition as clients call it; the name is empty when the topic was deleted."""
        topic = self._topics.topic_by_id(each.topic_id)
        name = topic.name if topic is not None else ""
        return groups_pb2.TopicPartition(topic=name, topic_id=each.topic_id, partition=each.partition)
