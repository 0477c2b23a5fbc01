"""Walking the frames of a segment file, and what makes one entry the successor of another.

Two walks: by headers (skips bodies, verifies nothing but the chain) and whole (verifies checksums). Both read in
chunks and are safe in any thread, as they only read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fluxd.core import limits
from fluxd.core.entry import FRAME_TAG, HEADER_BYTES, Stamp, read_stamp, verify_frame
from fluxd.core.errors import CorruptDataError
from fluxd.storage.filesystem import File

_CHUNK_BYTES = 64 * limits.KIB
_SCAN_BYTES = limits.MIB
_HEADER_START = b"\x0a\x35\x09"
_HEADER_START_AT = 5
"""Of a frame's header: its first bytes that are the same in every frame, and where they stand."""


class BadFrame(CorruptDataError):
    """No sound frame at a position.

    Args:
        position: where it should begin, in the file.
        why: for people.
    """

    def __init__(self, position: int, why: str) -> None:
        super().__init__(f"position {position}: {why}")
        self.position = position


@contextmanager
def faults_of(path: str) -> Iterator[None]:
    """Whatever is found wrong inside is said of this file."""
    try:
        yield
    except BadFrame as error:
        raise CorruptDataError(f"{path}: {error}") from error


def breach(previous: Stamp, stamp: Stamp) -> str | None:
    """Why an entry cannot follow another; None when it can."""
    if stamp.raft_index != previous.raft_index + 1:
        return f"index {stamp.raft_index} after {previous.raft_index}"
    if stamp.previous_checksum != previous.checksum:
        return f"entry {stamp.raft_index} follows checksum {stamp.previous_checksum:08x}, not {previous.checksum:08x}"
    if stamp.base_offset != previous.base_offset + previous.record_count:
        return f"entry {stamp.raft_index} has base offset {stamp.base_offset}, not {previous.next_offset}"
    if stamp.leader_epoch < previous.leader_epoch:
        return f"entry {stamp.raft_index} has term {stamp.leader_epoch} after {previous.leader_epoch}"
    if stamp.append_time_ms < previous.append_time_ms:
        return f"entry {stamp.raft_index} has append time {stamp.append_time_ms} after {previous.append_time_ms}"
    return None


def stamp_at_position(file: File, position: int) -> Stamp:
    """The header at a position.

    Raises:
        BadFrame: there is none.
    """
    try:
        return read_stamp(file.read(position, HEADER_BYTES))
    except CorruptDataError as error:
        raise BadFrame(position, str(error)) from error


def walk_headers(file: File, position: int, end: int) -> Iterator[tuple[int, Stamp]]:
    """Headers from a frame's position to `end` (exclusive), each with its position.

    Bodies are read only where they are small: then a chunk holds many frames.

    Raises:
        BadFrame: a header is not one, or its frame goes beyond `end`.
    """
    chunk, chunk_at, size = b"", position, _CHUNK_BYTES
    while position < end:
        if position + HEADER_BYTES > chunk_at + len(chunk):
            chunk, chunk_at = file.read(position, min(size, end - position)), position
        try:
            stamp = read_stamp(chunk, position - chunk_at)
        except CorruptDataError as error:
            raise BadFrame(position, str(error)) from error
        if position + stamp.frame_bytes > end:
            raise BadFrame(position, f"entry {stamp.raft_index} of {stamp.frame_bytes} bytes goes beyond {end}")
        yield position, stamp
        position += stamp.frame_bytes
        size = _CHUNK_BYTES if stamp.frame_bytes < _CHUNK_BYTES // 2 else HEADER_BYTES


def walk_frames(file: File, position: int, end: int) -> Iterator[tuple[int, Stamp, bytes]]:
    """Whole frames from a frame's position to `end` (exclusive), checksums verified.

    Raises:
        BadFrame: a frame is not sound or not whole.
    """
    chunk, chunk_at = b"", position
    while position < end:
        if position + HEADER_BYTES > chunk_at + len(chunk):
            chunk, chunk_at = file.read(position, min(_CHUNK_BYTES, end - position)), position
        try:
            stamp = read_stamp(chunk, position - chunk_at)
            if position + stamp.frame_bytes > end:
                raise CorruptDataError(f"entry {stamp.raft_index} of {stamp.frame_bytes} bytes goes beyond {end}")
            if position + stamp.frame_bytes > chunk_at + len(chunk):
                wanted = min(max(_CHUNK_BYTES, stamp.frame_bytes), end - position)
                chunk, chunk_at = file.read(position, wanted), position
            start = position - chunk_at
            frame = chunk[start : start + stamp.frame_bytes]
            verify_frame(frame)
        except CorruptDataError as error:
            raise BadFrame(position, str(error)) from error
        yield position, stamp, frame
        position += stamp.frame_bytes


def find_frame(file: File, position: int, end: int, previous: Stamp) -> tuple[int, Stamp] | None:
    """The first sound frame at or after a position that could stand in the log behind `previous`.

    Tells corruption from a torn tail: what was being written when the power failed has nothing whole behind it. That a
    record's value contains a copy of such a frame is not excluded, but then index, term, offset and time must fit too.

    Args:
        end: of the file; the scan covers what recovery has not verified, at most a segment.
    """
    while position + HEADER_BYTES <= end:
        chunk = file.read(position, min(_SCAN_BYTES, end - position))
        found = chunk.find(_HEADER_START, _HEADER_START_AT)
        while found >= 0:
            start = found - _HEADER_START_AT
            if chunk[start] == FRAME_TAG and len(chunk) - start >= HEADER_BYTES:
                stamp = _sound_frame(file, position + start, end, previous)
                if stamp is not None:
                    return position + start, stamp
            found = chunk.find(_HEADER_START, found + 1)
        if position + len(chunk) >= end:
            return None
        position += len(chunk) - HEADER_BYTES + 1
    return None


def _sound_frame(file: File, position: int, end: int, previous: Stamp) -> Stamp | None:
    try:
        stamp = stamp_at_position(file, position)
        if (
            position + stamp.frame_bytes > end
            or stamp.raft_index <= previous.raft_index
            or stamp.leader_epoch < previous.leader_epoch
            or stamp.base_offset < previous.next_offset
            or stamp.append_time_ms < previous.append_time_ms
        ):
            return None
        return verify_frame(file.read(position, stamp.frame_bytes))
    except CorruptDataError:
        return None
