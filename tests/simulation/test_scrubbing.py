"""A bit that flips on the disk of a replica that takes part: the scrub finds it, the replica leaves when the group
can do without it, is copied, and counts again. Nothing that was acknowledged is lost."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from fluxd.core import limits
from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.scrubbing import Scrubber
from fluxd.raft.spec import Role
from fluxd.storage.log import PartitionLog
from fluxd.storage.scrub import LogScrub, Piece, Verified
from tests.simulation.lab import Lab, Message
from tests.simulation.node import GROUP, SimNode
from tests.simulation.test_copying import healed, lab_with, node, takes_part

DIRECTORY = f"partitions/{GROUP.directory_name}"
SEGMENT = f"{DIRECTORY}/{1:020d}.seg"
POSITION = 40_000
"""In the second record of the first segment, which is closed."""


def scrub(lab: Lab, number: int, bytes_per_second: int = 1 << 30) -> Scrubber:
    """Have a node read its closed segments again, a pass every second."""
    host, reactor = node(lab, number).host, node(lab, number).reactor
    assert host is not None
    assert reactor is not None
    scrubber = Scrubber(reactor, host, node(lab, number)._log, interval_s=1.0, bytes_per_second=bytes_per_second)
    scrubber.start()
    return scrubber


def events(of: SimNode, name: str) -> list[str]:
    return [event for event in of.events if f" {name} " in event]


def is_leave(message: Message) -> bool:
    return message.WhichOneof("body") == "copy_request" and message.copy_request.leave


def damaged(lab: Lab, number: int) -> Callable[[], bool]:
    """The node knows it."""
    return lambda: bool(events(node(lab, number), "log_damaged"))


def test_a_sound_log_is_read_and_left_alone() -> None:
    """All closed segments, again and again; the one that is written is not."""
    lab = lab_with()
    scrub(lab, 3)
    before = node(lab, 3).disk.bytes_read
    lab.until(lambda: len(events(node(lab, 3), "scrub_finished")) == 2)
    closed = sum(
        len(node(lab, 3).disk.durable_bytes(f"{DIRECTORY}/{name}") or b"")
        for name in node(lab, 3).disk.list(DIRECTORY)
        if name.endswith(".seg") and name != max(n for n in node(lab, 3).disk.list(DIRECTORY) if n.endswith(".seg"))
    )
    assert closed > 60_000
    assert f"'bytes': {closed}," in events(node(lab, 3), "scrub_finished")[1]
    assert node(lab, 3).disk.bytes_read - before >= 2 * closed
    assert not damaged(lab, 3)()
    assert takes_part(lab, 3)


def test_a_damaged_follower_is_copied() -> None:
    """While records are written. What was there is set aside, and the reason is told."""
    lab = lab_with()
    node(lab, 3).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 3)
    lab.until(lambda: not takes_part(lab, 3))
    replica = node(lab, 3).replica
    assert isinstance(replica, OfflineGroup)
    assert replica.role is Role.UNADMITTED
    assert f"its log is damaged: {SEGMENT}: position 30" in replica.why
    lab.commit(1, b"meanwhile")
    lab.until(healed(lab))
    assert lab.values(3) == lab.values(1)
    assert node(lab, 3).disk.list(f"quarantine/{GROUP.directory_name}.1")
    lab.kill(2)
    lab.commit(1, b"with the copy's acknowledgement")


def test_a_damaged_leader_hands_over_before_it_leaves() -> None:
    """It leads to the end, and the next leader is one that has everything."""
    lab = lab_with()
    term = lab[1].term
    node(lab, 1).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 1)
    lab.until(lambda: not takes_part(lab, 1))
    leader = lab.leader()
    assert leader in (2, 3)
    assert lab[leader].term == term + 1
    requests = [m for _, _, m in lab.network.sent if m.WhichOneof("body") == "vote_request" and m.term == term + 1]
    assert requests
    assert all(m.vote_request.transfer for m in requests)
    lab.until(healed(lab, 1))
    assert lab.values(1) == lab.values(leader)


def test_damage_on_two_of_three_is_repaired_in_turn() -> None:
    """At the same moment: if both left, nobody could say what was committed."""
    lab = lab_with()
    for number in (2, 3):
        node(lab, number).disk.flip_bit(SEGMENT, POSITION)
        scrub(lab, number)
    out: list[set[int]] = []

    def both_healed() -> bool:
        out.append({number for number in (2, 3) if not takes_part(lab, number)})
        quarantined = all(node(lab, n).disk.list(f"quarantine/{GROUP.directory_name}.1") for n in (2, 3))
        return quarantined and healed(lab, 2)() and healed(lab, 3)()

    lab.until(both_healed, within=30)
    assert {2, 3} not in out
    assert {2} in out
    assert {3} in out
    assert lab.values(2) == lab.values(3) == lab.values(1)


def test_a_leader_and_a_follower_are_repaired_in_turn() -> None:
    """The leader cannot serve the copy of what it lost itself: it hands over."""
    lab = lab_with()
    for number in (1, 3):
        node(lab, number).disk.flip_bit(SEGMENT, POSITION)
        scrub(lab, number)
    values = lab.values(2)

    def both_healed() -> bool:
        quarantined = all(node(lab, n).disk.list(f"quarantine/{GROUP.directory_name}.1") for n in (1, 3))
        return quarantined and healed(lab, 1)() and healed(lab, 3)()

    lab.until(both_healed, within=60)
    assert lab.values(1) == lab.values(3) == values


def test_it_stays_while_another_replica_is_missing() -> None:
    """The group goes on with it, and it says what is wrong; when the other one is back, it is copied."""
    lab = lab_with()
    lab.kill(2)
    node(lab, 3).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 3)
    lab.until(damaged(lab, 3))
    lab.run(10)
    assert takes_part(lab, 3)
    assert lab[3].why.startswith(f"its log is damaged: {SEGMENT}: position 30")
    lab.commit(1, b"with a damaged replica")
    lab.start(2)
    lab.until(lambda: not takes_part(lab, 3), within=20)
    lab.until(healed(lab), within=20)
    assert lab.values(3) == lab.values(1)


def test_a_request_to_leave_that_is_held_back_does_not_silence_the_replica() -> None:
    """It asks when it hears of the leader of a new term, by an entry that its disk has later than the term: nothing
    else of it waits for the votes, and nothing is stepped when they are durable.
    """
    lab = lab_with()
    lab.network.hold = lambda s, t, m: is_leave(m) and t == 1
    node(lab, 3).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 3)
    lab.until(damaged(lab, 3))
    lab.network.hold = lambda s, t, m: (is_leave(m) and t == 1) or (t == 3 and m.WhichOneof("body") == "vote_request")
    lab[1].transfer(NodeId(2))
    lab.until(lambda: lab.leader() == 2)
    node(lab, 3).speed.straggles = 1.0
    lab.until(lambda: lab[3].guard.outbox.holds)
    lab.until(lab[3].guard.votes_durable)
    assert lab[3].leader_id == 2 and lab[3].log.synced_index < lab[3].log.last_index
    lab.until(lambda: bool(events(node(lab, 3), "replica_unadmitted")))
    lab.until(healed(lab))


def test_of_two_replicas_the_damaged_one_stays() -> None:
    """There is no majority without it."""
    lab = lab_with(nodes=2)
    node(lab, 2).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 2)
    lab.until(damaged(lab, 2))
    lab.run(10)
    assert takes_part(lab, 2)
    lab.commit(1, b"with a damaged replica")


def test_damage_that_is_trimmed_is_told_no_more() -> None:
    """Where there is nobody to copy from: the next segments are sound."""
    lab = lab_with(nodes=1)
    node(lab, 1).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 1)
    lab.until(damaged(lab, 1))
    assert SEGMENT in lab[1].why
    lab[1].trim(lab[1].high_watermark, lambda error: None)
    lab.until(lambda: not lab[1].why)
    assert lab[1].log.first_index > RaftIndex(1)
    lab.run(5)
    assert not lab[1].why
    assert len(events(node(lab, 1), "log_damaged")) == 1


def test_what_can_be_read_again_is_told_no_more() -> None:
    """Where there is nobody to copy from: the disk failed for a moment."""
    lab = lab_with(nodes=2)
    scrub(lab, 2)
    node(lab, 2).disk.fail_next("read", OSError(errno.EIO, "bad disk", SEGMENT), path=SEGMENT)
    lab.until(damaged(lab, 2))
    assert SEGMENT in lab[2].why
    lab.until(lambda: not lab[2].why)
    assert len(events(node(lab, 2), "damage_read_again")) == 1
    lab.run(5)
    assert not lab[2].why
    assert len(events(node(lab, 2), "log_damaged")) == 1


def test_another_segment_that_is_sound_does_not_end_it() -> None:
    lab = lab_with(records=8, nodes=2)
    segments = sorted(name for name in node(lab, 2).disk.list(DIRECTORY) if name.endswith(".seg"))
    assert len(segments) > 2
    node(lab, 2).disk.flip_bit(f"{DIRECTORY}/{segments[1]}", POSITION)
    scrub(lab, 2)
    lab.until(damaged(lab, 2))
    passes = len(events(node(lab, 2), "scrub_finished"))
    lab.until(lambda: len(events(node(lab, 2), "scrub_finished")) == passes + 3)
    assert segments[1] in lab[2].why
    assert not events(node(lab, 2), "damage_read_again")


def test_a_leader_that_cannot_be_replaced_goes_on() -> None:
    """Its followers are gone or far behind."""
    lab = lab_with()
    lab.cut((1,), (2, 3))
    node(lab, 1).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 1)
    lab.until(damaged(lab, 1))
    lab.run(5)
    assert takes_part(lab, 1)
    lab.heal()
    lab.until(lambda: bool(node(lab, 1).disk.list("quarantine")), within=30)
    lab.until(healed(lab, 1), within=20)


def test_what_a_leaving_replica_acknowledged_late_does_not_count() -> None:
    """The entry may be in quarantine by then."""
    lab = lab_with()
    node(lab, 3).disk.flip_bit(SEGMENT, POSITION)
    scrub(lab, 3)
    lab.network.hold = lambda source, target, message: target == 3 and message.WhichOneof("body") == "copy_reply"
    lab.until(lambda: any(is_leave(message) for _, _, message in lab.network.sent), within=20)
    lab.until(lambda: bool(lab.network.held))
    lab.network.hold = lambda source, target, message: (
        (target == 2 and message.WhichOneof("body") == "append_entries")
        or (target == 3 and message.WhichOneof("body") == "copy_reply")
    )
    answers = lab.propose(1, b"only on 1 and 3")
    index = lab[1].log.last_index + 1
    lab.until(lambda: lab[3].log.synced_index == index and lab[1].guard.counters["reply_of_a_leaving_replica"] > 0)
    assert not answers
    assert lab[1].commit_index < index


def test_nobody_leaves_whose_acknowledgement_is_needed() -> None:
    """What the leader's own disk does not have yet may be on this one alone."""
    lab = lab_with()
    node(lab, 1).speed.hung_until = lab.simulator.now + 0.9
    lab.network.hold = lambda source, target, message: target == 2
    last = lab[1].log.last_index
    lab.propose(1, b"on 3 alone")
    lab.until(lambda: lab[1].guard.leading.progress[NodeId(3)].match == last + 1)
    assert not lab[1].guard.leading.may_leave(NodeId(3))


def test_a_read_that_meets_the_damage_first_tells_it() -> None:
    """A leader that has to send a damaged entry to a follower stops at once, and another one leads."""
    lab = lab_with(150)  # the first entries are no more in memory
    lab.kill(3)
    node(lab, 3).wipe()
    node(lab, 1).disk.flip_bit(SEGMENT, POSITION)
    lab.start(3)
    lab.until(healed(lab, 3), within=60)
    lab.until(damaged(lab, 1))
    lab.until(lambda: bool(node(lab, 1).disk.names("quarantine")), within=60)
    lab.until(healed(lab, 1), within=60)
    assert lab.values(3) == lab.values(1)


def test_a_log_that_was_opened_again_is_read_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scrub was says nothing of the files that there are now."""
    monkeypatch.setattr(limits, "SCRUB_PIECE_BYTES", 1)
    lab = lab_with(10)
    asked: list[tuple[PartitionLog, Verified]] = []
    next_piece = LogScrub.next_piece

    def noted(of: LogScrub, after: Verified, **arguments: Any) -> Piece | None:
        if of is lab[3].log.scrub:
            asked.append((lab[3].log, after))
        return next_piece(of, after, **arguments)

    monkeypatch.setattr(LogScrub, "next_piece", noted)
    scrub(lab, 3, bytes_per_second=5_000)  # it rests for seconds after each piece
    before = lab[3].log
    lab.until(lambda: bool(asked) and asked[-1][1].segment > 1, within=100)
    pieces = len(asked)
    node(lab, 3).disk.fail_next("sync", OSError(errno.EIO, "bad disk"), path=".seg")
    lab.commit(1, b"while it fails")
    lab.until(lambda: lab[3].log is not before)
    assert len(asked) == pieces
    lab.until(lambda: len(asked) > pieces, within=60)
    assert asked[pieces] == (lab[3].log, Verified())


def test_a_trimmed_segment_is_no_damage() -> None:
    """It went while it was being read."""
    lab = lab_with(6)
    scrub(lab, 3)
    piece = lab[3].log.scrub.next_piece(Verified(), end_index=lab[3].commit_index, max_bytes=1, closed_only=True)
    assert piece is not None
    assert not lab[3].log.scrub.is_gone(piece.segment)
    lab[1].trim(lab[1].high_watermark, lambda error: None)
    lab.until(lambda: lab[3].log.first_index > RaftIndex(1))
    lab.run(5)
    assert lab[3].log.scrub.is_gone(piece.segment)
    assert not damaged(lab, 3)()


@pytest.mark.parametrize("number", [1, 3])
def test_a_read_of_a_trimmed_segment_is_no_damage(number: int) -> None:
    """Of a leader and of a follower: it was asked for before the segment went, and failed after that."""
    lab = lab_with(6)
    log = lab[number].log
    piece = log.scrub.next_piece(Verified(), end_index=lab[number].commit_index, max_bytes=1)
    assert piece is not None
    lab[1].trim(lab[1].high_watermark, lambda error: None)
    lab.until(lambda: log.first_index > RaftIndex(1))
    lab.run(1)
    with pytest.raises(FileNotFoundError) as raised:
        piece.read()
    lab[number].read_failed(raised.value)
    lab.run(8)
    assert not damaged(lab, number)()
    assert takes_part(lab, number) and lab[number].log is log
