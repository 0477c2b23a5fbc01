"""A replica whose disk was lost copies, is admitted, and takes part again; nothing that was acknowledged is lost,
whatever its predecessor had promised."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from fluxd.core import limits
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.proposal import Committed
from fluxd.raft.spec import Role
from fluxd.storage import copies
from fluxd.storage.filesystem import FileSystem
from tests.simulation.disk import PowerCut
from tests.simulation.lab import Lab, Message, is_append, is_reply
from tests.simulation.node import GROUP, SimNode

BIG = bytes(30_000)


def lab_with(records: int = 4, nodes: int = 3) -> Lab:
    """Node 1 leads; so many big records, on all disks."""
    lab = Lab(nodes)
    lab.elect(1)
    for number in range(records):
        lab.commit(1, b"%d" % number + BIG)
    lab.until(lab.on_all_disks)
    return lab


def node(lab: Lab, number: int) -> SimNode:
    return lab.nodes[NodeId(number)]


def wipe(lab: Lab, number: int) -> None:
    lab.kill(number)
    node(lab, number).wipe()
    lab.start(number)


def takes_part(lab: Lab, number: int) -> bool:
    return node(lab, number).group is not None


def healed(lab: Lab, number: int = 3) -> Callable[[], bool]:
    """It takes part and has what the leader has."""

    def check() -> bool:
        leader = lab.leader()
        if leader is None or not takes_part(lab, number) or lab[number].leader_id != leader:
            return False
        return lab[number].commit_index == lab[leader].log.last_index

    return check


def is_entries(message: Message) -> bool:
    return is_append(message) or (message.WhichOneof("body") == "copy_reply" and bool(message.copy_reply.frames))


def test_a_wiped_replica_comes_back_and_counts_again() -> None:
    """While records are written; afterwards it is one of two that keep the group going."""
    lab = lab_with()
    wipe(lab, 3)
    assert node(lab, 3).replica is not None
    lab.commit(1, b"meanwhile")
    lab.until(healed(lab))
    assert lab.values(3) == lab.values(1)
    lab.kill(2)
    lab.commit(1, b"with the copy's acknowledgement")


def test_pieces_that_take_longer_than_a_request_is_waited_for_count_all_the_same() -> None:
    """A request that is repeated keeps its nonce; else each answer would come for one that is no longer asked."""
    lab = lab_with(records=8)
    lab.network.weather.delay_low = lab.network.weather.delay_high = 0.6 * limits.COPY_RETRY
    lab.run(10.0)
    wipe(lab, 3)
    lab.until(healed(lab), within=60.0)
    leader = lab.leader()
    assert leader is not None
    assert lab.values(3) == lab.values(leader)


def test_an_error_at_the_very_end_does_not_begin_the_copy_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica has been admitted, and may be needed: here another one is lost in that moment."""
    lab, real, failed = lab_with(), copies.finish, list[GroupId]()

    def finish(fs: FileSystem, group: GroupId) -> None:
        if not failed:
            failed.append(group)
            fs.remove(f"partitions/{group.directory_name}/{copies.MARK}")
            raise OSError(errno.EIO, "the directory's sync failed")
        real(fs, group)

    monkeypatch.setattr(copies, "finish", finish)
    wipe(lab, 3)
    lab.until(lambda: bool(failed))
    lab.kill(2)
    node(lab, 2).wipe()
    lab.until(healed(lab), within=30.0)
    assert len(lab.values(3)) == 4
    lab.commit(1, b"with the copy's acknowledgement")


def test_a_producer_faster_than_the_pace_does_not_keep_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gains nothing at first, so the pace is raised until it does."""
    monkeypatch.setattr(limits, "COPY_BYTES_PER_SECOND", 400_000)
    monkeypatch.setattr(limits, "COPY_CHUNK_BYTES", 50_000)
    monkeypatch.setattr(limits, "COPY_PATIENCE", 1.0)
    lab = lab_with()
    wipe(lab, 3)
    began = lab.simulator.now
    while not takes_part(lab, 3):
        lab.commit(1, b"meanwhile" + BIG)
        lab.run(0.02)
        assert lab.simulator.now < began + 30.0
    written = len(lab.values(1))
    assert len(BIG) * written > 2 * 400_000 * (lab.simulator.now - began), "faster than the pace all the time"
    lab.until(healed(lab))
    assert lab.values(3) == lab.values(1)


def test_many_small_entries_do_not_raise_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """More entries come than are copied, but far fewer bytes: the copy gains, at the pace that was set."""
    monkeypatch.setattr(limits, "COPY_BYTES_PER_SECOND", 100_000)
    monkeypatch.setattr(limits, "COPY_CHUNK_BYTES", 50_000)
    monkeypatch.setattr(limits, "COPY_PATIENCE", 0.5)
    lab = lab_with()
    for _ in range(10):
        lab.commit(1, BIG)
    wipe(lab, 3)
    began, written = lab.simulator.now, 0
    while not takes_part(lab, 3):
        lab.commit(1, b"small")
        written += 1
        assert lab.simulator.now < began + 60.0
    assert written > 50
    lab.until(healed(lab))
    assert not [event for event in node(lab, 3).events if "copy_pace_raised" in event]


def test_it_says_how_far_it_is() -> None:
    """In words, while it waits and while it copies."""
    lab = lab_with()
    lab.network.hold = lambda source, target, message: message.WhichOneof("body") == "copy_reply"
    wipe(lab, 3)
    replica = node(lab, 3).replica
    assert isinstance(replica, OfflineGroup)
    assert replica.why.endswith("; waiting for a leader to copy from")
    lab.until(lambda: replica.why.endswith("; copying, 0 %"))
    assert replica.role is Role.UNADMITTED


def test_the_leader_says_at_once_who_is_not_in_sync() -> None:
    """A process that is gone, and one that is back with an empty disk, whatever its predecessor had."""
    lab = lab_with()
    assert [follower.in_sync for follower in lab[1].leader_status().followers] == [True, True]
    lab.kill(3)
    lab.run(0.02)
    assert [follower.in_sync for follower in lab[1].leader_status().followers] == [True, False]
    lab.network.hold = lambda source, target, message: message.WhichOneof("body") == "copy_reply"
    node(lab, 3).wipe()
    lab.start(3)
    lab.until(lambda: bool(lab.network.held))
    follower = lab[1].leader_status().followers[1]
    assert (follower.durable_index, follower.in_sync, follower.HasField("last_heard_ms")) == (0, False, False)
    lab.network.hold = lambda source, target, message: False
    lab.until(healed(lab))
    lab.until(lambda: lab[1].leader_status().followers[1].in_sync)


def test_a_wiped_disk_and_an_absent_node_lose_nothing() -> None:
    """The record is on 1 and was on 3; without 1 nobody says what was committed, so nobody leads and nobody is
    admitted. With 1 it is all there."""
    lab = lab_with()
    lab.cut((2,), (1, 3))
    lab.commit(1, b"precious")
    lab.kill(1)
    wipe(lab, 3)
    lab.heal()
    lab.run(20)
    assert lab.leader() is None
    assert not takes_part(lab, 3)
    lab.start(1)
    lab.until(healed(lab), within=20)
    assert b"precious" in lab.values(2)
    assert b"precious" in lab.values(3)


def is_admission(message: Message) -> bool:
    return message.WhichOneof("body") == "copy_request" and message.copy_request.admit


def test_nobody_is_admitted_while_another_replica_is_silent() -> None:
    """Leader and newcomer are two of three, but one of them does not count; nor does an answer to an older question."""
    lab = lab_with()
    lab.network.hold = lambda source, target, message: source == 2
    lab.until(lambda: bool(lab.network.held))
    old = list(lab.network.held)
    lab.network.hold = lambda source, target, message: target == 2
    before = len(lab.network.sent)
    wipe(lab, 3)
    lab.until(lambda: any(is_admission(message) for _, _, message in lab.network.sent[before:]))
    lab.run(0.05)
    lab.network.release(old)
    lab.run(0.2)
    assert not takes_part(lab, 3)
    lab.network.hold = lambda source, target, message: False
    lab.until(healed(lab), within=20)


def test_what_the_lost_disk_acknowledged_late_does_not_count() -> None:
    """Its reply was on the way all the time."""
    lab = lab_with()
    lab.network.hold = lambda source, target, message: (
        (is_reply(message) and source == 3) or (is_entries(message) and target == 2)
    )
    lab.propose(1, b"not committed")
    lab.until(lambda: any(m.append_reply.durable_index == 7 for _, _, m in lab.network.held if is_reply(m)), within=5)
    late = [held for held in lab.network.held if held[0] == 3]
    lab.network.hold = lambda source, target, message: is_entries(message) and (target == 2 or is_append(message))
    wipe(lab, 3)
    lab.until(lambda: takes_part(lab, 3))
    assert lab[1].commit_index == 6
    lab.network.release(late)
    lab.run(0.05)
    assert lab[1].guard.counters["reply_of_a_lost_disk"] > 0
    assert lab[1].commit_index == 6


def test_two_that_are_lost_a_second_time_do_not_wait_for_each_other() -> None:
    """One leader has admitted both before: it counts on the answers of each for the other's admission."""
    lab = lab_with(nodes=5)
    term = lab[1].term
    for leaders in ({1}, {1, 2, 3}):
        for number in (4, 5):
            lab.kill(number)
            node(lab, number).wipe()
        for number in (4, 5):
            lab.start(number)
        lab.until(lambda: healed(lab, 4)() and healed(lab, 5)(), within=30)
        leader = lab.leader() or 0
        assert leader in leaders
        assert leader == 1 or lab[leader].term > term
        lab.until(lambda leader=leader: lab.on_all_disks(leader))  # type: ignore[misc]
    assert lab.values(4) == lab.values(5) == lab.values(leader)
    lab.commit(leader, b"with their acknowledgements")


def test_one_that_is_lost_a_second_time_is_admitted_by_the_same_leader() -> None:
    """It waits for nobody who copies: nothing is handed over."""
    lab = lab_with()
    term = lab[1].term
    for _ in range(2):
        wipe(lab, 3)
        lab.until(healed(lab))
        lab.until(lab.on_all_disks)
    assert (lab.leader(), lab[1].term) == (1, term)


def test_a_vote_that_the_lost_disk_had_asked_for_does_not_elect() -> None:
    """The old request, granted late for the old log, arrives while the new disk campaigns in the same term."""
    lab = lab_with()
    lab.network.hold = lambda source, target, message: (
        (is_reply(message) and source == 3) or (is_entries(message) and target == 2)
    )
    answers = lab.propose(1, b"precious")
    lab.until(lambda: lab[3].log.synced_index == 7)
    kept = list(lab.network.held)
    lab.network.hold = lambda source, target, message: source == 3
    lab[3].guard.elections._campaign()
    lab.until(lambda: any(m.WhichOneof("body") == "vote_request" for _, _, m in lab.network.held))
    asked = [h for h in lab.network.held if h[1] == 2 and h[2].WhichOneof("body") == "vote_request"]
    lab.network.hold = lambda source, target, message: is_entries(message) and (target == 2 or is_append(message))
    wipe(lab, 3)
    lab.until(lambda: takes_part(lab, 3))
    assert lab[3].log.last_index == 6
    lab.network.hold = lambda source, target, message: target == 3 or source == 3
    lab.network.release([held for held in kept if held[1] == 2])
    lab.until(lambda: bool(answers))
    assert isinstance(answers[0], Committed)
    lab.kill(1)
    for other in (2, 3):
        lab[other].guard.elections.deadline = lab.simulator.now + 1e6
    lab.run(2.5)
    lab[3].guard.elections._campaign()
    lab.network.hold = lambda source, target, message: False
    lab.network.release(asked)
    lab.run(0.2)
    assert lab[3].role is not Role.LEADER
    assert lab[3].guard.counters["foreign_vote"] > 0


def test_the_vote_of_the_term_of_admission_is_spent() -> None:
    """Its predecessor may have given it to anybody."""
    lab = lab_with()
    lab.network.hold = lambda source, target, message: is_append(message)
    wipe(lab, 3)
    lab.until(lambda: takes_part(lab, 3))
    request = lab[2].guard.outbox.message()
    request.vote_request.last_index = request.vote_request.last_term = 100
    assert request.term == lab[3].term
    lab.network.hold = lambda source, target, message: source == 1
    lab[3].guard.stir()
    lab[3].guard.elections._heard_at = float("-inf")
    before = len(lab.network.sent)
    lab[3].receive(NodeId(2), request)
    lab.run(0.2)
    assert not [m for source, _, m in lab.network.sent[before:] if source == 3 and m.WhichOneof("body") == "vote_reply"]


def test_everything_up_to_the_admission_is_copied_first() -> None:
    """What was committed while it asked."""
    lab = lab_with()
    lab.network.hold = lambda source, target, message: is_admission(message)
    wipe(lab, 3)
    lab.until(lambda: bool(lab.network.held))
    lab.commit(1, b"meanwhile")
    lab.network.hold = lambda source, target, message: target == 3 and is_entries(message)
    lab.network.release()
    lab.run(0.7)
    assert not takes_part(lab, 3)
    lab.network.hold = lambda source, target, message: False
    lab.until(healed(lab))


def test_what_the_lost_disk_acknowledged_is_committed_before_it_is_admitted() -> None:
    """The leader counts it already: then the newcomer must have it, too."""
    lab = lab_with(nodes=5)
    lab.network.hold = lambda source, target, message: is_entries(message) and target in (2, 4, 5)
    lab.propose(1, b"acknowledged, not committed")
    lab.until(lambda: lab[1].guard.leading.progress[NodeId(3)].match == 7)
    wipe(lab, 3)
    lab.run(0.8)
    assert lab[1].commit_index == 6
    assert not takes_part(lab, 3)
    lab.network.hold = lambda source, target, message: False
    lab.until(healed(lab), within=20)


def start_until_power_cut(lab: Lab, after: int) -> bool:
    """Start node 3 and let it copy until the power fails at an operation; True: it did not come to that."""
    node(lab, 3).disk.cut_after(after)
    try:
        lab.start(3)
        lab.until(lambda: takes_part(lab, 3))
    except PowerCut:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("trim", [False, True])
def test_power_cut_at_every_step_of_a_copy(trim: bool) -> None:
    """And once more after that: the copy goes on or begins again, nobody is misled, everything is there in the end."""
    completed, after = False, 0
    while not completed:
        lab = lab_with(6)
        if trim:
            lab[1].trim(lab[1].high_watermark, lambda error: None)
            lab.until(lambda lab=lab: all(lab[n].log.first_index > 1 for n in (1, 2, 3)))  # type: ignore[misc]
        expected, last = lab[1].log.last.checksum, lab[1].log.last_index
        lab.kill(3)
        node(lab, 3).wipe()
        for _ in range(2):
            completed = start_until_power_cut(lab, after)
            if completed:
                break
            lab.kill(3, power=True)
        if not completed:
            lab.start(3)
            lab.until(healed(lab), within=20)
            assert lab[3].log.stamp_at(last).checksum == expected
            assert lab[3].log_start_offset == lab[1].log_start_offset
        after += 1
    assert after > 15


def test_the_state_comes_with_a_log_that_begins_in_the_middle() -> None:
    """A retry of what was trimmed long ago is recognised by the copy."""
    lab = lab_with(0)
    answers = lab.propose(1, b"first", b"p" * 16, 0)
    lab.until(lambda: bool(answers))
    for number in range(10):
        lab.commit(1, b"%d" % number + BIG)
    lab.until(lab.on_all_disks)
    lab[1].trim(lab[1].high_watermark, lambda error: None)
    lab.until(lambda: all(lab[n].log.first_index > 1 for n in (1, 2, 3)))
    wipe(lab, 3)
    lab.until(healed(lab))
    assert lab[3].log_start_offset == 11
    lab.elect(3)
    again = lab.propose(3, b"first", b"p" * 16, 0)
    lab.until(lambda: bool(again))
    assert isinstance(again[0], Committed)
    assert (again[0].base_offset, again[0].duplicate) == (0, True)


def test_a_damaged_log_is_set_aside_and_copied() -> None:
    """What is there is kept for those who want to know what happened."""
    lab = lab_with()
    lab.kill(3)
    disk = node(lab, 3).disk
    directory = f"partitions/{GROUP.directory_name}"
    disk.flip_bit(f"{directory}/{1:020d}.seg", 40_000)
    disk.flip_bit(f"{directory}/state", 40)
    disk.flip_bit(f"{directory}/state", 552)
    lab.start(3)
    assert not takes_part(lab, 3)
    lab.until(healed(lab))
    assert lab.values(3) == lab.values(1)
    assert disk.list(f"quarantine/{GROUP.directory_name}.1")


def test_nothing_is_set_aside_while_nobody_leads() -> None:
    """What is damaged may be the last copy that there is."""
    lab = lab_with()
    for number in (1, 2, 3):
        lab.kill(number)
    disk = node(lab, 3).disk
    disk.flip_bit(f"partitions/{GROUP.directory_name}/{1:020d}.seg", 70)
    lab.start(3)
    lab.run(5)
    assert not disk.list("quarantine")
    lab.start(1)
    lab.start(2)
    lab.until(healed(lab), within=20)
    assert disk.list("quarantine")


def test_what_cannot_be_read_at_the_moment_is_left_alone() -> None:
    """An error of the machine is no damage: the replica stays out as long as it lasts, and its files where they are."""
    lab = lab_with()
    lab.kill(3)
    disk = node(lab, 3).disk
    for _ in range(4):
        disk.fail_next("open", OSError(24, "Too many open files"), path=".seg")
    lab.start(3)
    lab.run(0.2)
    assert not takes_part(lab, 3)
    lab.until(healed(lab))
    assert not disk.list("quarantine")
    assert disk.errors == 4


def test_two_lost_disks_of_five() -> None:
    """Those who copy need not confirm; a third one would be too many."""
    lab = lab_with(nodes=5)
    wipe(lab, 4)
    wipe(lab, 5)
    lab.until(lambda: healed(lab, 4)() and healed(lab, 5)(), within=20)
    assert takes_part(lab, 4)
    assert takes_part(lab, 5)


def test_two_replicas_cannot_be_repaired() -> None:
    """No majority is left that could say what was committed."""
    lab = lab_with(nodes=2)
    wipe(lab, 2)
    lab.run(10)
    assert not takes_part(lab, 2)
    replica = node(lab, 2).replica
    assert isinstance(replica, OfflineGroup)
    assert replica.why.endswith("is no majority that could say what was committed, but what it has can be read")


def test_a_copy_goes_on_at_the_next_leader() -> None:
    """Nothing of what is there is asked for again."""
    lab = lab_with(6)
    lab.network.hold = lambda source, target, message: is_admission(message)
    wipe(lab, 3)
    lab.until(lambda: bool(lab.network.held))
    lab[1].transfer(NodeId(2))
    lab.until(lambda: lab.leader() == 2)
    asked = len(lab.network.sent)
    lab.network.hold = lambda source, target, message: False
    lab.until(healed(lab))
    wanted = [
        m.copy_request.next_index for _, _, m in lab.network.sent[asked:] if m.WhichOneof("body") == "copy_request"
    ]
    assert min(wanted) >= 8


def test_what_is_queued_of_a_copy_does_not_outlive_its_partition() -> None:
    """All threads of the pool were busy when it was deleted: its directory is not made anew behind the removal."""
    lab = lab_with()
    wipe(lab, 3)
    disk, replica, host = node(lab, 3).disk, node(lab, 3).replica, node(lab, 3).host
    assert isinstance(replica, OfflineGroup) and replica.copying is not None and host is not None
    copying = replica.copying
    lab.until(lambda: copying._working)
    host.close(GROUP)
    assert disk.names(f"partitions/{GROUP.directory_name}") == []
    lab.run(5)
    assert GROUP.directory_name not in disk.names("partitions")
