"""One true answer per proposal, nothing but sound entries into the log, and a broken replica stops. Each test is the
one that fails when its measure is taken out (`mutants.py`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fluxd.core.entry import EntryKind, Stamp, birth_frame, build_frame, read_stamp
from fluxd.core.errors import InvariantViolation
from fluxd.raft.journal import RaftJournal
from fluxd.raft.proposal import Committed
from fluxd.raft.spec import Role
from tests.simulation.invariants import Violation
from tests.simulation.lab import Lab, Message, is_append, is_heartbeat, outcome
from tests.simulation.node import GROUP

PRODUCER = bytes(range(16))


def _carries(message: Message, kind: EntryKind) -> bool:
    return any(read_stamp(frame).kind is kind for frame in message.append_entries.frames)


def test_an_answer_waits_for_its_own_entry() -> None:
    """The entry before it is committed: that is not yet an answer."""
    lab = Lab()
    lab.let_campaign(1)
    lab.network.hold = lambda source, target, message: _carries(message, EntryKind.RECORDS)
    lab.until(lambda: lab.leader() == 1)
    answers = lab.propose(1, b"x")
    lab.until(lambda: lab[1].log.last_index == 3 and lab[1].commit_index == 2)
    lab.run(0.1)
    assert outcome(answers) == "PENDING"
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: outcome(answers) == "COMMITTED")


def test_what_waited_when_leadership_ended_is_written_by_no_later_one() -> None:
    """It was answered REJECTED; the same node leads again."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    in_flight = lab.propose(1, b"in flight", PRODUCER, 0)
    lab.run(0.01)
    waiting = [lab.propose(1, b"%d" % n, PRODUCER, n) for n in (1, 2)]
    lab.until(lambda: lab.leader() in (2, 3) and lab[1].role is not Role.LEADER)
    assert [outcome(a) for a in (in_flight, *waiting)] == ["UNKNOWN", "REJECTED", "REJECTED"]
    lab.heal()
    leader = lab.leader()
    assert leader is not None
    lab.until(lambda: lab[1].log.last.checksum == lab[leader].log.last.checksum)
    lab.elect(1)
    lab.commit(1, b"later")
    assert lab.values(1) == [b"later"]


def test_a_retry_of_what_waited_when_leadership_ended_is_written() -> None:
    """The producer table has forgotten the queue: nobody waits for a copy that never comes."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    lab.propose(1, b"0", PRODUCER, 0)
    lab.run(0.01)
    lab.propose(1, b"1", PRODUCER, 1)
    lab.until(lambda: lab.leader() in (2, 3) and lab[1].role is not Role.LEADER)
    lab.heal()
    leader = lab.leader()
    assert leader is not None
    lab.until(lambda: lab[1].log.last.checksum == lab[leader].log.last.checksum)
    lab.elect(1)
    retries = [lab.propose(1, b"%d" % n, PRODUCER, n) for n in (0, 1)]
    lab.until(lambda: all(retries), within=2.0)
    assert [outcome(a) for a in retries] == ["COMMITTED", "COMMITTED"]
    assert lab.values(1) == [b"0", b"1"]


def test_a_retry_at_the_next_leader_waits_for_the_first_copy() -> None:
    """It has the entry of the leader before it, and does not know that it is committed: neither a second copy nor an
    early answer.
    """
    lab = Lab()
    lab.elect(1)
    lab.network.hold = lambda source, target, message: target == 2 and is_heartbeat(message)
    first = lab.propose(1, b"value", PRODUCER, 0)
    lab.until(lambda: bool(first) and lab[2].log.last_index == lab[1].log.last_index)
    lab.kill(1, gone=False)
    lab.run(0.01)
    lab[3].guard.elections.deadline = lab.simulator.now + 20.0
    lab.network.hold = lambda source, target, message: is_append(message)
    lab.until(lambda: lab.leader() == 2)
    retry = lab.propose(2, b"value", PRODUCER, 0)
    lab.run(0.3)
    assert outcome(retry) == "PENDING"
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(lambda: bool(retry))
    assert isinstance(first[0], Committed) and isinstance(retry[0], Committed)
    assert retry[0].duplicate and retry[0].base_offset == first[0].base_offset
    assert lab.values(2) == [b"value"]


# ---------------------------------------------------------------------- what a follower lets in


def _flipped(frame: bytes) -> bytes:
    return frame[:-1] + bytes((frame[-1] ^ 1,))


def _like(frame: bytes, *, skip: int = 0, term: int = 0) -> bytes:
    stamp = read_stamp(frame)
    return build_frame(
        kind=EntryKind.NO_OP, base_offset=stamp.base_offset, raft_index=stamp.raft_index + skip,
        leader_epoch=stamp.leader_epoch + term, append_time_ms=stamp.append_time_ms, record_count=0,
        previous_checksum=stamp.previous_checksum,
    )  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_flipped, id="wrong-checksum"),
        pytest.param(lambda frame: frame[:-1], id="cut-off"),
        pytest.param(lambda frame: b"", id="nothing"),
        pytest.param(lambda frame: b"\x00" + frame[1:], id="type-byte-of-the-library"),
        pytest.param(lambda frame: _like(frame, skip=1), id="gap"),
        pytest.param(lambda frame: _like(frame, term=1), id="term-above-the-leader"),
        pytest.param(lambda frame: _like(frame, term=-1), id="term-falls"),
        pytest.param(lambda frame: birth_frame(GROUP, 0), id="birth-entry"),
    ],
)
def test_a_follower_refuses_what_is_no_sound_entry(damage: Callable[[bytes], bytes]) -> None:
    """It stays as it was, goes on, and takes the sound one."""
    lab = Lab()
    lab.elect(1)
    lab.network.hold = lambda source, target, message: target == 2 and is_append(message)
    lab.commit(1, b"x")
    held = lab.network.held.pop()
    lab.network.hold = lambda source, target, message: False
    last, damaged = lab[2].log.last_index, Message.FromString(held[2].SerializeToString())
    damaged.append_entries.frames[0] = damage(damaged.append_entries.frames[0])
    lab.network.release([(held[0], held[1], damaged)])
    assert (lab[2].log.last_index, lab[2].role) == (last, Role.FOLLOWER)
    assert lab[2].guard.counters["corrupt_append"] == 1
    lab.network.release([held])
    assert lab[2].log.last_index == last + 1


# ---------------------------------------------------------------------- fail-stop


def test_a_replica_whose_step_raises_stops() -> None:
    """The library changes its memory before it writes: after an error it must not go on."""
    lab = Lab()
    lab.elect(1)

    def append(frame: bytes, stamp: Stamp | None = None) -> Stamp:
        raise ValueError("a fault of the code")

    lab[2].log.append = append  # type: ignore[method-assign]
    lab.propose(1, b"x")
    with pytest.raises(Violation, match=r"node 2 stopped itself: ValueError: a fault of the code"):
        lab.run(1.0)


def _journal() -> RaftJournal:
    lab = Lab(nodes=1)
    lab.until(lambda: lab.leader() == 1)
    for n in range(3):
        lab.commit(1, b"%d" % n)
    return lab[1].journal


def test_the_journal_truncates_nothing_committed() -> None:
    """Whatever the library asks for."""
    journal = _journal()
    with pytest.raises(InvariantViolation, match="at or below commit index"):
        journal.deleteEntriesFrom(journal.commit_index - journal.log.first_index)


def test_the_journals_commit_index_neither_falls_nor_exceeds_the_log() -> None:
    """Whatever the library says."""
    journal = _journal()
    with pytest.raises(InvariantViolation, match="commit index falls"):
        journal.setRaftCommitIndex(journal.commit_index - 1)
    with pytest.raises(InvariantViolation, match="above last index"):
        journal.setRaftCommitIndex(journal.log.last_index + 1)


def test_the_journal_gives_no_entry_away() -> None:
    """The library's snapshots and compaction are shut: both would drop what followers and readers need."""
    journal = _journal()
    for call in (journal.clear, lambda: journal.deleteEntriesTo(1)):
        with pytest.raises(InvariantViolation):
            call()
