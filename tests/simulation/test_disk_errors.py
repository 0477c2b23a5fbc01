"""A disk that fails: a replica stops at once, keeps what was synced, and comes back by itself; the node stays up."""

from __future__ import annotations

import errno

import pytest

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError, FluxError
from fluxd.core.types import NodeId
from fluxd.raft.spec import Role
from fluxd.storage.checkpoint import STATE_NAME
from fluxd.storage.scrub import Verified
from fluxd.storage.segment import segment_name
from fluxd.storage.votes import VoteFile
from tests.simulation.disk import WELL, Keep, Sickness, SimDisk
from tests.simulation.lab import Lab, outcome
from tests.simulation.node import DIRECTORY, GROUP, VOTES

EIO = OSError(errno.EIO, "bad disk")


def _disk(lab: Lab, node: int) -> SimDisk:
    return lab.nodes[NodeId(node)].disk


def _lab() -> Lab:
    lab = Lab()
    lab.elect(1)
    lab.commit(1, b"before")
    lab.run(0.5)
    return lab


def _settled(lab: Lab) -> bool:
    groups = [lab[n] for n in (1, 2, 3)]
    ends = {(group.log.synced_index, group.log.last.checksum, group.commit_index) for group in groups}
    return len(ends) == 1 and lab.leader() is not None


@pytest.mark.parametrize("node", [1, 2])
def test_a_failed_sync_is_healed(node: int) -> None:
    """Of the leader and of a follower. What was being written is not taken for durable, whatever can still be read: the
    power goes afterwards, and everything that was acknowledged is there.
    """
    lab = _lab()
    synced, last = lab[node].log.synced_index, lab[node].log.last_index
    _disk(lab, node).fail_next("sync", EIO, path=".seg")
    lab.propose(1, b"while it fails")
    lab.until(lambda: lab[node].role is Role.FAILED)
    assert lab[node].why.startswith("its disk failed: [Errno 5] bad disk")
    assert outcome(lab.propose(node, b"refused")) == "REJECTED"
    lab.until(lambda: lab[node].openings == 2)
    assert lab[node].log.last_index == lab[node].log.synced_index == synced == last
    lab.until(lambda: _settled(lab))
    leader = lab.leader()
    assert leader is not None
    lab.commit(leader, b"after")
    lab.until(lambda: _settled(lab))
    values = lab.values(leader)
    assert values[0] == b"before" and values[-1] == b"after"
    for number in (1, 2, 3):
        lab.kill(number, power=True)
        lab.start(number)
    lab.until(lambda: lab.leader() is not None and _settled(lab))
    assert lab.values(node) == values
    assert not [event for event in lab.nodes[NodeId(node)].events if "unadmitted" in event]


@pytest.mark.parametrize("node", [1, 2])
def test_a_failed_sync_is_healed_whatever_becomes_of_its_log_line(node: int) -> None:
    """The line is the last thing: when it cannot be written the replica is out already, its callers have their
    answers, and it comes back.
    """
    lab = _lab()
    _disk(lab, node).fail_next("sync", EIO, path=".seg")
    answers = lab.propose(1, b"while it fails")
    lab.nodes[NodeId(node)].cannot_log = RuntimeError("no log")
    with pytest.raises(RuntimeError, match="no log"):
        lab.until(lambda: False)
    assert lab[node].role is Role.FAILED
    assert node != 1 or outcome(answers) == "UNKNOWN"
    lab.nodes[NodeId(node)].cannot_log = None
    lab.until(lambda: lab[node].openings == 2 and _settled(lab))


@pytest.mark.parametrize("where", ["fluxd.raft.group.Trimming", "fluxd.raft.catching_up.CatchingUp.watch"])
def test_a_replica_that_cannot_be_started_again_says_why(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Something that is not the disk's: it stays out with that reason, whether it had begun or not."""
    lab = _lab()

    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("a defect")

    _disk(lab, 2).fail_next("sync", EIO, path=".seg")
    lab.commit(1, b"while it fails")
    lab.until(lambda: lab[2].role is Role.FAILED)
    lab.invariants.after_step = lambda node: None  # type: ignore[method-assign]  # they know of no such defect
    monkeypatch.setattr(where, fail)
    lab.until(lambda: "RuntimeError: a defect" in lab[2].why)
    assert lab[2].role is Role.FAILED
    assert lab[2].log._segments.active.file is None
    lab.run(limits.DISK_RETRY_MAX + 5)
    assert lab[2].why == "it could not be started again: RuntimeError: a defect"
    assert len([event for event in lab.nodes[NodeId(2)].events if "replica_failed" in event]) == 2
    lab.commit(1, b"without it")


def test_after_a_failed_sync_the_log_goes_on_in_a_new_segment() -> None:
    """The file that could not be synced is not written any more."""
    lab = _lab()
    end = lab[2].log.synced_index
    _disk(lab, 2).fail_next("sync", EIO, path=".seg")
    lab.commit(1, b"more")
    lab.until(lambda: lab[2].openings == 2 and _settled(lab))
    assert segment_name(end + 1) in _disk(lab, 2).names(DIRECTORY)


def test_a_read_of_what_was_cut_off_meanwhile_is_no_damage() -> None:
    """It was begun on the log before; the replica knew already that the others had it."""
    lab = _lab()
    lab.nodes[NodeId(2)].speed.hung_until = lab.simulator.now + 0.4
    lab.commit(1, b"not on the disk of 2")
    log = lab[2].log
    lab.until(lambda: lab[2].commit_index == log.last_index)
    assert log.synced_index < log.last_index
    piece = log.scrub.next_piece(Verified(), end_index=lab[2].commit_index, max_bytes=1 << 20)
    assert piece is not None
    _disk(lab, 2).fail_next("sync", EIO, path=".seg")
    lab.until(lambda: lab[2].openings == 2)
    with pytest.raises(CorruptDataError) as raised:
        piece.read()
    lab[2].read_failed(raised.value, log)
    lab.run(5)
    assert not [event for event in lab.nodes[NodeId(2)].events if "log_damaged" in event]
    lab.until(lambda: _settled(lab))
    assert not _disk(lab, 2).names("quarantine")


def test_a_sync_that_fails_after_a_truncation_is_healed() -> None:
    """One sync of a leader that is cut off takes long; meanwhile another leader has replaced what was being synced.
    When that sync fails, what was written instead is lost: it must not be acknowledged (I7 watches) for a later sync's
    sake.
    """
    lab = _lab()
    lab.cut((1,), (2, 3))
    speed, ends = lab.nodes[NodeId(1)].speed, lab.simulator.now + 8.0
    speed.hung_until = ends
    lab.propose(1, b"replaced")
    lab.until(lambda: lab.sync_in_flight(1))
    speed.hung_until = 0.0
    lab.until(lambda: lab.leader() in (2, 3))
    leader = lab.leader()
    assert leader is not None
    lab.commit(leader, b"instead")
    lab.heal()
    lab.until(lambda: lab[1].log.last == lab[leader].log.last)
    assert lab.simulator.now < ends and lab.sync_in_flight(1)
    _disk(lab, 1).fail_next("sync", EIO, path=".seg")
    lab.until(lambda: lab[1].role is Role.FAILED)
    assert lab[1].why.startswith("its disk failed: [Errno 5] bad disk")
    lab.until(lambda: lab[1].openings == 2 and _settled(lab))
    assert lab.values(1) == [b"before", b"instead"]


def test_what_a_failed_sync_left_in_the_cache_is_written_again_by_the_next_process() -> None:
    """Killed between the failed sync and its repair: the next process reads bytes that the disk does not have, and
    a sync alone would not bring them there.
    """
    lab = _lab()
    disk = _disk(lab, 2)
    disk.rng.random = lambda: 0.99  # type: ignore[method-assign]  # nothing reaches the disk, the cache keeps it
    disk.fail_next("sync", EIO, path=".seg")
    lab.commit(1, b"in the cache only")
    lab.until(lambda: lab[2].role is Role.FAILED)
    lab.kill(2)
    lab.start(2)
    lab.until(lambda: _settled(lab))
    lab.kill(3)
    lab.kill(2)
    disk.power_cut(Keep.NOTHING)
    lab.start(2)
    assert lab[2].log.last_index == lab[1].log.synced_index


@pytest.mark.parametrize("file", [".seg", STATE_NAME])
@pytest.mark.parametrize("node", [1, 2])
def test_no_descriptor_for_a_replica_that_was_at_rest(node: int, file: str) -> None:
    """It says so, nothing of it is lost or copied, and it goes on when there is one again."""
    lab = _lab()
    _disk(lab, node).fail_next("reopen", OSError(errno.EMFILE, "Too many open files"), path=file)
    lab.propose(1, b"while there is none")
    lab.until(lambda: lab[node].role is Role.FAILED)
    assert lab[node].why.startswith("its files cannot be opened: [Errno 24] Too many open files")
    lab.until(lambda: lab[node].openings == 2 and _settled(lab))
    assert lab[node].role in (Role.LEADER, Role.FOLLOWER)
    leader = lab.leader()
    assert leader is not None
    lab.commit(leader, b"after")
    lab.until(lambda: _settled(lab))
    assert lab.values(node)[0] == b"before" and lab.values(node)[-1] == b"after"
    assert not _disk(lab, node).names("quarantine")


def test_a_state_file_that_went_while_the_replica_was_at_rest() -> None:
    """It is made anew of what the process knows to be durable: power lost afterwards takes nothing."""
    lab = _lab()
    disk, state = _disk(lab, 2), f"{DIRECTORY}/{STATE_NAME}"
    disk.remove(state)
    disk.errors += 1
    lab.commit(1, b"after")
    lab.until(lambda: lab[2].openings == 2 and _settled(lab))
    assert disk.durable_bytes(state)
    lab.kill(2)
    disk.power_cut(Keep.NOTHING)
    lab.start(2)
    assert lab[2].role is not Role.FAILED
    lab.until(lambda: _settled(lab))
    assert lab.values(2) == [b"before", b"after"]
    assert not disk.names("quarantine")


@pytest.mark.parametrize("operation", ["append", "write_at", "sync"])
def test_a_disk_that_fails_for_a_while(operation: str) -> None:
    """The replica is offline as long as it lasts, tried again with longer and longer waits; the others go on."""
    lab = _lab()
    share = {"sync": Sickness(syncs=1.0)}.get(operation, Sickness(writes=1.0))
    _disk(lab, 2).sickness = share
    for number in range(30):
        lab.commit(1, b"%d" % number)
        lab.run(0.5)
    assert lab[2].role is Role.FAILED
    assert "tried again in" in lab[2].why
    assert _disk(lab, 2).errors < 60
    _disk(lab, 2).sickness = WELL
    lab.until(lambda: _settled(lab), within=limits.DISK_RETRY_MAX + 5)
    assert len(lab.values(2)) == 31


def test_a_full_disk_takes_the_replica_offline_until_there_is_room() -> None:
    """Not before there is more than the reserve: else it would stop again at once."""
    lab = _lab()
    disk = _disk(lab, 2)
    disk.room = 100
    for number in range(5):
        lab.commit(1, b"." * 50 + b"%d" % number)
    lab.until(lambda: lab[2].role is Role.FAILED)
    assert "No space left" in lab[2].why
    disk.room = limits.DISK_RESERVE_BYTES - 1
    lab.run(15)
    assert (lab[2].role, lab[2].openings) == (Role.FAILED, 1)
    disk.room = None
    lab.until(lambda: _settled(lab), within=3)


def test_two_full_disks_refuse_and_heal() -> None:
    """No majority can write: clients hear it, and nothing that was acknowledged is lost when there is room again."""
    lab = _lab()
    for node in (2, 3):
        _disk(lab, node).room = 0
    answers = lab.propose(1, b"unknown")
    lab.until(lambda: bool(answers))
    assert outcome(answers) == "UNKNOWN"
    lab.run(3.0)
    answers = lab.propose(1, b"refused")
    assert isinstance(answers[0], FluxError)
    assert answers[0].reason.name in ("NO_QUORUM", "NO_LEADER", "NOT_LEADER")
    for node in (2, 3):
        _disk(lab, node).room = None
    lab.until(lambda: lab.leader() is not None and _settled(lab))
    leader = lab.leader()
    assert leader is not None
    lab.commit(leader, b"after")
    assert lab.values(leader)[0] == b"before"


def test_votes_whose_sync_fails_once_are_written_anew() -> None:
    """Nobody stops for it, and no vote leaves before it is durable (I7 watches)."""
    lab = _lab()
    _disk(lab, 2).fail_next("sync", EIO, path=VOTES)
    lab.kill(1)
    lab[3].guard.elections.retire()
    lab.until(lambda: lab.leader() == 2)
    assert _disk(lab, 2).errors == 1
    assert not [event for event in lab.nodes[NodeId(2)].events if "replica_failed" in event]
    durable = _disk(lab, 2).copy(_disk(lab, 2).rng)
    durable.power_cut(Keep.NOTHING)
    vote = VoteFile.open(durable, VOTES).get(GROUP, 0)
    assert vote is not None and vote.term == lab[2].term


def test_votes_that_cannot_be_written_take_the_replica_offline() -> None:
    """It can neither vote nor follow in a new term, and says why; when the disk is well again its vote is the same."""
    lab = _lab()
    disk = _disk(lab, 2)
    files = disk.begin

    def begin(operation: str, path: str, grows: int = 0) -> None:
        if VOTES in path:
            disk.errors += 1
            raise EIO
        files(operation, path, grows)

    disk.begin = begin  # type: ignore[method-assign]
    lab.kill(1)
    lab.until(lambda: lab[2].role is Role.FAILED)
    votes = lab[2].guard._votes
    known = votes.get(GROUP, 0)
    assert "votes cannot be written" in lab[2].why and known is not None
    lab.run(5.0)
    assert lab[2].role is Role.FAILED and lab.leader() is None
    disk.begin = files  # type: ignore[method-assign]
    lab.until(lambda: lab.leader() is not None, within=limits.DISK_RETRY_MAX + 10)
    vote = votes.get(GROUP, 0)
    assert vote is not None and (vote == known or vote.term > known.term)
    lab.start(1)
    lab.until(lambda: _settled(lab))


def test_a_snapshot_that_cannot_be_written_is_tried_again() -> None:
    """Nothing is trimmed before it is durable, and the replica goes on."""
    lab = _lab()
    for _ in range(3):
        lab.commit(1, bytes(40_000))
    for _ in range(3):
        _disk(lab, 2).fail_next("sync", EIO, path=".snap")
    answers: list[FluxError | None] = []
    lab.until(lambda: lab[1].high_watermark >= 3)
    lab[1].trim(lab[1].high_watermark, answers.append)
    lab.until(lambda: answers == [None] and lab[1].log.first_index > 1)
    lab.until(lambda: _disk(lab, 2).errors >= 1)
    assert lab[2].log.first_index == 1
    lab.until(lambda: lab[2].log.first_index == lab[1].log.first_index, within=5)
    assert lab[2].openings == 1


def test_a_closed_segment_that_was_damaged_under_a_running_replica() -> None:
    """A leader finds it when a follower needs what is there: it takes no part any more, and is copied."""
    lab = _lab()
    lab.kill(3)
    for number in range(8):
        lab.commit(1, b"%d" % number + bytes(40_000))
    lab.elect(2)  # who leads has nothing of it in memory after a restart
    lab.kill(1)
    lab.start(1)
    lab.until(lambda: lab[1].log.synced_index == lab[2].log.last_index)
    lab.run(1.0)
    lab.elect(1)
    lab.nodes[NodeId(1)].damaged = True
    _disk(lab, 1).flip_bit(f"{DIRECTORY}/{segment_name(1)}", 20_000)
    lab.start(3)
    lab.until(lambda: lab.nodes[NodeId(1)].replica is not None and lab.nodes[NodeId(1)].group is None)
    lab.until(lambda: lab.nodes[NodeId(1)].group is not None and _settled(lab), within=30)
    assert _disk(lab, 1).names("quarantine")
    assert len(lab.values(1)) == 9
