"""A replica that was away while its leader's log was trimmed past it: it goes on voting, copies, and is whole again."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from fluxd.core import limits
from fluxd.core.entry import EntryKind
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import GroupId, NodeId, Offset, RaftIndex, Term
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.proposal import Committed
from fluxd.raft.spec import Role
from fluxd.storage.copies import COPIES, is_beside
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.snapshot import read_snapshot_file
from tests.simulation.disk import PowerCut
from tests.simulation.lab import Lab, Message, is_append
from tests.simulation.node import GROUP

BIG = bytes(30_000)


def host(lab: Lab, number: int) -> Host:
    found = lab.nodes[NodeId(number)].host
    assert found is not None
    return found


def trim_to_the_end(lab: Lab, *nodes: int, leader: int = 1) -> None:
    lab[leader].trim(lab[leader].high_watermark, lambda error: None)
    end = lab[leader].high_watermark
    lab.until(lambda: all(lab[n].log_start_offset == end and lab[n].log.first_index > 5 for n in nodes))


def outrun(lab: Lab | None = None, away: int = 3) -> Lab:
    """Node 1 leads; one is down, and what it would need next is gone on the others."""
    if lab is None:
        lab = Lab(3)
        lab.elect(1)
        lab.commit(1, b"old" + BIG)
    lab.until(lab.on_all_disks)
    lab.kill(away)
    for number in range(10):
        lab.commit(1, b"%d" % number + BIG)
    trim_to_the_end(lab, *({1, 2, 3} - {away}))
    for number in range(3):
        lab.commit(1, b"left %d" % number + BIG)
    return lab


def is_copy(message: Message) -> bool:
    return message.WhichOneof("body") == "copy_reply"


def caught_up(lab: Lab, number: int = 3) -> Callable[[], bool]:
    def check() -> bool:
        leader, group = lab.leader(), lab.nodes[NodeId(number)].group
        if leader is None or group is None or group.copying is not None:
            return False
        return group.leader_id == leader and group.commit_index == lab[leader].log.last_index

    return check


def test_a_replica_that_was_outrun_is_whole_again() -> None:
    """And is one of two that keep the group going; of the copy nothing is left over."""
    lab = outrun()
    old = lab[1].log.first_index
    lab.start(3)
    assert lab[3].log.last_index < old
    lab.until(caught_up(lab))
    assert lab[3].log.first_index >= old
    assert lab.values(3) == lab.values(1)
    assert lab[3].log_start_offset == lab[1].log_start_offset
    assert lab.nodes[NodeId(3)].disk.list(COPIES) == []
    lab.until(lab.on_all_disks)
    lab.kill(2)
    lab.commit(1, b"with its acknowledgement")


def test_it_votes_meanwhile_and_no_other_replica_is_needed() -> None:
    """The third is gone for good, and the leader is a new one that has committed nothing of its own: with the votes of
    the two there is a leader, and it has what the other one lacks."""
    lab = outrun()
    lab.kill(2)
    lab.kill(1)
    lab.start(1)
    lab.start(3)
    lab.until(caught_up(lab), within=30)
    assert lab.leader() == 1
    lab.commit(1, b"of two")


def test_while_it_copies_writes_are_refused_when_it_would_be_needed() -> None:
    """At once, naming it; nothing waits for a copy."""
    lab = outrun()
    lab.network.hold = lambda source, target, message: is_copy(message)
    lab.start(3)
    lab.kill(2)
    lab.until(lambda: lab[1].guard.leading.progress[NodeId(3)].is_behind)
    lab.until(lambda: lab[1].quorum_missing() == (2, 3))
    assert lab[1].role is Role.LEADER
    lab.run(5)
    assert lab[1].role is Role.LEADER


def test_its_words_say_how_far_it_is() -> None:
    """As those of a replica that is out."""
    lab = outrun()
    assert lab[1].why == ""
    lab.network.hold = lambda source, target, message: is_copy(message)
    lab.start(3)
    lab.until(lambda: lab[3].copying is not None)
    assert lab[3].why == "the leader no longer has what it needs next; copying, 0 %"
    assert lab[3].role is Role.FOLLOWER


def test_no_entry_is_sent_to_it_that_it_would_refuse() -> None:
    """And none twice: replication goes on where the copy ends."""
    lab = outrun()
    lab.start(3)
    lab.until(lambda: lab[3].copying is not None)
    before = len(lab.network.sent)
    lab.commit(1, b"meanwhile")
    end = lab[1].log.last_index
    lab.until(caught_up(lab))
    appended = [m.append_entries for _, target, m in lab.network.sent[before:] if target == 3 and is_append(m)]
    assert all(append.previous_index >= end - 1 for append in appended)


def test_entries_that_were_never_committed_go_with_the_old_log() -> None:
    """It led, alone, and its log is longer than where the others' begins."""
    lab = Lab(3)
    lab.elect(3)
    lab.commit(3, b"old" + BIG)
    lab.until(lambda: lab.on_all_disks(3))
    lab.network.hold = lambda source, target, message: source == 3 and is_append(message)
    lab.propose(3, b"lost")
    lab.until(lambda: lab[3].log.dirty is False and lab[3].log.last_index == 4)
    lab.network.hold = lambda source, target, message: False
    lab.kill(3)
    lab.until(lambda: lab.leader() in (1, 2))
    leader = lab.leader()
    assert leader is not None
    for number in range(10):
        lab.commit(leader, b"%d" % number + BIG)
    trim_to_the_end(lab, 1, 2, leader=leader)
    lab.start(3)
    lab.until(caught_up(lab))
    assert b"lost" not in lab.values(3)
    assert lab.values(3) == lab.values(leader)


def test_the_state_comes_with_the_copy() -> None:
    """A retry of what was written and trimmed while it was away is recognised by it."""
    lab = Lab(3)
    lab.elect(1)
    lab.until(lab.on_all_disks)
    lab.kill(3)
    answers = lab.propose(1, b"first", b"p" * 16, 0)
    lab.until(lambda: bool(answers))
    for number in range(10):
        lab.commit(1, b"%d" % number + BIG)
    trim_to_the_end(lab, 1, 2)
    lab.start(3)
    lab.until(caught_up(lab))
    lab.elect(3)
    again = lab.propose(3, b"first", b"p" * 16, 0)
    lab.until(lambda: bool(again))
    assert isinstance(again[0], Committed)
    assert (again[0].base_offset, again[0].duplicate) == (0, True)


def keep_everything(lab: Lab, number: int) -> None:
    """A node that trims nothing: its disk has the log from the beginning."""
    host(lab, number).housekeeping.keep = lambda group: None  # type: ignore[method-assign]


def with_a_long_log_on_2() -> Lab:
    """3 is outrun by 1, not by 2, and begins to copy."""
    lab = Lab(3)
    keep_everything(lab, 2)
    lab.elect(1)
    lab.commit(1, b"old" + BIG)
    lab.until(lab.on_all_disks)
    lab.kill(3)
    for number in range(10):
        lab.commit(1, b"%d" % number + BIG)
    trim_to_the_end(lab, 1)
    lab.until(lambda: lab[2].commit_index == lab[1].log.last_index)
    lab.start(3)
    return lab


def test_a_leader_that_has_what_it_needs_ends_the_copy() -> None:
    """What was copied is removed."""
    lab = with_a_long_log_on_2()
    lab.network.hold = lambda source, target, message: is_copy(message)
    lab.until(lambda: is_beside(lab.nodes[NodeId(3)].disk, GROUP))
    replica = lab[3]
    lab[1].transfer(NodeId(2))
    lab.until(lambda: lab.leader() == 2 and caught_up(lab)())
    lab.until(lambda: not is_beside(lab.nodes[NodeId(3)].disk, GROUP))
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.run(5)
    assert lab[3] is replica, "it was not replaced"


def test_a_copy_does_not_replace_what_has_gone_further() -> None:
    """The second line of defence: it was given entries by another leader since, and has acknowledged them."""
    lab = with_a_long_log_on_2()
    lab[3].guard.on_connected = lambda: None
    lab.network.hold = lambda source, target, message: is_copy(message)
    lab.until(lambda: any(m.copy_reply.snapshot_index for _, _, m in lab.network.held))
    lab[1].transfer(NodeId(2))
    lab.until(lambda: lab.leader() == 2)
    lab.commit(2, b"acknowledged")
    lab.until(lambda: lab[3].log.last_index == lab[2].log.last_index)
    lab.elect(1)
    replica, copying = lab[3], lab[3].copying
    assert copying is not None
    lab.network.hold = lambda source, target, message: False
    copying.leader_heard(lab[1].term, NodeId(1))
    lab.until(lambda: replica.copying is None)
    lab.run(5)
    assert lab[3] is replica, "it was not replaced"
    assert lab.values(3)[-1] == b"acknowledged"


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), CorruptDataError("no entry 5")])
def test_a_log_that_cannot_be_read_when_the_copy_is_whole(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whether it lacks what the copy begins with is asked again; what is damage is told."""
    lab, lacks, asked = outrun(), Group.lacks, list[RaftIndex]()

    def fail_once(group: Group, index: RaftIndex, term: Term) -> bool:
        asked.append(index)
        if len(asked) == 1:
            raise error
        return lacks(group, index, term)

    monkeypatch.setattr(Group, "lacks", fail_once)
    lab.start(3)
    lab.until(caught_up(lab), within=30)
    assert asked
    assert lab.values(3) == lab.values(1)
    told = any(" log_damaged " in event for event in lab.nodes[NodeId(3)].events)
    assert told == isinstance(error, CorruptDataError)


def test_a_copy_goes_on_after_a_restart() -> None:
    """Nothing of what is there is asked for again."""
    lab = outrun()
    copied = lab[1].log.last_index - 2
    lab.network.hold = lambda source, target, message: (
        message.WhichOneof("body") == "copy_request" and message.copy_request.next_index > copied
    )
    limit = 1  # one entry a request
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxd.core.limits.COPY_CHUNK_BYTES", limit)
        patch.setattr("fluxd.storage.tail.TailCache.frames", lambda *arguments: [])
        lab.start(3)
        lab.until(lambda: bool(lab.network.held), within=60)
        lab.kill(3)
        asked = len(lab.network.sent)
        lab.network.hold = lambda source, target, message: False
        lab.start(3)
        lab.until(caught_up(lab), within=60)
    wanted = [
        m.copy_request.next_index for _, _, m in lab.network.sent[asked:] if m.WhichOneof("body") == "copy_request"
    ]
    assert min(wanted) > copied


def test_it_is_outrun_again_while_it_copies() -> None:
    """Then it begins anew, behind that."""
    lab = outrun()
    lab.network.hold = lambda source, target, message: is_copy(message) and bool(message.copy_reply.frames)
    lab.start(3)
    lab.until(lambda: bool(lab.network.held))
    outrun_again(lab)
    lab.network.hold = lambda source, target, message: False
    lab.network.release()
    lab.until(caught_up(lab), within=20)
    assert lab.values(3) == lab.values(1)


def outrun_again(lab: Lab) -> None:
    """The leader lets go of more, behind a newer snapshot."""
    first = lab[1].log.first_index
    for number in range(10):
        lab.commit(1, b"more %d" % number + BIG)
    lab[1].trim(lab[1].high_watermark, lambda error: None)
    lab.until(lambda: lab[1].log.first_index > first)


def test_a_snapshot_is_sent_with_where_the_log_began_when_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The read takes long, and the leader's log begins elsewhere when it has ended: the snapshot does not vouch for
    that."""
    lab, read = outrun(), list[RaftIndex]()

    def read_slowly(fs: FileSystem, path: str, group: GroupId, last: RaftIndex) -> tuple[RaftIndex, bytes]:
        found = read_snapshot_file(fs, path, group, last)
        if not read:
            lab.nodes[NodeId(1)].speed.straggles = 2.0
        read.append(found[0])
        return found

    monkeypatch.setattr("fluxd.storage.log.read_snapshot_file", read_slowly)
    lab.start(3)
    lab.until(lambda: bool(read))
    outrun_again(lab)
    lab.until(lambda: any(is_copy(m) and m.copy_reply.snapshot_index for _, _, m in lab.network.sent))
    sent = next(m.copy_reply for _, _, m in lab.network.sent if is_copy(m) and m.copy_reply.snapshot_index)
    assert sent.snapshot_index == read[0]
    assert sent.first_index <= read[0] < lab[1].log.first_index
    lab.until(caught_up(lab), within=20)
    assert lab.values(3) == lab.values(1)


def test_a_log_is_not_given_away_for_a_copy_that_cannot_be_opened() -> None:
    """The leader's newest snapshot is damaged; the one before does not vouch for where its log begins. The replica
    keeps its log and its vote, asks again now and then, and is whole when there is a sound one."""
    lab = outrun()
    outrun_again(lab)
    disk, directory = lab.nodes[NodeId(1)].disk, f"partitions/{GROUP.directory_name}"
    lab.run(1.0)
    newest = max(name for name in disk.list(directory) if name.endswith(".snap"))
    disk.flip_bit(f"{directory}/{newest}", 30)
    lab.start(3)
    replica, events = lab[3], lab.nodes[NodeId(3)].events
    lab.until(lambda: any("does not vouch" in event for event in events))
    lab.run(20)
    assert lab[3] is replica
    assert sum("does not vouch" in event for event in events) < 10
    lab.kill(2)
    lab.run(5)
    assert lab.leader() == 1, "with its vote"
    faults = host(lab, 1).housekeeping.check(lab[1])
    assert faults is not None
    host(lab, 1).housekeeping.mend(lab[1], faults())
    lab.until(caught_up(lab), within=20)
    assert lab.values(3) == lab.values(1)


def start_until_power_cut(lab: Lab, after: int) -> bool:
    """Start node 3 and let it copy until the power fails at an operation; True: it did not come to that."""
    lab.nodes[NodeId(3)].disk.cut_after(after)
    try:
        lab.start(3)
        lab.until(lambda: (group := lab.nodes[NodeId(3)].group) is not None and group.log.first_index > 5)
    except PowerCut:
        return False
    return True


@pytest.mark.slow
def test_power_cut_at_every_step() -> None:
    """And once more after that: it takes part at every start, with its old log or the new one."""
    completed, after = False, 0
    while not completed:
        lab = outrun()
        expected, last = lab[1].log.last.checksum, lab[1].log.last_index
        for _ in range(2):
            completed = start_until_power_cut(lab, after)
            if completed:
                break
            lab.kill(3, power=True)
        if not completed:
            lab.start(3)
            assert lab.nodes[NodeId(3)].group is not None, "it is no less a replica than before"
            lab.until(caught_up(lab), within=20)
            assert lab[3].log.stamp_at(last).checksum == expected
        after += 1
    assert after > 20


def test_a_trim_entry_is_the_last_that_an_outrun_replica_had() -> None:
    """Entries without records count like others."""
    lab = Lab(3)
    lab.elect(1)
    lab.commit(1, b"old" + BIG)
    lab[1].trim(lab[1].high_watermark, lambda error: None)
    lab.until(lambda: all(lab[n].log_start_offset == 1 for n in (1, 2, 3)))
    assert lab[3].log.stamp_at(RaftIndex(lab[3].log.last_index)).kind is EntryKind.TRIM
    outrun(lab)
    lab.start(3)
    lab.until(caught_up(lab))
    assert lab.values(3) == lab.values(1)


def overtaken_until_replaced(lab: Lab, *, kept: int, trim_every: float, within: float) -> int:
    """Start node 3, write all the time and trim all but so many records now and then, until the copy has taken the
    log's place. Returns how often it began anew."""
    for _ in range(kept):
        lab.commit(1, BIG)
    lab.start(3)
    end, trim_at = lab.simulator.now + within, lab.simulator.now + trim_every
    events = lab.nodes[NodeId(3)].events
    while not any(" log_replaced " in event for event in events):
        assert lab.simulator.now < end, lab.describe()
        lab.commit(1, BIG)
        if lab.simulator.now >= trim_at:
            trim_at += trim_every
            lab[1].trim(Offset(lab[1].high_watermark - kept), lambda error: None)
    return sum(" copy_began_anew " in event for event in events)


def test_a_copy_that_the_pace_holds_up_is_overtaken_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader trims faster than may be copied: each time that it has let go of what comes next, the pace doubles."""
    monkeypatch.setattr(limits, "COPY_BYTES_PER_SECOND", 500_000)
    monkeypatch.setattr(limits, "COPY_CHUNK_BYTES", 60_000)
    lab = outrun()
    assert 1 <= overtaken_until_replaced(lab, kept=40, trim_every=0.3, within=limits.COPY_PATIENCE) <= 5
    lab.until(caught_up(lab))
    assert lab.values(3)[-40:] == lab.values(1)[-40:]


@pytest.mark.slow
def test_a_copy_whose_pieces_are_too_small_is_overtaken_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry at a time is no faster than those who write: more is asked for at once."""
    monkeypatch.setattr(limits, "COPY_BYTES_PER_SECOND", 1 << 40)
    monkeypatch.setattr(limits, "COPY_CHUNK_BYTES", 30_000)
    lab = outrun()
    assert 1 <= overtaken_until_replaced(lab, kept=150, trim_every=0.6, within=limits.COPY_PATIENCE) <= 5
    lab.until(caught_up(lab))
    assert lab.values(3)[-150:] == lab.values(1)[-150:]
