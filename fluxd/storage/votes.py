"""Terms and votes of all groups of a node: one append file, so that an election of many groups is one sync.

    position  bytes  content (little-endian)
    0         8      "FLUXVOTE"
    8         4      format version, 1
    12        4      CRC-32C of bytes 0..11
    16+40n    40     record n: topic id 16, partition 4, generation 4, term 8, voted for 2 (0: nobody), reserved 2,
                     CRC-32C 4 of the 36 bytes before

The last record of a (group, generation) holds. A term never falls, and a vote once given in a term is not given to
another.

Crash windows. A record is written at once and durable after the next sync; no message that reflects it may leave
before. Power lost in between: the record is there, or is not, or is torn at the very end of the file: not taken over at
open. Bad bytes with a sound record behind them are corruption: the node has no votes. A file that has grown large is
written anew beside the old one, synced, renamed and its name synced within a sync job; records put meanwhile go to the
old file and are written again to the new one when the job has finished, before anybody was told that they are durable.
Power lost before the name is synced leaves the old file with all that was durable.

After an error of the file nothing more is written to it: the votes are in memory, none is forgotten, and the next sync
writes all of them anew. Nothing is durable until that has succeeded; it can be tried as often as it takes. An opened
file is treated the same way: the process before may have met a failed sync, after which another one returns although
the disk lacks what can be read. And so is one of which the scrub has found that the disk has lost what was written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from crc32c import crc32c

from fluxd.core import limits
from fluxd.core.errors import InvariantViolation
from fluxd.core.types import GroupId, NodeId, Term
from fluxd.storage.errors import VotesCorrupt, VotesMissing
from fluxd.storage.filesystem import TEMPORARY_SUFFIX, File, FileSystem

_MAGIC = b"FLUXVOTE"
_VERSION = 1
_HEADER = struct.Struct("<8sI")
_RECORD = struct.Struct("<16sIIQHH")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
RECORD_BYTES = _RECORD.size + _CHECKSUM.size
COMPACT_BYTES = 64 * limits.KIB
"""Smaller files are not written anew."""
COMPACT_FACTOR = 4
"""Nor those with at most this many records per live one."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The current term of a replica, and whom it voted for in it."""

    term: Term
    voted_for: NodeId | None


@dataclass(eq=False, slots=True)
class VoteSyncJob:
    """One sync of the vote file.

    Args:
        op: highest operation that it covers.
        steps: blocking calls, to be run in order in another thread; if one raises, `sync_failed` follows.
        replacement: the new file, when it is written anew; set by a step.
    """

    op: int
    steps: list[Callable[[], None]] = field(default_factory=list)
    compacts: bool = False
    replacement: File | None = None


_Key = tuple[GroupId, int]


@dataclass(frozen=True, slots=True)
class VoteCheck:
    """Reading the vote file again.

    Args:
        read: for another thread: "", or path, position and what is wrong; raises OSError.
        file: that was open when it began.
    """

    read: Callable[[], str]
    file: File


class VoteFile:
    """The open file. All calls on the loop.

    Attributes:
        trouble: why the last sync failed; empty: it did not.
    """

    def __init__(self, fs: FileSystem, path: str, file: File, votes: dict[_Key, Vote], records: int) -> None:
        self.trouble = ""
        self._fs = fs
        self._path = path
        self._file = file
        self._votes = votes
        self._records = records
        self._op = 1 if records else 0
        self._synced_op = 0
        self._unusable = records > 0
        """Nothing is added to the file as it is: the next sync writes it anew."""
        self._job: VoteSyncJob | None = None
        self._since_begin: list[bytes] = []

    @classmethod
    def create(cls, fs: FileSystem, path: str) -> VoteFile:
        """A new file without votes, durable when this returns; an existing one is replaced. Blocks."""
        temporary = _temporary(path)
        fs.remove(temporary)
        file = fs.open(temporary, create=True)
        file.append(_header())
        file.sync()
        fs.rename(temporary, path)
        fs.sync_directory(_directory(path))
        return cls(fs, path, file, {}, 0)

    @classmethod
    def open(cls, fs: FileSystem, path: str) -> VoteFile:
        """Read the file; nothing is written. What it holds is durable after the first sync. Blocks.

        Raises:
            VotesMissing: the file is not there.
            VotesCorrupt: a durable record was changed.
            OSError: retriable.
        """
        try:
            file = fs.open(path)
        except FileNotFoundError as error:
            raise VotesMissing(f"{path} is missing") from error
        try:
            data = file.read(0, file.size())
            votes, records = _parse(path, data)
        except BaseException:
            file.close()
            raise
        opened = cls(fs, path, file, votes, records)
        opened._unusable = len(data) > HEADER_BYTES
        return opened

    @property
    def synced_op(self) -> int:
        """Highest operation that is durable."""
        return self._synced_op

    @property
    def dirty(self) -> bool:
        """Some operation is not durable."""
        return self._synced_op < self._op

    def get(self, group: GroupId, generation: int) -> Vote | None:
        """The last vote of a group's generation; None: this replica never took part in it."""
        return self._votes.get((group, generation))

    def put(self, group: GroupId, generation: int, term: Term, voted_for: NodeId | None) -> int:
        """Record a term and a vote: written at once, not durable.

        Returns:
            Operation number: durable once synced_op has reached it.

        Raises:
            InvariantViolation: the term falls, or the vote of a term changes; nothing was written.
        """
        vote, known = Vote(term, voted_for), self._votes.get((group, generation))
        why = _conflict(known, vote)
        if why:
            raise InvariantViolation(f"{group} generation {generation}: {why}")
        if known == vote:
            return self._op
        record = _encode(group, generation, vote)
        self._votes[group, generation] = vote
        self._op += 1
        if not self._unusable:
            self._append([record])
        if self._job is not None and self._job.compacts:
            self._since_begin.append(record)
        return self._op

    def _append(self, records: list[bytes]) -> None:
        try:
            self._file.append(*records)
            self._records += len(records)
        except OSError as error:
            self._unusable, self.trouble = True, str(error)

    def begin_sync(self) -> VoteSyncJob:
        """Fix what the next sync covers; one job at a time. A file that has grown large or had an error is written
        anew."""
        if self._job is not None:
            raise InvariantViolation(f"{self._path}: a sync is in flight")
        job = self._job = VoteSyncJob(self._op)
        size = HEADER_BYTES + self._records * RECORD_BYTES
        if self._unusable or (size > COMPACT_BYTES and self._records > COMPACT_FACTOR * len(self._votes)):
            job.compacts, self._since_begin = True, []
            content = b"".join([_header(), *(_encode(group, g, vote) for (group, g), vote in self._votes.items())])
            temporary = _temporary(self._path)
            job.steps = [
                partial(self._write_anew, job, temporary, content),
                partial(self._fs.rename, temporary, self._path),
                partial(self._fs.sync_directory, _directory(self._path)),
            ]
        else:
            job.steps = [self._file.sync]
        return job

    def finish_sync(self, job: VoteSyncJob) -> None:
        """All steps of the job have returned: what it covered is durable."""
        self._end(job)
        if job.replacement is not None:
            self._file.close()
            self._file, self._unusable = job.replacement, False
            self._records = (self._file.size() - HEADER_BYTES) // RECORD_BYTES
            since, self._since_begin = self._since_begin, []
            if since:
                self._append(since)
        if not self._unusable:
            self.trouble = ""
        self._synced_op = job.op

    def sync_failed(self, job: VoteSyncJob, error: BaseException) -> None:
        """A step of the job has raised: what it covered may be on the disk or not. The next one covers everything."""
        self._end(job)
        if job.replacement is not None:
            job.replacement.close()
        self._unusable, self.trouble = True, str(error)

    def _end(self, job: VoteSyncJob) -> None:
        if job is not self._job:
            raise InvariantViolation(f"{self._path}: another sync is in flight")
        self._job = None

    def begin_check(self) -> VoteCheck | None:
        """Read again what was written; None: not now, the file is about to be written anew."""
        if self._unusable or (self._job is not None and self._job.compacts):
            return None
        return VoteCheck(partial(_fault, self._fs, self._path, dict(self._votes), self._records), self._file)

    def lost(self, check: VoteCheck) -> int:
        """A check has found that the disk has lost what was written: have it written anew, by the next sync.

        What was promised is in memory, whole: this is the same as after a sync that failed. Operations that are
        durable stay so for whoever waits: a process that ends before the new file is there finds damaged votes.

        Returns:
            Operation whose being durable says that the new file is; 0: it is another file by now, of which nothing is
            known.
        """
        if self._unusable or check.file is not self._file or (self._job is not None and self._job.compacts):
            return 0
        self._unusable = True
        self._op += 1
        return self._op

    def close(self) -> None:
        """Harmless when closed."""
        self._file.close()
        if self._job is not None and self._job.replacement is not None:
            self._job.replacement.close()

    def _write_anew(self, job: VoteSyncJob, temporary: str, content: bytes) -> None:
        self._fs.remove(temporary)
        job.replacement = self._fs.open(temporary, create=True)
        job.replacement.append(content)
        job.replacement.sync()


def _conflict(known: Vote | None, vote: Vote) -> str | None:
    if known is None or vote.term > known.term:
        return None
    if vote.term < known.term:
        return f"term falls from {known.term} to {vote.term}"
    if known.voted_for is not None and vote.voted_for != known.voted_for:
        return f"vote of term {vote.term} changes from {known.voted_for} to {vote.voted_for}"
    return None


def _fault(fs: FileSystem, path: str, votes: dict[_Key, Vote], records: int) -> str:
    with closing(fs.open(path)) as file:
        file.forget_all()
        data = file.read(0, HEADER_BYTES + records * RECORD_BYTES)
    try:
        found, count = _parse(path, data)
    except VotesCorrupt as error:
        return str(error)
    if count < records:
        return f"{path}: position {HEADER_BYTES + count * RECORD_BYTES}: not the record that was written"
    return "" if found == votes else f"{path}: position {HEADER_BYTES}: not the votes that were written"


def _header() -> bytes:
    body = _HEADER.pack(_MAGIC, _VERSION)
    return body + _CHECKSUM.pack(crc32c(body))


def _encode(group: GroupId, generation: int, vote: Vote) -> bytes:
    body = _RECORD.pack(group.topic_id, group.partition, generation, vote.term, vote.voted_for or 0, 0)
    return body + _CHECKSUM.pack(crc32c(body))


def _sound(record: bytes) -> bool:
    return (
        len(record) == RECORD_BYTES and crc32c(record[: _RECORD.size]) == _CHECKSUM.unpack_from(record, _RECORD.size)[0]
    )


def _parse(path: str, data: bytes) -> tuple[dict[_Key, Vote], int]:
    """Votes and number of sound records."""
    if data[:HEADER_BYTES] != _header():
        raise VotesCorrupt(f"{path}: position 0: not the header of a vote file of version {_VERSION}")
    votes: dict[_Key, Vote] = {}
    ends = range(HEADER_BYTES, len(data), RECORD_BYTES)
    records = [data[position : position + RECORD_BYTES] for position in ends]
    sound = [_sound(record) for record in records]
    count = sound.index(False) if False in sound else len(sound)
    if any(sound[count:]):
        raise VotesCorrupt(
            f"{path}: position {ends[count]}: bad record; not a torn tail: a sound one stands behind it "
            f"at {ends[sound.index(True, count)]}"
        )
    for record, position in zip(records[:count], ends, strict=False):
        topic_id, partition, generation, term, voted_for, _ = _RECORD.unpack_from(record)
        key, vote = (
            (GroupId(topic_id, partition), generation),
            Vote(Term(term), NodeId(voted_for) if voted_for else None),
        )
        why = _conflict(votes.get(key), vote)
        if why:
            raise VotesCorrupt(f"{path}: position {position}: {why}")
        votes[key] = vote
    return votes, count


def _temporary(path: str) -> str:
    return path + TEMPORARY_SUFFIX


def _directory(path: str) -> str:
    return path.rpartition("/")[0]
