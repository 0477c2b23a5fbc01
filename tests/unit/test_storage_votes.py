"""Terms and votes: durable after a sync, never fall, survive compaction, and damage is told from a torn tail."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fluxd.core.errors import InvariantViolation
from fluxd.core.types import GroupId, NodeId
from fluxd.storage.errors import VotesCorrupt, VotesMissing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.real import RealFileSystem
from fluxd.storage.votes import COMPACT_BYTES, HEADER_BYTES, RECORD_BYTES, Vote, VoteFile
from tests.simulation.disk import Keep, PowerCut, SimDisk
from tests.storage_kit import GROUP, run, term

OTHER = GroupId(bytes(16), 0)
A, B = NodeId(1), NodeId(2)


@pytest.fixture(params=["real", "simulated"])
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    if request.param == "real":
        return RealFileSystem(tmp_path / "data")
    return SimDisk(random.Random(1))


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def sync(votes: VoteFile) -> None:
    job = votes.begin_sync()
    run(job.steps)
    votes.finish_sync(job)


def test_the_last_vote_of_each_group_holds(fs: FileSystem) -> None:
    """Per group and generation, over a restart; a group never heard of has none."""
    votes = VoteFile.create(fs, "votes")
    assert votes.get(GROUP, 0) is None
    votes.put(GROUP, 0, term(1), None)
    votes.put(GROUP, 0, term(1), A)
    votes.put(OTHER, 0, term(7), B)
    votes.put(GROUP, 1, term(1 << 32), None)
    sync(votes)
    votes.close()
    votes = VoteFile.open(fs, "votes")
    assert votes.get(GROUP, 0) == Vote(term(1), A)
    assert votes.get(OTHER, 0) == Vote(term(7), B)
    assert votes.get(GROUP, 1) == Vote(term(1 << 32), None)
    assert (votes.get(OTHER, 1), votes.dirty) == (None, True)
    sync(votes)
    assert not votes.dirty


def test_a_missing_file_is_said(fs: FileSystem) -> None:
    """The caller knows whether it ought to be there."""
    with pytest.raises(VotesMissing, match="votes is missing"):
        VoteFile.open(fs, "votes")


def test_operations_count_and_a_sync_covers_those_before_it(disk: SimDisk) -> None:
    """synced_op follows finished syncs; the same vote again is no operation."""
    votes = VoteFile.create(disk, "votes")
    assert [votes.put(GROUP, 0, term(n), None) for n in (1, 2, 2)] == [1, 2, 2]
    job = votes.begin_sync()
    assert votes.put(GROUP, 0, term(2), A) == 3
    with pytest.raises(InvariantViolation, match="in flight"):
        votes.begin_sync()
    run(job.steps)
    assert votes.synced_op == 0
    votes.finish_sync(job)
    assert (votes.synced_op, votes.dirty) == (2, True)
    sync(votes)
    assert (votes.synced_op, votes.dirty) == (3, False)


def test_a_term_never_falls_and_a_vote_never_changes(disk: SimDisk) -> None:
    """A breach stops the caller; nothing is written."""
    votes = VoteFile.create(disk, "votes")
    votes.put(GROUP, 0, term(5), A)
    before = disk.current_bytes("votes")
    for number, voted_for in ((4, None), (5, B), (5, None)):
        with pytest.raises(InvariantViolation, match=r"term falls|changes"):
            votes.put(GROUP, 0, term(number), voted_for)
    assert disk.current_bytes("votes") == before
    votes.put(GROUP, 0, term(6), B)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_torn_record_at_every_byte_is_cut(disk: SimDisk, zeros: bool) -> None:
    """What was synced before it stays."""
    votes = VoteFile.create(disk, "votes")
    votes.put(GROUP, 0, term(1), A)
    sync(votes)
    votes.put(GROUP, 0, term(2), B)
    whole = disk.current_bytes("votes")
    for there in range(RECORD_BYTES):
        disk.set_bytes(
            "votes", whole[: len(whole) - RECORD_BYTES + there] + bytes(RECORD_BYTES - there if zeros else 0)
        )
        opened = VoteFile.open(disk, "votes")
        assert opened.get(GROUP, 0) == Vote(term(1), A)
        opened.put(OTHER, 0, term(1), B)
        assert disk.current_bytes("votes").startswith(whole[: len(whole) - RECORD_BYTES + there]), "nothing behind it"
        sync(opened)
        assert (disk.durable_bytes("votes") or b"")[: len(whole) - RECORD_BYTES] == whole[:-RECORD_BYTES]


def test_damage_is_not_a_torn_tail(disk: SimDisk) -> None:
    """A flip in the header or in a record with a sound one behind it; terms that fall; another format."""
    votes = VoteFile.create(disk, "votes")
    for number in (1, 2, 3):
        votes.put(GROUP, 0, term(number), A)
    sync(votes)
    whole = disk.current_bytes("votes")
    for at in range(len(whole) - RECORD_BYTES):
        twin = disk.copy(random.Random(1))
        twin.flip_bit("votes", at, at % 8)
        damaged = twin.current_bytes("votes")
        with pytest.raises(VotesCorrupt, match="votes: position"):
            VoteFile.open(twin, "votes")
        assert twin.current_bytes("votes") == damaged
    first, second = (whole[HEADER_BYTES + n * RECORD_BYTES :][:RECORD_BYTES] for n in (0, 1))
    disk.set_bytes("votes", whole[:HEADER_BYTES] + second + first)
    with pytest.raises(VotesCorrupt, match="term falls from 2 to 1"):
        VoteFile.open(disk, "votes")


def test_what_a_failed_sync_left_is_written_by_the_next_process(disk: SimDisk) -> None:
    """It reads a vote that the disk does not have; a sync of that file would not bring it there."""
    votes = VoteFile.create(disk, "votes")
    votes.put(GROUP, 0, term(1), A)
    disk.rng.random = lambda: 0.99  # type: ignore[method-assign]  # nothing reaches the disk, the cache keeps it
    disk.fail_next("sync", OSError("bad disk"))
    with pytest.raises(OSError, match="bad disk"):
        run(votes.begin_sync().steps)
    disk.kill()
    votes = VoteFile.open(disk, "votes")
    assert votes.get(GROUP, 0) == Vote(term(1), A)
    assert votes.dirty
    sync(votes)
    disk.power_cut(Keep.NOTHING)
    assert VoteFile.open(disk, "votes").get(GROUP, 0) == Vote(term(1), A)


def test_a_failed_sync_or_append_forgets_nothing(disk: SimDisk) -> None:
    """Votes stay in memory, and nothing is durable until all have been written anew."""
    votes = VoteFile.create(disk, "votes")
    votes.put(GROUP, 0, term(1), A)
    job = votes.begin_sync()
    votes.sync_failed(job, OSError("bad disk"))
    disk.fail_next("append", OSError("full"))
    votes.put(OTHER, 0, term(4), B)
    assert (votes.synced_op, votes.trouble) == (0, "bad disk")
    job = votes.begin_sync()
    with pytest.raises(OSError, match="full"):
        run(job.steps)
    votes.sync_failed(job, OSError("full"))
    votes.put(OTHER, 0, term(5), None)
    sync(votes)
    assert (votes.dirty, votes.trouble) == (False, "")
    votes.put(OTHER, 0, term(5), A)
    sync(votes)
    disk.power_cut(Keep.NOTHING)
    opened = VoteFile.open(disk, "votes")
    assert (opened.get(GROUP, 0), opened.get(OTHER, 0)) == (Vote(term(1), A), Vote(term(5), A))


def fill(votes: VoteFile) -> None:
    """Records enough that the next sync writes the file anew."""
    known = votes.get(GROUP, 0)
    start = known.term if known else 0
    for number in range(COMPACT_BYTES // RECORD_BYTES + 10):
        votes.put(GROUP, 0, term(start + number + 1), A)


def test_a_large_file_is_written_anew(fs: FileSystem) -> None:
    """It keeps the live votes and those put meanwhile; later ones go to the new file."""
    votes = VoteFile.create(fs, "votes")
    votes.put(OTHER, 0, term(1), B)
    fill(votes)
    last = votes.get(GROUP, 0)
    assert last is not None
    job = votes.begin_sync()
    run(job.steps)
    op = votes.put(GROUP, 0, term(last.term + 1), A)
    votes.finish_sync(job)
    assert votes.synced_op < op
    votes.put(OTHER, 0, term(2), None)
    sync(votes)
    votes.close()
    file = fs.open("votes")
    assert file.size() == HEADER_BYTES + 4 * RECORD_BYTES
    file.close()
    votes = VoteFile.open(fs, "votes")
    assert (votes.get(GROUP, 0), votes.get(OTHER, 0)) == (Vote(term(last.term + 1), A), Vote(term(2), None))
    assert fs.list("") == ["votes"]
    votes.close()


@pytest.mark.parametrize("keep", list(Keep))
@pytest.mark.parametrize("after", range(9))
def test_power_cut_at_every_step_of_writing_anew(after: int, keep: Keep) -> None:
    """What an earlier sync covered is there after it, whichever file has survived; the next sync works."""
    for seed in range(5):
        disk = SimDisk(random.Random(seed))
        votes = VoteFile.create(disk, "votes")
        votes.put(OTHER, 0, term(3), B)
        sync(votes)
        fill(votes)
        job = votes.begin_sync()
        votes.put(OTHER, 0, term(4), A)
        disk.cut_after(after)
        covered = [Vote(term(3), B), None]
        try:
            run(job.steps)
            covered[1] = votes.get(GROUP, 0)
            votes.finish_sync(job)
        except PowerCut:
            pass
        disk.power_cut(keep)
        votes = VoteFile.open(disk, "votes")
        assert votes.get(OTHER, 0) in (covered[0], Vote(term(4), A))
        assert covered[1] in (None, votes.get(GROUP, 0))
        votes.put(OTHER, 0, term(5), None)
        sync(votes)
        disk.power_cut(Keep.NOTHING)
        assert VoteFile.open(disk, "votes").get(OTHER, 0) == Vote(term(5), None)
