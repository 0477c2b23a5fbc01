"""The log start moves on all replicas alike, and nobody loses what he needs."""

from __future__ import annotations

import errno

import pytest

from fluxd.core.entry import EntryKind
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId, Offset, RaftIndex
from fluxd.raft.proposal import Committed
from fluxd.storage.checkpoint import STATE_NAME
from fluxd.storage.segment import segment_name
from tests.simulation.disk import SimDisk
from tests.simulation.lab import Lab, is_append, is_reply
from tests.simulation.node import DIRECTORY, GROUP

BIG = bytes(30_000)


def lab_with(records: int, nodes: int = 3) -> Lab:
    """Node 1 leads; so many big records, on all disks."""
    lab = Lab(nodes)
    lab.elect(1)
    for number in range(records):
        lab.commit(1, b"%d" % number + BIG)
    lab.until(lab.on_all_disks)
    return lab


def trim(lab: Lab, offset: int, node: int = 1) -> list[FluxError | None]:
    answers: list[FluxError | None] = []
    lab[node].trim(Offset(offset), answers.append)
    return answers


def segment_names(disk: SimDisk) -> list[str]:
    """In order."""
    return [name for name in disk.names(DIRECTORY) if name.endswith(".seg")]


def trimmed(lab: Lab, offset: int, *nodes: int) -> bool:
    return all(lab[n].log_start_offset == offset and lab[n].log.first_index > 1 for n in nodes)


def test_the_log_start_rises_on_all_replicas_and_segments_go() -> None:
    """Also on one that is started again; reading goes on behind it."""
    lab = lab_with(10)
    answers = trim(lab, 7)
    lab.until(lambda: answers == [None] and trimmed(lab, 7, 1, 2, 3))
    for node in (1, 2, 3):
        lab.kill(node, power=True)
        lab.start(node)
        assert trimmed(lab, 7, node)
        assert lab[node].log_end_offset == 10
    lab.until(lambda: lab.leader() is not None)
    leader = lab.leader()
    assert leader is not None
    assert lab.commit(leader, b"more").base_offset == 10


def test_a_trim_that_failed_is_tried_again() -> None:
    """Also when nothing else is to go: the disk would fill with what is no more part of the log."""
    lab = lab_with(10)
    disk = lab.nodes[NodeId(2)].disk
    disk.fail_next("remove", OSError(errno.EIO, "bad disk"), path=".seg")
    trim(lab, 7)
    lab.until(lambda: trimmed(lab, 7, 1, 2, 3))
    lab.until(lambda: any("trim_failed" in event for event in lab.nodes[NodeId(2)].events))
    lab.until(lambda: segment_names(disk)[0] == segment_name(lab[2].log.first_index))
    assert lab[2].openings == 1 and lab[2].log.first_index > 1


def test_the_producer_table_outlives_the_entries() -> None:
    """A retry of what was trimmed is recognised, by a process that never saw the entry."""
    lab = lab_with(0)
    answers = lab.propose(1, b"first", b"p" * 16, 0)
    lab.until(lambda: bool(answers))
    for number in range(10):
        lab.commit(1, b"%d" % number + BIG)
    lab.until(lab.on_all_disks)
    trim(lab, 11)
    lab.until(lambda: trimmed(lab, 11, 1, 2, 3))
    for node in (1, 2, 3):
        lab.kill(node)
    for node in (1, 2, 3):
        lab.start(node)
    lab.elect(2)
    again = lab.propose(2, b"first", b"p" * 16, 0)
    lab.until(lambda: bool(again))
    assert isinstance(again[0], Committed)
    assert (again[0].base_offset, again[0].duplicate) == (0, True)


def test_a_start_behind_the_high_watermark_is_refused() -> None:
    """What is not committed may still go."""
    lab = lab_with(2)
    (answer,) = trim(lab, 3)
    assert isinstance(answer, FluxError)
    assert answer.reason is Reason.OFFSET_OUT_OF_RANGE
    assert trim(lab, 0) == [None], "it is there already"


def test_a_trim_that_is_truncated_is_not_in_force() -> None:
    """Its leader was cut off: the caller does not know, and the log start stays where it was."""
    lab = lab_with(5)
    lab.network.hold = lambda source, target, message: source == 1 and is_append(message)
    answers = trim(lab, 3)
    lab.until(lambda: lab[1].log.stamp_at(lab[1].log.last_index).kind is EntryKind.TRIM)
    lab.cut((1,), (2, 3))
    lab.until(lambda: lab.leader() in (2, 3))
    lab.until(lambda: bool(answers))
    assert isinstance(answers[0], FluxError)
    assert answers[0].reason is Reason.OUTCOME_UNKNOWN
    lab.network.hold = lambda source, target, message: False
    lab.heal()
    leader = lab.leader()
    assert leader is not None
    lab.commit(leader, b"more")
    lab.until(lambda: all(lab[n].commit_index == lab[leader].log.last_index for n in (1, 2, 3)))
    assert [lab[n].log_start_offset for n in (1, 2, 3)] == [0, 0, 0]


def test_a_leader_with_a_longer_log_talks_to_a_trimmed_follower() -> None:
    """What it names before the follower's first entry was committed, so it is the same."""
    lab = lab_with(10)
    host = lab.nodes[NodeId(1)].host
    assert host is not None
    host.housekeeping.keep = lambda group: None  # type: ignore[method-assign]
    trim(lab, 9)
    lab.until(lambda: trimmed(lab, 9, 2, 3))
    assert lab[1].log.first_index == 1
    progress = lab[1].guard.leading.progress[NodeId(2)]
    progress.sequence += 1
    message = lab[1].guard.outbox.message()
    message.append_entries.sequence = progress.sequence
    message.append_entries.previous_index = 2
    message.append_entries.previous_term = lab[1].log.term_at(RaftIndex(2))
    message.append_entries.frames.extend(lab[1].log.frame_at(RaftIndex(index)) for index in (3, 4))
    lab[2].receive(NodeId(1), message)
    replies = [m.append_reply for source, _, m in lab.network.sent if source == 2 and is_reply(m)]
    assert (replies[-1].echoed_sequence, replies[-1].success) == (progress.sequence, True)


@pytest.mark.parametrize("next_index", [1, 2, 3])
def test_a_rewind_stops_at_the_first_entry(next_index: int) -> None:
    """Before it the library would ask for its own snapshot, which the guard keeps shut: the leader would fail."""
    lab = lab_with(10)
    trim(lab, 9)
    lab.until(lambda: trimmed(lab, 9, 1, 2, 3))
    leading = lab[1].guard.leading
    leading._rewind(NodeId(2), leading.progress[NodeId(2)], next_index)
    assert lab.commit(1, b"more").base_offset == 10
    lab.until(lambda: lab[2].commit_index == lab[1].commit_index)


def test_what_the_leader_would_send_next_is_not_before_its_log() -> None:
    """A follower that the library has not looked at for long, while the head went."""
    lab = lab_with(10)
    leading = lab[1].guard.leading
    lab.network.hold = lambda source, target, message: {source, target} == {1, 3}
    lab.run(0.1)
    leading.progress[NodeId(3)].next_index = 2
    lab[1].guard.inject_reset(NodeId(3), 2)
    lab[1].guard.hide(NodeId(3))
    trim(lab, 9)
    lab.until(lambda: trimmed(lab, 9, 1, 2))
    assert leading.progress[NodeId(3)].next_index > lab[1].log.first_index
    lab.network.hold = lambda source, target, message: False
    lab.commit(1, b"more")
    lab.until(lambda: lab[3].commit_index == lab[1].commit_index)


def test_the_head_is_not_needed_for_term_and_commit_after_a_restart() -> None:
    """The checkpoint is lost with the power: what the snapshot covers is committed."""
    lab = lab_with(10)
    trim(lab, 9)
    lab.until(lambda: trimmed(lab, 9, 1, 2, 3))
    lab.kill(3, power=True)
    lab.start(3)
    assert lab[3].commit_index >= lab[3].log.first_index
    assert lab[3].high_watermark >= lab[3].log_start_offset
    assert lab[3].log.term_at(RaftIndex(lab[3].log.first_index)) >= 0


def test_a_hole_that_two_trims_left_is_no_loss() -> None:
    """The first one could not remove its segments, the second one did, and the power goes: what stands before the hole
    is not needed, and what was in it counts as trimmed (seed 910032)."""
    lab = lab_with(10)
    disk = lab.nodes[NodeId(3)].disk
    disk.fail_next("sync", OSError(errno.EIO, "Input/output error"), path=f"{GROUP.directory_name}/{STATE_NAME}")
    trim(lab, 4)
    lab.until(lambda: any(" trim_failed " in event for event in lab.nodes[NodeId(3)].events))
    trim(lab, 8)
    lab.until(lambda: trimmed(lab, 8, 1, 2, 3))
    lab.run(1.0)
    lab.kill(3, power=True)
    first, entries = lab[1].log.first_index, lab.invariants.durable(lab.nodes[NodeId(3)])
    assert min(entries) == first
    lab.invariants.check_committed_is_durable(list(range(2, first)), needed=3)
    lab.start(3)
    assert lab[3].log.first_index == first
