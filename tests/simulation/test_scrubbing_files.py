"""The small files of a replica that takes part, and those of its node: the scrub finds what the disk has lost of them,
says so, and has them written anew from what the process knows. Nothing is copied, and nobody leaves."""

from __future__ import annotations

import random

import pytest

from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.scrubbing import Scrubber
from fluxd.storage.checkpoint import FILE_BYTES, SLOT_POSITIONS, STATE_NAME
from fluxd.storage.directory import META_NAME, DataDirectory, open_directory
from fluxd.storage.snapshot import SUFFIX
from fluxd.storage.votes import HEADER_BYTES, RECORD_BYTES
from tests.simulation.disk import SimDisk
from tests.simulation.lab import Lab
from tests.simulation.node import VOTES
from tests.simulation.test_copying import healed, lab_with, node, takes_part
from tests.simulation.test_scrubbing import DIRECTORY, events, scrub

STATE = f"{DIRECTORY}/{STATE_NAME}"


def snapshots(lab: Lab, number: int) -> list[str]:
    """Paths, the oldest first."""
    return [f"{DIRECTORY}/{name}" for name in node(lab, number).disk.list(DIRECTORY) if name.endswith(SUFFIX)]


def restart(lab: Lab, number: int) -> None:
    lab.kill(number)
    lab.start(number)
    lab.until(healed(lab, number))


def mended(lab: Lab, number: int) -> None:
    """The scrub has found damage and repaired it, and finds none any more; the replica has taken part all the time."""
    of = node(lab, number)
    seen: list[bool] = []

    def done() -> bool:
        seen.append(takes_part(lab, number))
        return bool(events(of, "file_mended"))

    lab.until(done, within=20)
    assert all(seen)
    damaged, passes = len(events(of, "file_damaged")), len(events(of, "scrub_finished"))
    lab.until(lambda: len(events(of, "scrub_finished")) == passes + 2, within=20)
    assert len(events(of, "file_damaged")) == damaged
    assert lab[number].why == ""
    assert not of.disk.list("quarantine")


@pytest.mark.parametrize("cut", [None, 0, 100, 600, FILE_BYTES])
def test_a_damaged_state_file_is_written_anew(cut: int | None) -> None:
    """Both slots have a flipped bit, or the end is gone, or all of it is missing; after a restart all is there."""
    lab = lab_with()
    disk = node(lab, 3).disk
    if cut is None:
        disk.remove(STATE)
    elif cut < FILE_BYTES:
        disk.cut_off(STATE, cut)
    else:
        for position in SLOT_POSITIONS:
            disk.flip_bit(STATE, position + 20)
    scrub(lab, 3)
    mended(lab, 3)
    assert STATE in events(node(lab, 3), "file_damaged")[0]
    restart(lab, 3)
    assert not disk.list("quarantine")
    assert lab.values(3) == lab.values(1)


def test_what_is_written_while_the_state_file_is_mended_is_kept() -> None:
    """The mark goes on in the new file."""
    lab = lab_with()
    node(lab, 3).disk.flip_bit(STATE, SLOT_POSITIONS[0] + 20)
    node(lab, 3).disk.flip_bit(STATE, SLOT_POSITIONS[1] + 20)
    scrub(lab, 3)
    lab.until(lambda: bool(events(node(lab, 3), "file_damaged")), within=20)
    for number in range(5):
        lab.commit(1, b"%d" % number)
    mended(lab, 3)
    lab.commit(1, b"behind it")
    lab.until(lab.on_all_disks)
    restart(lab, 3)
    assert lab.values(3) == lab.values(1)
    assert not node(lab, 3).disk.list("quarantine")


def trimmed_lab() -> Lab:
    """All nodes have a snapshot, which the log cannot do without."""
    lab = lab_with(6)
    lab[1].trim(lab[1].high_watermark, lambda error: None)
    lab.until(lambda: all(lab[number].log.first_index > RaftIndex(1) for number in (1, 2, 3)), within=20)
    lab.until(lambda: bool(snapshots(lab, 3)))
    return lab


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_snapshot_is_replaced(damage: str) -> None:
    """All that there are; without any, a restart would find a log that nothing vouches for."""
    lab = trimmed_lab()
    disk = node(lab, 3).disk
    for path in snapshots(lab, 3):
        if damage == "flip":
            disk.flip_bit(path, 30)
        elif damage == "cut":
            disk.cut_off(path, 30)
        else:
            disk.remove(path)
    scrub(lab, 3)
    mended(lab, 3)
    assert f"{SUFFIX}: position 0" in (told := events(node(lab, 3), "file_damaged")[0]) or "is missing" in told
    restart(lab, 3)
    assert not disk.list("quarantine")
    lab.commit(1, b"after all")
    lab.until(lab.on_all_disks)
    assert lab.values(3) == lab.values(1)


def test_a_damaged_old_snapshot_goes() -> None:
    """A newer one is sound: nothing else is needed."""
    lab = trimmed_lab()
    scrub(lab, 3)
    for number in range(4):
        lab.commit(1, b"%d" % number + bytes(30_000))
    lab.until(lab.on_all_disks)
    lab.until(lambda: len(snapshots(lab, 3)) == 2, within=20)
    lab.run(1.0)  # no other one is under way
    oldest = snapshots(lab, 3)[0]
    node(lab, 3).disk.flip_bit(oldest, 30)
    mended(lab, 3)
    assert oldest not in snapshots(lab, 3)


def test_it_says_so_until_it_is_mended() -> None:
    """While the disk is full nothing can be written."""
    lab = trimmed_lab()
    disk = node(lab, 3).disk
    for path in snapshots(lab, 3):
        disk.flip_bit(path, 30)
    disk.room = 0
    scrub(lab, 3)
    lab.until(lambda: bool(events(node(lab, 3), "snapshot_failed")), within=20)
    assert lab[3].why.startswith(f"damaged, and being written anew: {DIRECTORY}/")
    assert "position 0" in lab[3].why
    disk.room = None
    mended(lab, 3)


@pytest.mark.parametrize("position", [3, HEADER_BYTES + 20, -1])
def test_damaged_votes_are_written_anew(position: int) -> None:
    """In the header, in a record, and in the last one, where the next start would take it for a torn tail."""
    lab = lab_with()
    disk = node(lab, 3).disk
    lab[1].transfer(NodeId(2))
    lab.until(lambda: lab.leader() == 2)
    lab.until(lambda: lab[3].term == lab[2].term and lab[3].guard.votes_durable())
    size = len(disk.current_bytes(VOTES))
    assert size >= HEADER_BYTES + RECORD_BYTES
    disk.flip_bit(VOTES, position % size)
    term = lab[3].term
    scrub(lab, 3)
    mended(lab, 3)
    assert f"{VOTES}: position" in events(node(lab, 3), "file_damaged")[0]
    lab.kill(3)
    lab.start(3)
    assert takes_part(lab, 3)
    assert lab[3].term >= term


def test_votes_that_are_missing_are_written_anew() -> None:
    """The name is gone, the open file is still there."""
    lab = lab_with()
    term = lab[3].term
    node(lab, 3).disk.remove(VOTES)
    scrub(lab, 3)
    mended(lab, 3)
    assert node(lab, 3).disk.exists(VOTES)
    restart(lab, 3)
    assert takes_part(lab, 3)
    assert lab[3].term >= term


@pytest.mark.parametrize("seed", range(12))
def test_a_vote_that_is_given_while_they_are_read_is_no_damage(seed: int) -> None:
    """Elections all the time, and a file that is written anew meanwhile."""
    lab = Lab(3, seed=seed)
    lab.elect(1)
    for number in (1, 2, 3):
        host, reactor = node(lab, number).host, node(lab, number).reactor
        assert host is not None
        assert reactor is not None
        Scrubber(reactor, host, node(lab, number)._log, interval_s=0.01, bytes_per_second=1 << 30).start()
    rng = random.Random(seed)
    for _ in range(20):
        leader = lab.leader()
        if leader is not None:
            lab[leader].transfer(None)
        lab.run(0.2 * rng.random())
    assert not [event for number in (1, 2, 3) for event in events(node(lab, number), "file_damaged")]
    assert len(events(node(lab, 1), "scrub_finished")) > 5


def why(lab: Lab, number: int) -> list[str]:
    """What a node says of its own files."""
    host = node(lab, number).host
    assert host is not None
    return [file.why for file in host.files if file.why]


def test_the_node_says_that_its_votes_are_damaged_until_they_are_written() -> None:
    """Nothing can be written while the disk is full."""
    lab = lab_with()
    disk = node(lab, 3).disk
    disk.flip_bit(VOTES, HEADER_BYTES + 20)
    disk.room = 0
    scrub(lab, 3)
    lab.until(lambda: len(events(node(lab, 3), "votes_sync_failed")) > 1, within=20)
    [said] = why(lab, 3)
    assert said.startswith(f"damaged, and being written anew: {VOTES}: position ")
    assert "; its votes cannot be written: " in said
    disk.room = None
    lab.until(lambda: bool(events(node(lab, 3), "file_mended")), within=30)
    assert not why(lab, 3)


def test_votes_that_cannot_be_written_are_told() -> None:
    """Sound as they are: a new term waits for room."""
    lab = lab_with()
    disk = node(lab, 3).disk
    disk.room = 0
    lab[1].transfer(NodeId(2))
    lab.until(lambda: bool(why(lab, 3)), within=20)
    assert why(lab, 3)[0].startswith("its votes cannot be written: ")
    disk.room = None
    lab.until(lambda: not why(lab, 3), within=30)
    lab.until(healed(lab), within=30)


def test_meta_json_is_tried_again_until_it_is_written() -> None:
    """Long before the next pass; the node says what is wrong until then."""
    lab = lab_with()
    disk = SimDisk(random.Random(1))
    directory = open_directory(disk, None, NodeId(3), random.Random(2).randbytes)
    host, reactor = node(lab, 3).host, node(lab, 3).reactor
    assert host is not None
    assert reactor is not None
    host.files.append(directory)
    disk.set_bytes(META_NAME, b"{}")
    disk.room = 0
    Scrubber(reactor, host, node(lab, 3)._log, interval_s=86_400.0, bytes_per_second=1 << 30).start()
    lab.until(lambda: bool(events(node(lab, 3), "file_not_mended")), within=70)
    [said] = why(lab, 3)
    assert said.startswith(f"damaged, and being written anew: {META_NAME}: position 0: ")
    assert f"; its {META_NAME} cannot be written: " in said
    disk.room = None
    lab.until(lambda: bool(events(node(lab, 3), "file_mended")), within=70)
    assert not why(lab, 3)
    assert len(events(node(lab, 3), "file_not_mended")) == 1
    assert open_directory(disk, None, NodeId(3), random.Random(3).randbytes).meta == directory.meta


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_meta_json_is_written_anew(damage: bytes | None) -> None:
    """It says whose the directory is; without it the node does not start."""
    disk = SimDisk(random.Random(1))
    directory: DataDirectory = open_directory(disk, None, NodeId(3), random.Random(2).randbytes)
    directory.set_cluster("cluster", ())
    read = directory.begin_check()
    assert read is not None
    assert read() == ""
    if damage is None:
        disk.remove(META_NAME)
    else:
        disk.set_bytes(META_NAME, damage)
    assert read().startswith(f"{META_NAME}: position 0: ")
    for step in directory.mend(read()):
        step()
    assert (read(), directory.why) == ("", "")
    assert open_directory(disk, None, NodeId(3), random.Random(3).randbytes).meta == directory.meta
