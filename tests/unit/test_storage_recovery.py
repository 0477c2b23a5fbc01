"""Torn or corrupt: what a power cut can leave is recovered to a prefix; what only damage can leave is reported and
left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from fluxd.core.entry import read_stamp
from fluxd.core.errors import InvariantViolation
from fluxd.core.types import RaftIndex
from fluxd.storage.checkpoint import SLOT_POSITIONS
from fluxd.storage.errors import LogCorrupt, LogMissing
from fluxd.storage.log import PartitionLog
from fluxd.storage.segment import segment_name
from tests.simulation.disk import Keep, PowerCut, SimDisk
from tests.storage_kit import BIRTH, DIRECTORY, append, create_log, frames_of, next_frame, open_log, run, sync

SMALL = 1_000
FIRST = f"{DIRECTORY}/{segment_name(1)}"
STATE = f"{DIRECTORY}/state"


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def contents(disk: SimDisk) -> dict[str, bytes]:
    """All bytes of the log's directory."""
    return {name: disk.current_bytes(f"{DIRECTORY}/{name}") for name in disk.list(DIRECTORY)}


def refused(disk: SimDisk, match: str, segment_bytes: int = SMALL) -> None:
    """Opening reports corruption in these words and changes nothing, as often as it is tried."""
    before = contents(disk)
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=match):
            open_log(disk, segment_bytes)
    assert contents(disk) == before


# ---- torn tails


@pytest.mark.parametrize("zeros", [False, True])
def test_a_torn_write_at_every_byte_recovers_exactly_the_prefix(disk: SimDisk, zeros: bool) -> None:
    """Whatever of the last frame reached the disk, with zeros for the rest or without: it is gone, all before stays."""
    log = create_log(disk)
    frames = [BIRTH, append(log), append(log, b"x" * 50)]
    sync(log)
    last = append(log, b"y" * 40)
    whole = disk.current_bytes(FIRST)
    log.close()
    for there in range(len(last)):
        torn = whole[: len(whole) - len(last) + there] + bytes(len(last) - there if zeros else 0)
        if torn == whole:
            continue
        twin = disk.copy(random.Random(there))
        twin.set_bytes(FIRST, torn)
        log = open_log(twin)
        assert frames_of(log) == frames
        assert twin.durable_bytes(FIRST) == b"".join(frames)
        after = append(log, b"z")
        sync(log)
        twin.power_cut(Keep.NOTHING)
        assert frames_of(open_log(twin)) == [*frames, after]


def test_an_unsynced_tail_that_is_whole_is_kept_and_synced(disk: SimDisk) -> None:
    """After a kill all is there; recovery makes it durable before anybody relies on it."""
    log = create_log(disk, SMALL)
    for _ in range(12):
        append(log, bytes(200))
    expected = frames_of(log)
    disk.kill()
    log = open_log(disk, SMALL)
    assert (frames_of(log), log.dirty) == (expected, False)
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk, SMALL)) == expected


def test_a_torn_first_entry_of_a_segment_removes_the_segment(disk: SimDisk) -> None:
    """At every byte, also when nothing of it is there; the log goes on, in the segment before or a new one."""
    log = create_log(disk, SMALL)
    while disk.list(DIRECTORY)[-2] == segment_name(1):
        append(log, bytes(300))
    second = f"{DIRECTORY}/{segment_name(log.last_index)}"
    whole, expected = disk.current_bytes(second), frames_of(log)[:-1]
    disk.sync_everything()
    for there in range(0, len(whole), 7):
        twin = disk.copy(random.Random(there))
        twin.set_bytes(second, whole[:there])
        log = open_log(twin, SMALL)
        assert frames_of(log) == expected
        assert not twin.exists(second)
        append(log, bytes(300))
        sync(log)
        assert len(frames_of(open_log(twin, SMALL))) == len(expected) + 1


def test_a_later_segment_that_no_finished_sync_covered_is_removed(disk: SimDisk) -> None:
    """The end of one segment is lost, the next one is there: the system wrote them in another order. Not corruption."""
    log = create_log(disk, SMALL)
    append(log, bytes(200))
    sync(log)
    while sum(name.endswith(".seg") for name in disk.list(DIRECTORY)) < 4:
        append(log, bytes(200))
    frames = frames_of(log)
    disk.sync_everything()
    disk.set_bytes(FIRST, disk.current_bytes(FIRST)[:-10])
    log = open_log(disk, SMALL)
    recovered = frames_of(log)
    assert recovered == frames[: len(recovered)]
    assert 2 <= len(recovered) < len(frames)
    assert disk.list(DIRECTORY) == [segment_name(1), "state"]


def test_a_creation_cut_off_at_any_step_is_missing_or_whole() -> None:
    """Power lost between any two steps of creation: LogMissing, so that it may be created again, or the birth entry."""
    for after in range(30):
        for seed in range(12):
            disk = SimDisk(random.Random(seed))
            disk.cut_after(after)
            try:
                create_log(disk)
                done = True
            except PowerCut:
                done = False
            disk.power_cut()
            try:
                assert frames_of(open_log(disk)) == [BIRTH]
            except LogMissing:
                assert not done
                create_log(disk).close()
                disk.power_cut(Keep.NOTHING)
                assert frames_of(open_log(disk)) == [BIRTH]
    assert done


def test_a_kill_at_any_step_of_creation_leaves_nothing_half_durable() -> None:
    """What is found after a kill may be in memory only; what is opened and synced then survives a power cut."""
    for after in range(20):
        disk = SimDisk(random.Random(after))
        disk.make_directory("partitions")
        disk.sync_directory("")
        disk.cut_after(after)
        with suppress(PowerCut):
            create_log(disk)
        disk.cut_after(1_000)
        disk.kill()
        try:
            log = open_log(disk)
        except LogMissing:
            log = create_log(disk)
        frames = [BIRTH, append(log)]
        sync(log)
        disk.power_cut(Keep.NOTHING)
        assert frames_of(open_log(disk)) == frames


# ---- corruption


def damaged(disk: SimDisk) -> PartitionLog:
    log = create_log(disk, SMALL)
    for _ in range(20):
        append(log, b"x" * 150)
    sync(log)
    log.close()
    return log


def test_every_damaged_header_below_the_mark_is_corruption(disk: SimDisk) -> None:
    """In the last segment each header up to the mark is read; the message names file, position and index."""
    log = damaged(disk)
    last = sorted(name for name in disk.list(DIRECTORY) if name.endswith(".seg"))[-1]
    path, start = f"{DIRECTORY}/{last}", int(last[:20])
    size = disk.current_bytes(path)
    assert log.last_index > start
    for at in (0, 2, 5, 6, 8, 17, 26, 51):
        for frame in range(log.last_index - start + 1):
            if (at, frame) == (51, 0):
                continue  # what the segment before ends with is checked when that is first read
            twin = disk.copy(random.Random(at))
            twin.flip_bit(path, frame * len(size) // (log.last_index - start + 1) + at)
            refused(twin, rf"{last}.*position \d+|{last}: begins with|{last}: entry .* cannot stand")


def test_bytes_missing_below_the_mark_are_corruption(disk: SimDisk) -> None:
    """A file shorter than the mark, a missing last, middle or first file, an empty file."""
    log = damaged(disk)
    names = sorted(name for name in disk.list(DIRECTORY) if name.endswith(".seg"))
    last = f"{DIRECTORY}/{names[-1]}"
    assert log.last_index > int(names[-1][:20])

    def short(twin: SimDisk) -> None:
        twin.set_bytes(last, disk.current_bytes(last)[:-1])

    cases: list[tuple[Callable[[SimDisk], None], str]] = [
        (short, f"{names[-1]}.*bytes, but it was synced up to"),
        (lambda twin: twin.remove(last), f"{names[-1]} is missing; it was synced up to"),
        (lambda twin: twin.remove(FIRST), "begins with entry"),
        (lambda twin: twin.set_bytes(FIRST, b""), f"{segment_name(1)}: position 0"),
        (lambda twin: twin.set_bytes(f"{DIRECTORY}/{names[1]}", bytes(500)), f"{names[1]}: position 0"),
        (lambda twin: twin.remove(STATE), "state is missing"),
        (lambda twin: twin.set_bytes(STATE, bytes(1024)), "state is missing or unreadable"),
    ]
    for damage, message in cases:
        twin = disk.copy(random.Random(1))
        damage(twin)
        refused(twin, message)
    for name in names:
        disk.remove(f"{DIRECTORY}/{name}")
    refused(disk, "is missing")


def test_a_sound_entry_behind_bad_bytes_is_corruption(disk: SimDisk) -> None:
    """Above the mark: a flip in any byte of an entry that is not the last one is not taken for a torn tail."""
    log = create_log(disk)
    append(log)
    sync(log)
    start = len(disk.current_bytes(FIRST))
    middle = append(log, b"m" * 30)
    append(log, b"last")
    log.close()
    disk.sync_everything()
    for at in range(len(middle)):
        twin = disk.copy(random.Random(1))
        twin.flip_bit(FIRST, start + at, bit=at % 8)
        refused(twin, rf"{segment_name(1)}: position {start}: .*behind entry 2; .* entry 4 stands behind it")


def test_a_copied_frame_in_a_torn_value_is_no_sound_entry_behind(disk: SimDisk) -> None:
    """Somebody stores frames as values; the entry is torn behind one. It is too old to count."""
    log = create_log(disk)
    old = append(log, b"old")
    other = next_frame(read_stamp(BIRTH), b"first of another log")
    sync(log)
    whole = append(log, b"<" + old + other + b">" * 50)
    log.close()
    disk.sync_everything()
    disk.set_bytes(FIRST, disk.current_bytes(FIRST)[:-20])
    assert len(whole) > 200
    assert frames_of(open_log(disk)) == [BIRTH, old]


def test_a_spliced_log_is_corruption(disk: SimDisk) -> None:
    """A sound entry above the mark that does not follow the one before it."""
    log = create_log(disk)
    sync(log)
    append(log, b"one")
    follows = append(log, b"two")
    log.close()
    disk.sync_everything()
    stranger = next_frame(read_stamp(BIRTH), b"six")
    disk.set_bytes(FIRST, BIRTH + stranger + follows)
    refused(disk, f"{segment_name(1)}: position .*entry 3 follows checksum")


# ---- the sync mark


def test_a_torn_mark_leaves_the_one_before_it(disk: SimDisk) -> None:
    """Power lost while the mark is written, at any byte: the older mark holds, which is lower and so asks for less."""
    log = create_log(disk)
    append(log)
    sync(log)
    append(log)
    expected = frames_of(log)
    before = disk.current_bytes(STATE)
    sync(log)
    after = disk.current_bytes(STATE)
    disk.sync_everything()
    at = SLOT_POSITIONS[1]
    assert before[:at] == after[:at], "an unsynced mark never replaces the one that is durable"
    for there in range(65):
        twin = disk.copy(random.Random(1))
        twin.set_bytes(STATE, before[:at] + after[at : at + there] + before[at + there :])
        assert frames_of(open_log(twin)) == expected


def test_the_mark_moves_on_over_truncations_and_rolls(disk: SimDisk) -> None:
    """Marks written unsynced and synced take turns in the two slots; after each the log opens."""
    log = create_log(disk, SMALL)
    for number in range(30):
        append(log, bytes(100 + number), term=number)
        if number % 3 == 0:
            sync(log)
        if number % 5 == 4:
            log.truncate_suffix(RaftIndex(log.last_index - 1))
        synced = log.synced_index
        frames = frames_of(log)
        for keep in Keep:
            twin = disk.copy(random.Random(number))
            twin.power_cut(keep)
            found = frames_of(open_log(twin, SMALL))
            assert found == frames[: len(found)]
            assert len(found) >= synced


def test_a_sync_that_ran_but_was_not_finished_is_no_promise(disk: SimDisk) -> None:
    """The steps have run, the process dies before it hears of it: all is there."""
    log = create_log(disk, SMALL)
    for _ in range(10):
        append(log, bytes(200))
    job = log.begin_sync()
    run(job.steps)
    expected = frames_of(log)
    disk.power_cut(Keep.NOTHING)
    assert frames_of(open_log(disk, SMALL)) == expected


@pytest.mark.parametrize("synced_before_roll", [False, True])
def test_a_finished_segment_is_below_the_mark_once_a_later_one_is_synced(
    disk: SimDisk, synced_before_roll: bool
) -> None:
    """Its lost end is corruption then, even if power took the last, unsynced mark: synced entries stand behind it."""
    log = create_log(disk, SMALL)
    while sum(name.endswith(".seg") for name in disk.list(DIRECTORY)) < 2:
        if synced_before_roll:
            sync(log)
        append(log, bytes(200))
    sync(log)
    disk.power_cut(Keep.NOTHING)
    disk.set_bytes(FIRST, disk.current_bytes(FIRST)[:-1])
    refused(disk, f"{segment_name(1)}: .* bytes, but it was synced up to")


def test_a_log_that_is_there_is_not_replaced(disk: SimDisk) -> None:
    """Creating over it is a broken invariant, and leaves it as it is; also over a damaged one."""
    log = damaged(disk)
    expected = contents(disk)
    with pytest.raises(InvariantViolation, match="a log is there"):
        create_log(disk)
    assert contents(disk) == expected
    assert open_log(disk, SMALL).last_index == log.last_index


def test_a_checkpoint_in_a_damaged_older_segment_is_corruption(disk: SimDisk) -> None:
    """Where the term at the commit index has to be read from it, opening finds the damage."""
    log = create_log(disk, SMALL)
    for number in range(20):
        append(log, b"x" * 150, term=number)
    sync(log, 4)
    log.close()
    disk.flip_bit(FIRST, len(BIRTH) + 5)
    before = contents(disk)
    with pytest.raises(LogCorrupt, match=rf"{segment_name(1)}: position {len(BIRTH)}"):
        open_log(disk, SMALL)
    assert contents(disk) == before
