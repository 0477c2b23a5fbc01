"""The file `state` of one partition: sync mark and checkpoint, in two slots of 64 bytes.

    position  bytes  content (little-endian)
    0         4      "FXS1"
    4         4      generation
    8         8      sequence: the valid slot with the larger one holds
    16        8      sync mark: first index of the segment,
    24        8      … position in it, after the last synced entry,
    32        8      … index of that entry
    40        8      checkpoint: commit index, at most the mark's index
    48        8      … term of that entry
    56        4      reserved, 0
    60        4      CRC-32C of bytes 0..59

Slot 0 stands at 0, slot 1 at 512: a torn sector takes one of them. The file is 1,024 bytes long from its creation.

A slot is written without a sync after each sync of the log, always into the slot that is *not* known to be durable;
so a power cut that tears it leaves the older one, whose mark is lower, which is safe: the mark says what must be
there, not what may. It is written with a sync where it falls (before a truncation) and where a segment is finished
(before the first sync of the next one).

The loop never waits here for what another thread does to the file, which may take as long as a disk hangs: a slot that
is to be written without a sync is then written by that thread, when it is done.

Where the scrub finds that the disk has lost the file, it is written anew from memory: under a temporary name, synced,
renamed, its name synced. Power lost on the way leaves the damaged file or the new one.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from crc32c import crc32c

from fluxd.core.types import RaftIndex, Term
from fluxd.storage.filesystem import TEMPORARY_SUFFIX, File, FileSystem

STATE_NAME = "state"
SLOT_BYTES = 64
SLOT_POSITIONS = (0, 512)
FILE_BYTES = 1024
_MAGIC = b"FXS1"
_SLOT = struct.Struct("<4sIQQQQQQI")
_CHECKSUM = struct.Struct("<I")
assert _SLOT.size + _CHECKSUM.size == SLOT_BYTES


@dataclass(frozen=True, slots=True)
class Mark:
    """All up to here has been synced: (segment, position after the entry, the entry's index)."""

    segment: RaftIndex
    position: int
    index: RaftIndex


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was known to be committed and was synced: (index, its term), in a generation."""

    commit_index: RaftIndex
    commit_term: Term
    generation: int


@dataclass(frozen=True, slots=True)
class State:
    """Content of a slot."""

    mark: Mark
    checkpoint: Checkpoint


class StateFile:
    """The open file. `raise_mark`, `make_durable`, `fault` and `write_anew` may run in a thread beside the loop, which
    does the rest.

    Attributes:
        state: what was written last; None: no slot is valid.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._lock = threading.Lock()
        """Of the file and all that is said of it below; held while the disk works."""
        self.state: State | None = None
        self._wanted: State | None = None
        """To be written without a sync: changed by the loop alone, without the lock."""
        self._taken: State | None = None
        """What of that was written, or counts no more."""
        self._sequence = 0
        self._slot = 0
        self._load()

    @classmethod
    def create(cls, fs: FileSystem, path: str, state: State, *, rests: bool = True) -> StateFile:
        """A new file, synced; its name is not.

        Args:
            rests: the name stays.
        """
        file = fs.open(path, create=True, rests=rests)
        try:
            file.truncate(0)
            file.append(bytes(FILE_BYTES))
            created = cls(file)
            created.write_synced(state)
        except OSError:
            file.close()
            raise
        return created

    @classmethod
    def open(cls, fs: FileSystem, path: str) -> StateFile | None:
        """The file as it is, made durable; None: missing, or no slot is valid.

        A kill leaves bytes that are not synced; after a sync that failed another one may return although the disk has
        nothing of them. So the slot that holds is written once more.
        """
        try:
            file = fs.open(path, rests=True)
        except FileNotFoundError:
            return None
        try:
            opened = cls(file)
            if opened.state is not None:
                opened._make_found_durable()
                return opened
        except OSError:
            file.close()
            raise
        file.close()
        return None

    def reopen(self, fs: FileSystem, path: str) -> StateFile:
        """The same file on another handle, after an error: what is durable in it is remembered, not read. One that is
        gone is made anew, of the same."""
        try:
            file = fs.open(path, rests=True)
        except FileNotFoundError:
            assert self.state is not None
            return StateFile.create(fs, path, self.state)  # its name is synced before the log is open
        try:
            again = StateFile(file)
        except OSError:
            file.close()
            raise
        again.state, again._sequence, again._slot = self.state, self._sequence, self._slot
        return again

    def write(self, state: State) -> None:
        """Write without a sync, now, or when nobody else uses the file; a power cut may leave what was there before.

        So may an error of the disk that nobody hears of: whatever is to be durable is written again before its sync.
        """
        self._wanted = state
        self._catch_up()

    def write_synced(self, state: State) -> None:
        """Write durably. Blocks."""
        with self._lock:
            self._taken = self._wanted  # older than this one
            self._write(state)
            self._sync()

    def make_durable(self) -> None:
        """Have what was written last survive a power cut. Blocks; safe in a thread."""
        with self._alone():
            assert self.state is not None
            self._write(self.state)
            self._sync()

    def raise_mark(self, mark: Mark, *, unless: Callable[[], bool]) -> None:
        """Write another mark durably, the checkpoint staying as it is. Blocks.

        Args:
            unless: asked when nobody else writes; if true nothing is done (the log was truncated in the meantime).
        """
        with self._alone():
            if not unless():
                assert self.state is not None
                self._write(State(mark, self.state.checkpoint))
                self._sync()

    def fault(self, fs: FileSystem, path: str) -> str:
        """Read the file again: "", or where and how it is not what was written. Blocks; safe in a thread.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        if not self._fault_of(_read_again(fs, path)):
            return ""
        with self._alone():  # it may have been written in between
            return self._fault_of(_read_again(fs, path))

    def write_anew(self, fs: FileSystem, path: str) -> None:
        """Put a new file in the place of the one that the disk has lost, durably. Blocks; safe in a thread.

        Safe, since the memory of the process knows at least what was durable: the mark of a finished sync. The log
        must stay open meanwhile.
        """
        with self._alone():
            assert self.state is not None
            temporary = path + TEMPORARY_SUFFIX
            fs.remove(temporary)
            fresh = StateFile.create(fs, temporary, self.state, rests=False)
            try:
                fs.rename(temporary, path)
            except OSError:
                fresh.close()
                raise
            self._file.close()  # what follows goes to the new one, durable name or not
            self._file, self._sequence, self._slot = fresh._file, fresh._sequence, fresh._slot
            fs.sync_directory(path.rpartition("/")[0])

    def close(self) -> None:
        """Harmless when closed."""
        self._file.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """In a thread. What the loop wanted written before this comes before it, since the mark must not fall, and must
        not name a segment that goes next; what it wants meanwhile is written at the end, or after an error with what
        is wanted or written next."""
        with self._lock:
            self._take()
            yield
        self._catch_up()

    def _catch_up(self) -> None:
        """Who lets go of the lock looks for what is wanted, and who wants something whether the lock is free: so one of
        both writes it."""
        while self._wanted is not self._taken and self._lock.acquire(blocking=False):
            try:
                self._take()
            finally:
                self._lock.release()

    def _take(self) -> None:
        wanted = self._wanted
        if wanted is not None and wanted is not self._taken:
            self._write(wanted, may_be_lost=True)
            self._taken = wanted

    def _fault_of(self, data: bytes) -> str:
        if len(data) < FILE_BYTES:
            return f"position {len(data)}: the end is gone"
        held = self._slot ^ 1
        found = [_parse(data[position : position + SLOT_BYTES]) for position in SLOT_POSITIONS]
        if found[held] is None:
            return f"position {SLOT_POSITIONS[held]}: the slot that is durable is damaged"
        if (self._sequence, self.state) not in found:
            return f"position {SLOT_POSITIONS[self._slot]}: not the slot that was written last"
        return ""

    def _write(self, state: State, *, may_be_lost: bool = False) -> None:
        mark, checkpoint = state.mark, state.checkpoint
        self._sequence += 1
        body = _SLOT.pack(
            _MAGIC, checkpoint.generation, self._sequence, mark.segment, mark.position, mark.index,
            checkpoint.commit_index, checkpoint.commit_term, 0,
        )  # fmt: skip
        slot = body + _CHECKSUM.pack(crc32c(body))
        self._file.write_at(SLOT_POSITIONS[self._slot], slot, may_be_lost=may_be_lost)
        self.state = state

    def _sync(self) -> None:
        self._file.sync()
        self._slot ^= 1

    def _make_found_durable(self) -> None:
        held = SLOT_POSITIONS[self._slot ^ 1]
        self._file.write_at(held, self._file.read(held, SLOT_BYTES))
        if self._file.size() < FILE_BYTES:
            self._file.append(bytes(FILE_BYTES - self._file.size()))
        self._file.sync()

    def _load(self) -> None:
        data = self._file.read(0, FILE_BYTES)
        for slot, position in enumerate(SLOT_POSITIONS):
            found = _parse(data[position : position + SLOT_BYTES])
            if found is not None and found[0] > self._sequence:
                self._sequence, self.state = found
                self._slot = slot ^ 1


def _read_again(fs: FileSystem, path: str) -> bytes:
    with closing(fs.open(path)) as file:
        file.forget_all()
        return file.read(0, FILE_BYTES)


def _parse(slot: bytes) -> tuple[int, State] | None:
    if len(slot) != SLOT_BYTES or crc32c(slot[: _SLOT.size]) != _CHECKSUM.unpack_from(slot, _SLOT.size)[0]:
        return None
    magic, generation, sequence, segment, position, index, commit_index, commit_term, _ = _SLOT.unpack_from(slot)
    if magic != _MAGIC or not 1 <= segment <= index or not 1 <= commit_index <= index:
        return None
    return sequence, State(
        Mark(RaftIndex(segment), position, RaftIndex(index)),
        Checkpoint(RaftIndex(commit_index), Term(commit_term), generation),
    )
