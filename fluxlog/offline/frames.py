"""Entries in a segment file, one after another: a segment holds the bytes of FetchResponse.entries and nothing else."""

from __future__ import annotations

import mmap
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
SUFFIX = ".seg"


class NoEntryError(Exception):
    """No entry begins at a position.

    Args:
        position: in the file, bytes.
    """

    def __init__(self, position: int, why: str) -> None:
        super().__init__(f"position {position}: {why}")
        self.position = position


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


@contextmanager
def opened(path: Path) -> Iterator[memoryview]:
    """A file's bytes, without reading them all."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            yield view


def segments(directory: Path) -> list[tuple[int, Path]]:
    """Segment files of a partition, in order: (index of the first entry, path)."""
    found = [(path.name.removesuffix(SUFFIX), path) for path in directory.glob("*" + SUFFIX)]
    return sorted((int(name), path) for name, path in found if len(name) == 20 and name.isdecimal())


def entry_at(data: memoryview, position: int) -> Entry:
    """The entry that begins at a position, sound or not.

    Raises:
        NoEntryError: there is none, or it goes beyond the end.
    """
    head = bytes(data[position : position + HEADER_BYTES])
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
        verify_frame(data[position : position + size])
    except CorruptResponseError:
        return Entry(position, size, stamp, is_sound=False)
    return Entry(position, size, stamp, is_sound=True)


def message_of(data: memoryview, entry: Entry) -> record_pb2.LogEntry:
    """The whole of a sound entry.

    Raises:
        DecodeError: something else than this node knows stands in it.
    """
    return record_pb2.LogEntry.FromString(bytes(data[entry.position + _PREFIX_BYTES : entry.end]))


def find_sound(data: memoryview, position: int) -> Entry | None:
    """The first sound entry at or behind a position."""
    window = 1 << 20
    while position < len(data):
        chunk = bytes(data[position : position + window])
        found = chunk.find(_STAMP_START)
        while found >= 0:
            start = position + found - _PREFIX_BYTES
            if start >= 0 and data[start] == _TAG:
                try:
                    entry = entry_at(data, start)
                except NoEntryError:
                    entry = None
                if entry is not None and entry.is_sound:
                    return entry
            found = chunk.find(_STAMP_START, found + 1)
        if position + len(chunk) >= len(data):
            return None
        position += len(chunk) - len(_STAMP_START) + 1
    return None


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


def walk(data: memoryview) -> Iterator[Entry | NoEntryError]:
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
