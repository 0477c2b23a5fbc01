"""Entries in a segment file, one after another: a segment holds the bytes of FetchResponse.entries and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from fluxlog.entry import HEADER_BYTES, CorruptResponseError, verify_frame
from fluxlog.v1 import record_pb2

_TAG = 0x12
_PREFIX_BYTES = 5
_STAMP_AT = 7
_STAMP_TAG = b"\x0a\x35"
_STAMP_START = b"\x0a\x35\x09"
_ENTRY_BYTES_MAX = 1 << 28
_WINDOW_BYTES = 1 << 20
_SECTOR_BYTES = 4096
"""Where the disk cannot read, it is tried again from the next one on."""
SUFFIX = ".seg"


class NoEntryError(Exception):
    """No entry begins at a position.

    Args:
        position: in the file, bytes.
    """

    def __init__(self, position: int, why: str) -> None:
        super().__init__(f"position {position}: {why}")
        self.position = position


class UnreadableError(NoEntryError):
    """The disk cannot read what stands at a position."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry's place and stamp.

    Args:
        size: of the whole frame, bytes.
        is_sound: its checksum matches its bytes. Otherwise nothing of the stamp can be relied on.
    """

    position: int
    size: int
    stamp: record_pb2.EntryStamp
    is_sound: bool

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.position + self.size

    @property
    def next_offset(self) -> int:
        """Offset of the first record behind it."""
        return self.stamp.base_offset + self.stamp.record_count


class SegmentBytes:
    """The bytes of an open file, read when they are asked for.

    Not mapped into memory: what the disk cannot read would then be a signal that ends the process, and no error.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._size = descriptor, os.fstat(descriptor).st_size
        self._window_at, self._window = 0, b""

    def __len__(self) -> int:
        return self._size

    def read(self, position: int, size: int) -> bytes:
        """So many bytes; fewer where the file ends before.

        Raises:
            UnreadableError: the disk cannot read them.
        """
        size = max(0, min(size, self._size - position))
        if position < self._window_at or position + size > self._window_at + len(self._window):
            self._window_at, self._window = position, self.read_some(position, max(size, _WINDOW_BYTES))
            while len(self._window) < size:
                self._window += self.read_some(position + len(self._window), size - len(self._window))
        start = position - self._window_at
        return self._window[start : start + size]

    def read_some(self, position: int, size_max: int) -> bytes:
        """What the disk can read from a position on: one byte at least.

        Raises:
            UnreadableError: it cannot read that.
        """
        try:
            data = os.pread(self._descriptor, size_max, position)
        except OSError as error:
            raise UnreadableError(position, f"cannot be read: {error.strerror}") from error
        if not data and size_max:
            raise UnreadableError(position, f"cannot be read: the file of {self._size} bytes has become shorter")
        return data


@contextmanager
def opened(path: Path) -> Iterator[SegmentBytes]:
    """A file's bytes, without reading them all.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        yield SegmentBytes(file.fileno())


def segments(directory: Path) -> list[tuple[int, Path]]:
    """Segment files of a partition, in order: (index of the first entry, path)."""
    found = [(path.name.removesuffix(SUFFIX), path) for path in directory.glob("*" + SUFFIX)]
    return sorted((int(name), path) for name, path in found if len(name) == 20 and name.isdecimal())


def entry_at(data: SegmentBytes, position: int) -> Entry:
    """The entry that begins at a position, sound or not.

    Raises:
        NoEntryError: there is none, or it goes beyond the end.
        UnreadableError: which of that, the disk does not tell.
    """
    head = data.read(position, HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise NoEntryError(position, f"{len(head)} bytes are less than the {HEADER_BYTES} of an entry's header")
    length = head[1] & 0x7F | (head[2] & 0x7F) << 7 | (head[3] & 0x7F) << 14 | head[4] << 21
    size = _PREFIX_BYTES + length
    if head[0] != _TAG or head[_PREFIX_BYTES:_STAMP_AT] != _STAMP_TAG or not HEADER_BYTES <= size < _ENTRY_BYTES_MAX:
        raise NoEntryError(position, "not the header of an entry")
    if position + size > len(data):
        raise NoEntryError(position, f"an entry of {size} bytes goes beyond the end of the file at {len(data)}")
    try:
        stamp = record_pb2.EntryStamp.FromString(head[_STAMP_AT:])
    except DecodeError as error:
        raise NoEntryError(position, "not the stamp of an entry") from error
    try:
        verify_frame(memoryview(data.read(position, size)))
    except CorruptResponseError:
        return Entry(position, size, stamp, is_sound=False)
    return Entry(position, size, stamp, is_sound=True)


def message_of(data: SegmentBytes, entry: Entry) -> record_pb2.LogEntry:
    """The whole of a sound entry.

    Raises:
        DecodeError: something else than this node knows stands in it.
        UnreadableError: the disk cannot read it any more.
    """
    start = entry.position + _PREFIX_BYTES
    return record_pb2.LogEntry.FromString(data.read(start, entry.end - start))


def find_sound(data: SegmentBytes, position: int) -> Entry | None:
    """The first sound entry at or behind a position. What the disk cannot read is passed over."""
    while position < len(data):
        try:
            chunk = data.read_some(position, _WINDOW_BYTES)
        except UnreadableError:
            position += _SECTOR_BYTES - position % _SECTOR_BYTES
            continue
        found = chunk.find(_STAMP_START)
        while found >= 0:
            entry = _sound_at(data, position + found - _PREFIX_BYTES)
            if entry is not None:
                return entry
            found = chunk.find(_STAMP_START, found + 1)
        position += max(1, len(chunk) - len(_STAMP_START) + 1)
    return None


def _sound_at(data: SegmentBytes, position: int) -> Entry | None:
    if position < 0:
        return None
    try:
        entry = entry_at(data, position)
    except NoEntryError:
        return None
    return entry if entry.is_sound else None


def breach(previous: Entry, entry: Entry) -> str:
    """Why an entry cannot follow another; empty when it can."""
    before, stamp = previous.stamp, entry.stamp
    if stamp.raft_index != before.raft_index + 1:
        return f"index {stamp.raft_index} after {before.raft_index}"
    if stamp.previous_checksum != before.checksum:
        return f"entry {stamp.raft_index} follows checksum {stamp.previous_checksum:08x}, not {before.checksum:08x}"
    if stamp.base_offset != previous.next_offset:
        return f"entry {stamp.raft_index} has base offset {stamp.base_offset}, not {previous.next_offset}"
    if stamp.leader_epoch < before.leader_epoch:
        return f"entry {stamp.raft_index} has term {stamp.leader_epoch} after {before.leader_epoch}"
    if stamp.append_time_ms < before.append_time_ms:
        return f"entry {stamp.raft_index} has append time {stamp.append_time_ms} after {before.append_time_ms}"
    return ""


def walk(data: SegmentBytes) -> Iterator[Entry | NoEntryError]:
    """All of a segment, sound or not; behind what is no entry it goes on at the next sound one."""
    position = 0
    while position < len(data):
        try:
            entry = entry_at(data, position)
        except NoEntryError as error:
            yield error
            found = find_sound(data, position + 1)
            if found is None:
                return
            entry = found
        yield entry
        position = entry.end
