"""A coordinator over a real group of one voter, in simulated time: takeover, deadlines, expiry, forgotten topics."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar, cast

import pytest

from fluxd.broker.cluster import ClusterView
from fluxd.broker.coordinator import Coordinator
from fluxd.broker.coordinator_log import Applied, CoordinatorLog, OffsetsReplica
from fluxd.broker.coordinator_session import Session
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import GroupId, NodeId, Offset, Term
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.spec import GroupSpec, Role
from fluxd.storage.directory import VOTES_NAME, open_directory
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import group_log_pb2, groups_pb2, peer_pb2
from tests.group_kit import member_id
from tests.simulation.disk import SimDisk
from tests.unit.broker_fakes import ME, Clock, Metadata, directory, local_node, partition

T = TypeVar("T")
OFFSETS = GroupId(bytes([9]) * 16, 0)
Told = list[groups_pb2.CoordinatorMessage]


class NoNetwork:
    """A node alone."""

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        return False

    def is_connected(self, peer: NodeId) -> bool:
        return False


class OneNode:
    """One process with one partition of __consumer_offsets. A second one on the same disk is a restart."""

    def __init__(
        self, disk: SimDisk | None = None, metadata: Metadata | None = None, *, confirms_metadata: bool = True
    ) -> None:
        self.clock = Clock()
        self.disk = disk or SimDisk(random.Random(1))
        open_directory(self.disk, None, ME, lambda count: directory(ME))
        self.host = Host(
            ME, directory(ME), reactor=self.clock.reactor, fs=self.disk, votes=VoteFile.open(self.disk, VOTES_NAME),
            transport=NoNetwork(), log_event=lambda event, **fields: None,
        )  # fmt: skip
        self.view = ClusterView(self.clock.reactor, local_node(), self.host.groups)
        self.metadata = metadata or Metadata((1,))
        if metadata is None:
            self.metadata.create("orders", partition(1), partition(1))
        self.view.image = self.metadata.image
        group = self.host.open(GroupSpec(OFFSETS, 0, (ME,), directory(ME)))
        assert isinstance(group, Group)
        self.group = group
        self.confirmations = 0
        self.confirms_metadata = confirms_metadata
        self.coordinator = Coordinator(self.clock.reactor, group, self.view, self._wants_metadata)
        self.until(lambda: self.coordinator.serving)

    def _wants_metadata(self) -> None:
        self.confirmations += 1
        if self.confirms_metadata:
            self.clock.reactor.call_soon(lambda: self.coordinator.metadata_confirmed(self.coordinator.term))

    def until(self, ready: Callable[[], bool]) -> None:
        for _ in range(20_000):
            if ready():
                return
            self.clock.simulator.step()
        raise AssertionError("it did not happen")

    def run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run(self.clock.drive(work))

    def join(self, number: int, *, rebalance_ms: int = 60_000) -> Session:
        join = group_log_pb2.JoinMember(
            member_id=member_id(number), host="h", via_node=1, topics=["orders"], session_timeout_ms=2_000,
            rebalance_timeout_ms=rebalance_ms,
        )  # fmt: skip
        return self.run(self.coordinator.join("g", join))

    def owners(self) -> dict[int, int]:
        group = self.coordinator.log.state.groups.get("g")
        owners = group.owners.items() if group else ()
        return {partition.partition: owner.member_id[0] for partition, owner in owners}

    def until_owners(self, wanted: dict[int, int]) -> None:
        self.until(lambda: self.owners() == wanted)

    def until_told(self, session: Session) -> groups_pb2.CoordinatorMessage:
        """The one message that it gets next."""
        told: Told = []

        def heard() -> bool:
            told.extend(self.coordinator.messages(session))
            return bool(told)

        self.until(heard)
        (message,) = told
        return message

    def commit(self, number: int, offset: int) -> None:
        topic = self.view.topic("orders")
        assert topic is not None
        item = group_log_pb2.GroupOffset(topic_id=topic.topic_id, partition=0, offset=offset)
        member = self.coordinator.log.state.groups["g"].members[member_id(number)]
        command = self.coordinator.commands.commit_offsets("g", member.member_id, member.epoch, [item])
        assert self.run(self.coordinator.log.ask(command)).committed == (offset,)


@pytest.fixture
def node() -> OneNode:
    return OneNode()


def kinds(messages: Told) -> list[str | None]:
    return [message.WhichOneof("body") for message in messages]


def test_what_a_member_is_told_is_committed_and_said_once(node: OneNode) -> None:
    """Assigned comes with the committed offset; nothing is said twice."""
    session = node.join(1)
    assert kinds(node.coordinator.messages(session)) == ["assigned"], "at once, what it has: nothing yet"
    node.until_owners({0: 1, 1: 1})
    (assigned,) = node.coordinator.messages(session)
    assert [each.partition.partition for each in assigned.assigned.assignments] == [0, 1]
    assert node.coordinator.messages(session) == []


def test_a_partition_is_revoked_released_and_given_on(node: OneNode) -> None:
    """The first is asked with its deadline; the second is told when it was released."""
    first = node.join(1)
    node.until_owners({0: 1, 1: 1})
    node.coordinator.messages(first)
    second = node.join(2)
    node.until(lambda: kinds(node.coordinator.messages(second)) == ["assigned"])
    revoke = node.until_told(first)
    assert revoke.revoke.deadline_ms <= 60_000
    (given_up,) = revoke.revoke.partitions
    topic = GroupId(given_up.topic_id, given_up.partition)
    node.run(node.coordinator.release(first, [topic]))
    assert node.owners()[given_up.partition] == 2
    assert kinds(node.coordinator.messages(second)) == ["assigned"]
    assert node.coordinator.messages(first) == [], "who released knows"


def test_a_partition_is_revoked_by_the_name_that_the_member_knows(node: OneNode) -> None:
    """Also when its topic was deleted just before and has no name any more: the member has to find it."""
    first = node.join(1)
    node.until_owners({0: 1, 1: 1})
    node.coordinator.messages(first)
    topic = node.metadata.image.topic("orders")
    assert topic is not None
    node.metadata.delete(topic.topic_id)
    node.view.image = node.metadata.image
    node.join(2)
    revoke = node.until_told(first)
    assert [(each.topic, each.partition) for each in revoke.revoke.partitions] == [("orders", 0), ("orders", 1)]


def test_what_is_not_released_in_time_is_taken(node: OneNode) -> None:
    """And the slow one is told that it is lost."""
    first = node.join(1, rebalance_ms=1_000)
    node.until_owners({0: 1, 1: 1})
    node.coordinator.messages(first)
    node.join(2)
    node.until(lambda: sorted(node.owners().values()) == [1, 2])
    assert kinds(node.coordinator.messages(first))[0] == "lost"


def test_a_member_may_be_away_for_its_session(node: OneNode) -> None:
    """It comes back within it and keeps everything; it stays away and is removed."""
    first = node.join(1)
    node.until_owners({0: 1, 1: 1})
    node.coordinator.leave_stream(first)
    node.clock.advance(1.5)
    assert node.coordinator.away_remaining_ms("g", member_id(1)) is not None
    again = node.join(1)
    assert again.resumed
    node.clock.advance(5)
    assert node.owners() == {0: 1, 1: 1}
    node.coordinator.leave_stream(again)
    node.until(lambda: "g" not in node.coordinator.log.state.groups)


def test_a_second_stream_ends_the_first(node: OneNode) -> None:
    """With FENCED_MEMBER; the member stays."""
    first = node.join(1)
    node.join(1)
    with pytest.raises(FluxError) as ended:
        node.run(first.wait())
    assert ended.value.reason is Reason.FENCED_MEMBER
    node.coordinator.leave_stream(first)
    node.clock.advance(5)
    assert node.coordinator.log.state.groups["g"].members


def test_a_restart_gives_members_their_session_anew(node: OneNode) -> None:
    """State is what the log says; who does not come back is removed after its time."""
    node.join(1)
    node.join(2)
    node.until_owners({0: 1, 1: 1})
    node.commit(1, 7)
    node.host.stop()
    second = OneNode(node.disk, node.metadata)
    assert set(second.coordinator.log.state.groups["g"].members) == {member_id(1), member_id(2)}
    back = second.join(1)
    assert back.resumed
    assigned = second.coordinator.messages(back)[0].assigned
    assert [each.committed_offset for each in assigned.assignments] == [7, 0]
    second.until(lambda: set(second.coordinator.log.state.groups["g"].members) == {member_id(1)})
    second.until_owners({0: 1, 1: 1})


def test_losing_the_leadership_ends_every_stream(node: OneNode) -> None:
    """With a retriable status; nothing is promised any more."""
    session = node.join(1)
    node.group.fail("a test")
    assert node.group.role is Role.FAILED
    with pytest.raises(FluxError) as ended:
        node.run(session.wait())
    assert ended.value.reason is Reason.NOT_LEADER
    assert ended.value.traits.retriable
    assert not node.coordinator.serving
    with pytest.raises(FluxError):
        node.run(node.coordinator.wait_serving(1))


def test_offsets_of_idle_groups_expire(node: OneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the retention, and not before."""
    session = node.join(1)
    node.until_owners({0: 1, 1: 1})
    node.commit(1, 7)
    node.run(node.coordinator.leave(session))
    node.clock.advance(1.1 * limits.OFFSETS_EXPIRY_INTERVAL)
    assert not node.coordinator.log.state.groups["g"].members
    monkeypatch.setattr(limits, "OFFSETS_RETENTION_MS", 1_000)  # a week of simulated time takes minutes
    node.clock.advance(1.1 * limits.OFFSETS_EXPIRY_INTERVAL)
    assert "g" not in node.coordinator.log.state.groups


def after_its_topic_went(node: OneNode, *, confirms_metadata: bool = True) -> OneNode:
    """The node started again; its group has committed an offset of a topic that was deleted in between."""
    node.join(1)
    node.until_owners({0: 1, 1: 1})
    node.commit(1, 7)
    node.host.stop()
    topic = node.metadata.image.topic("orders")
    assert topic is not None
    node.metadata.delete(topic.topic_id)
    return OneNode(node.disk, node.metadata, confirms_metadata=confirms_metadata)


def test_topics_deleted_while_it_was_away_are_forgotten(node: OneNode) -> None:
    """When the metadata has been confirmed, what is not there was deleted."""
    second = after_its_topic_went(node)
    assert second.confirmations == 1
    second.until(lambda: not second.coordinator.log.state.groups["g"].offsets)
    assert second.owners() == {}


def test_a_confirmation_for_an_earlier_term_forgets_nothing(node: OneNode) -> None:
    """It does not hold what was created since: that is unknown here, and was not deleted."""
    second = after_its_topic_went(node, confirms_metadata=False)
    term = second.coordinator.term
    assert term is not None
    second.coordinator.metadata_confirmed(Term(term - 1))
    second.clock.advance(1.0)
    assert second.coordinator.log.state.groups["g"].offsets
    second.coordinator.metadata_confirmed(term)
    second.until(lambda: not second.coordinator.log.state.groups["g"].offsets)


def test_the_log_is_kept_short(node: OneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is written into the log, what is before it goes, and who begins there has the same state."""
    monkeypatch.setattr(limits, "GROUPS_TRIM_RECORDS", 20)
    session = node.join(1)
    node.until_owners({0: 1, 1: 1})
    for offset in range(30):
        node.commit(1, offset)
    node.until(lambda: node.group.log_start_offset > 0)
    assert node.group.log_start_offset >= 20
    node.commit(1, 30)
    assert not session.ended
    state = node.coordinator.log.state
    node.host.stop()
    second = OneNode(node.disk, node.metadata)
    assert second.group.log_start_offset == node.group.log_start_offset
    assert second.coordinator.log.state == state
    assert second.join(1).resumed
    second.commit(1, 31)


def test_a_replica_that_falls_behind_the_start_finds_the_state(node: OneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had applied less than what was trimmed: it begins anew from the state in the log."""
    monkeypatch.setattr(limits, "GROUPS_TRIM_RECORDS", 20)
    node.join(1)
    node.until_owners({0: 1, 1: 1})
    for offset in range(30):
        node.commit(1, offset)
    node.until(lambda: node.group.log_start_offset > 0)
    applied: list[Applied] = []
    late = CoordinatorLog(node.clock.reactor, node.group, applied.append)
    node.until(lambda: late.state == node.coordinator.log.state)
    assert len(applied) < 30
    node.commit(1, 30)
    node.until(lambda: late.state == node.coordinator.log.state)


class Unread:
    """A replica that leads, with records that nobody has read yet."""

    log_start_offset, high_watermark = Offset(0), Offset(5)

    def __init__(self) -> None:
        self.on_commit: list[Callable[[], None]] = []

    def read_index(self, done: Callable[[FluxError | None], None]) -> None:
        done(None)


def test_a_log_that_stops_answers_those_who_wait_for_it(node: OneNode) -> None:
    """Who waits until what is committed is applied is refused, and so is who comes later: it will not be applied here.
    Elsewhere it may be.
    """
    log = CoordinatorLog(node.clock.reactor, cast(OffsetsReplica, Unread()), lambda applied: None)
    answers: list[FluxError | None] = []
    log.confirm(answers.append)
    assert answers == []
    log.stop()
    log.confirm(answers.append)
    assert [answer.reason if answer else None for answer in answers] == [Reason.NOT_LEADER] * 2
    with pytest.raises(FluxError):
        node.run(log.current())
