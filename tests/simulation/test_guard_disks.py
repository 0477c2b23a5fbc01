"""Nothing is said before the disk has it, and a disk that lost something says nothing. Each test is the one that fails
when its measure is taken out (`mutants.py`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from fluxd.core.entry import HEADER_BYTES, EntryKind, build_frame
from fluxd.core.types import NodeId, RaftIndex, Term
from fluxd.raft.outbox import Outbox
from fluxd.raft.spec import Role
from fluxd.storage.checkpoint import STATE_NAME, Checkpoint, State, StateFile
from fluxd.storage.log import PartitionLog
from fluxlog.v1 import peer_pb2
from tests.simulation.disk import Keep, SimDisk
from tests.simulation.lab import Lab, outcome
from tests.simulation.node import DIRECTORY, GROUP, VOTES


def _bodies(lab: Lab, source: int) -> set[str | None]:
    return {m.WhichOneof("body") for s, _, m in lab.network.sent if s == source}


def test_a_vote_leaves_when_it_is_on_disk() -> None:
    """Both voters' disks hang: the candidate hears of their votes when these are synced."""
    lab = Lab()
    lab.let_campaign(1)
    for node in (2, 3):
        lab.nodes[NodeId(node)].speed.hung_until = 0.15
    lab.until(lambda: lab[2].journal.getVotedForNodeId() == 1 and lab[3].journal.getVotedForNodeId() == 1)
    lab.run(0.15 - lab.simulator.now)
    assert "vote_reply" not in _bodies(lab, 2) | _bodies(lab, 3)
    lab.until(lambda: lab.leader() == 1)


def test_a_candidate_asks_when_its_term_is_on_disk() -> None:
    """Its disk hangs: nobody hears of the term that it has begun."""
    lab = Lab()
    lab.let_campaign(1)
    lab.nodes[NodeId(1)].speed.hung_until = 0.5
    lab.until(lambda: lab[1].term == 1)
    lab.run(0.4 - lab.simulator.now)
    assert "vote_request" not in _bodies(lab, 1)
    lab.until(lambda: "vote_request" in _bodies(lab, 1))


def test_a_group_of_one_leads_when_its_vote_is_on_disk() -> None:
    """Its disk is the voter: were it to lead before, a power cut would let it lead the same term twice."""
    lab = Lab(nodes=1)
    lab.nodes[NodeId(1)].speed.hung_until = 0.5
    lab.until(lambda: lab[1].term == 1)
    lab[1].guard.elections.arm(5.0, 5.1)
    host = lab.nodes[NodeId(1)].host
    assert host is not None
    host.wake(lab[1])
    lab.run(0.4 - lab.simulator.now)
    assert lab[1].role is Role.CANDIDATE
    lab.until(lambda: lab.leader() == 1, within=0.2)


class _Wire:
    """A Transport that remembers."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        """Terms."""
        self.to: list[NodeId] = []

    def send(self, peer: NodeId, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        self.sent.append(message.term)
        self.to.append(peer)
        return True

    def is_connected(self, peer: NodeId) -> bool:
        return True


def test_what_was_held_and_belongs_to_an_old_term_is_dropped() -> None:
    """An acknowledgement waited for the votes of term 1; meanwhile the replica has moved on."""
    wire, state = _Wire(), {"term": 1, "durable": False}
    outbox = Outbox(GROUP, 0, wire, term=lambda: state["term"], votes_durable=lambda: bool(state["durable"]))
    outbox.send(NodeId(2), outbox.message())
    state["term"] = 2
    outbox.send(NodeId(2), outbox.message())
    outbox.release()
    assert wire.sent == []
    state["durable"] = True
    outbox.release()
    assert wire.sent == [2]


def test_what_was_held_leaves_with_the_next_message() -> None:
    """In order, whether anybody was told that the votes are durable or not: else all that follows is held, too."""
    wire, state = _Wire(), {"durable": False}
    outbox = Outbox(GROUP, 0, wire, term=lambda: 1, votes_durable=lambda: bool(state["durable"]))
    outbox.send(NodeId(1), outbox.message())
    outbox.send(NodeId(2), outbox.message())
    assert wire.to == []
    state["durable"] = True
    outbox.send(NodeId(3), outbox.message())
    assert wire.to == [1, 2, 3]
    assert not outbox.holds


def test_what_is_held_while_a_sync_hangs_is_bounded() -> None:
    """The oldest messages go: they may be lost."""
    wire, state = _Wire(), {"durable": False}
    outbox = Outbox(GROUP, 0, wire, term=lambda: 1, votes_durable=lambda: bool(state["durable"]))
    for number in range(1, 1_031):
        outbox.send(NodeId(number), outbox.message())
    state["durable"] = True
    outbox.release()
    assert wire.to == list(range(7, 1_031))
    assert not outbox.holds


def _log_of(disk: SimDisk) -> PartitionLog:
    """Entries 1 to 6 written, 1 to 4 synced."""
    log = PartitionLog.create(disk, DIRECTORY, GROUP, 0, segment_bytes=1 << 20)
    for index in range(2, 5):
        log.append(_entry(log, index))
    job = log.begin_sync()
    for index in range(5, 7):
        log.append(_entry(log, index))
    for step in job.steps:
        step()
    log.finish_sync(job, RaftIndex(2))
    return log


def _entry(log: PartitionLog, index: int) -> bytes:
    return build_frame(
        kind=EntryKind.NO_OP, base_offset=0, raft_index=index, leader_epoch=1, append_time_ms=0, record_count=0,
        previous_checksum=log.last.checksum,
    )  # fmt: skip


def test_a_truncation_is_on_disk_when_it_returns() -> None:
    """Else a power cut may leave a mixture of what was removed and of what was written in its place."""
    disk = SimDisk(random.Random(1))
    log = _log_of(disk)
    log.truncate_suffix(RaftIndex(4))
    durable = disk.durable_bytes(_segment(disk))
    assert durable == disk.current_bytes(_segment(disk))
    assert durable is not None and len(durable) == 3 * HEADER_BYTES


@pytest.mark.parametrize("keep", [Keep.NOTHING, Keep.EVERYTHING])
def test_a_truncated_log_is_no_corrupt_one(keep: Keep) -> None:
    """Power goes after a truncation below the sync mark: the mark has fallen with it."""
    disk = SimDisk(random.Random(1))
    log = _log_of(disk)
    log.truncate_suffix(RaftIndex(3))
    assert log.synced_index == 2
    disk.power_cut(keep)
    assert PartitionLog.open(disk, DIRECTORY, GROUP, 0, segment_bytes=1 << 20).last_index == 2


def test_a_checkpoint_holds_no_more_than_what_is_on_disk() -> None:
    """A follower knows more to be committed than it has synced: after a power cut it must not claim it."""
    disk = SimDisk(random.Random(1))
    log = _log_of(disk)
    job = log.begin_sync()
    log.append(_entry(log, 7))
    for step in job.steps:
        step()
    log.finish_sync(job, RaftIndex(7))
    disk.power_cut(Keep.EVERYTHING)
    opened = PartitionLog.open(disk, DIRECTORY, GROUP, 0, segment_bytes=1 << 20)
    assert opened.checkpoint is not None and opened.checkpoint.commit_index == 6


def test_a_checkpoint_that_names_other_entries_is_ignored() -> None:
    """The term there tells: the log was replaced, and its entry at that index may never have been committed."""
    disk = SimDisk(random.Random(1))
    _log_of(disk).close()
    path = f"{DIRECTORY}/{STATE_NAME}"
    for term, valid in ((1, True), (2, False)):
        state = StateFile.open(disk, path)
        assert state is not None and state.state is not None
        state.write_synced(State(state.state.mark, Checkpoint(RaftIndex(3), Term(term), 0)))
        state.close()
        log = PartitionLog.open(disk, DIRECTORY, GROUP, 0, segment_bytes=1 << 20)
        assert (log.checkpoint is not None) is valid
        log.close()


def _remove_votes(disk: SimDisk) -> None:
    disk.remove(VOTES)
    disk.sync_directory("")


def _flip_votes(disk: SimDisk) -> None:
    disk.flip_bit(VOTES, 4)


def _remove_log(disk: SimDisk) -> None:
    disk.remove_tree(DIRECTORY)
    disk.sync_everything()


def _segment(disk: SimDisk) -> str:
    return f"{DIRECTORY}/" + next(name for name in disk.list(DIRECTORY) if name.endswith(".seg"))


def _flip_log(disk: SimDisk) -> None:
    disk.flip_bit(_segment(disk), len(disk.current_bytes(_segment(disk))) - 1)


def _shorten_log(disk: SimDisk) -> None:
    path = _segment(disk)
    data = disk.current_bytes(path)
    disk.open(path).truncate(len(data) - 200)
    disk.sync_everything()


def _hears_of_a_term_by_its_first_entry(lab: Lab, term: int) -> None:
    """Node 3 has that entry on its disk, and has lost the record of the term."""
    lab.network.hold = lambda s, t, m: t == 3 and m.WhichOneof("body") in ("vote_request", "pre_vote_request")
    node = lab.nodes[NodeId(3)]
    assert node.host is not None and node.host._vote_syncing is not None
    node.host._vote_syncing._busy = True  # the sync of its votes hangs, that of its log does not
    if lab.leader() is None:
        lab.let_campaign(1)
    else:
        lab[2].transfer(NodeId(1))
    lab.until(lambda: lab.leader() == 1 and lab[3].log.term_at(lab[3].log.synced_index) == term)
    assert not lab[3].guard.votes_durable()
    node.disk.power_cut(Keep.NOTHING)
    lab.kill(3)
    lab.network.held, lab.network.hold = [], lambda source, target, message: False


@pytest.mark.parametrize("terms", [0, 1])
def test_a_term_that_only_the_log_holds_is_recorded_before_anything_is_said_in_it(terms: int) -> None:
    """A replica, new or known to have been in an earlier term, acknowledges in that term after its restart; then its
    log is lost. It is known to have taken part, so that it elects nobody who lacks what it acknowledged.
    """
    lab = Lab()
    if terms:
        lab.elect(2)
        lab.until(lambda: lab.on_all_disks(2))
    _hears_of_a_term_by_its_first_entry(lab, terms + 1)
    lab.kill(2)
    node = lab.nodes[NodeId(3)]
    before = len(lab.network.sent)
    node.speed.hung_until = lab.simulator.now + 0.2
    lab.start(3)
    assert lab[3].term == terms + 1
    lab.run(0.19)
    assert not [m for s, _, m in lab.network.sent[before:] if s == 3 and m.topic_id]
    lab.until(lambda: lab.leader() == 1)
    lab.commit(1, b"acknowledged")  # I7 watches what node 3 says
    lab.run(0.5)
    lab.kill(3)
    lab.kill(1)
    _remove_log(node.disk)
    lab.start(3)
    lab.start(2)
    lab.run(6.0)
    assert node.replica is not None and node.replica.role is Role.UNADMITTED
    assert "its log is missing although it has voted" in node.replica.why
    assert lab.leader() is None


def test_a_replica_whose_term_is_recorded_records_nothing_when_it_is_opened() -> None:
    """Nor a new one, which has said nothing: thousands are opened at once."""
    lab = Lab()
    assert lab[3].journal.vote_op == 0 and lab[3].journal.getCurrentTerm() == 0
    lab.elect(1)
    lab.until(lab.on_all_disks)
    lab.kill(3)
    lab.start(3)
    assert lab[3].journal.vote_op == 1  # that of all that was found
    assert lab[3].journal.getCurrentTerm() == lab[3].term == 1


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(_remove_votes, "missing", id="no-votes"),
        pytest.param(_flip_votes, "votes", id="damaged-votes"),
        pytest.param(_remove_log, "its log is missing although it has voted", id="no-log"),
        pytest.param(_flip_log, "checksum", id="damaged-log"),
        pytest.param(_shorten_log, "synced up to", id="shortened-log"),
    ],
)
def test_a_replica_that_lost_votes_or_log_takes_no_part(damage: Callable[[SimDisk], None], why: str) -> None:
    """Acknowledged on 1 and 2, then 2 loses something and 1 is away: 2 and 3 elect nobody, since 2 cannot know what
    it promised.
    """
    lab = Lab()
    lab.elect(1)
    lab.kill(3)
    lab.commit(1, b"acknowledged" + b"." * 300)
    lab.run(0.5)
    lab.kill(1)
    lab.kill(2)
    damage(lab.nodes[NodeId(2)].disk)
    lab.start(2)
    lab.start(3)
    before = len(lab.network.sent)
    lab.run(6.0)
    replica = lab.nodes[NodeId(2)].replica
    assert replica is not None and replica.role is Role.UNADMITTED
    assert why in replica.why
    assert lab.leader() is None
    assert not [m for s, _, m in lab.network.sent[before:] if s == 2 and m.topic_id]
    answers = lab.propose(2, b"x")
    assert outcome(answers) == "REJECTED"
    lab.start(1)
    lab.until(lambda: lab.leader() in (1, 3))
