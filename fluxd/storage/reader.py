"""Reading whole frames from one segment file, in a thread: for consumers, and for replicas that copy."""

from __future__ import annotations

from contextlib import closing

from fluxd.core.entry import HEADER_BYTES, Stamp, read_stamp, verify_frame
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import Offset, RaftIndex
from fluxd.storage.filesystem import File, FileSystem
from fluxd.storage.frames import BadFrame, faults_of, walk_frames, walk_headers
from fluxd.storage.segment import Segment


def entry_with_record(
    fs: FileSystem, segment: Segment, following: Stamp | None, offset: Offset, size: int
) -> tuple[int, Stamp]:
    """Position and stamp of the entry that holds a record, in the segment's first `size` bytes.

    Raises:
        CorruptDataError: the segment is damaged.
    """
    start = segment.load_index(fs, following).position_by_offset(offset)
    with closing(fs.open(segment.path)) as file:
        return _find(file, segment, start, offset, size)


def read_frames(
    fs: FileSystem,
    segment: Segment,
    following: Stamp | None,
    offset: Offset,
    max_bytes: int,
    end_index: RaftIndex,
    size: int,
) -> bytes:
    """Whole frames of one segment from the one that holds a record. Blocks; safe in any thread.

    Args:
        max_bytes: of the result, but the first frame is always in it.
        end_index: last entry to return (inclusive).
        size: bytes of the segment that may be read.

    Raises:
        CorruptDataError: the segment is damaged.
        OSError: retriable.
    """
    start = segment.load_index(fs, following).position_by_offset(offset)
    with closing(fs.open(segment.path)) as file:
        position, stamp = _find(file, segment, start, offset, size)
        # Under load all frames are of one size: then nothing is read that must be cut off again, which is a copy.
        wanted = min(max(max_bytes // stamp.frame_bytes, 1) * stamp.frame_bytes, size - position)
        data = file.read(position, wanted)
    with faults_of(segment.path):
        end = _whole_frames(data, position, end_index)
        if not end:
            raise BadFrame(position, f"no whole entry with offset {offset}")
    return data if end == len(data) else data[:end]


def read_entries(
    fs: FileSystem,
    segment: Segment,
    following: Stamp | None,
    first_index: RaftIndex,
    max_bytes: int,
    end_index: RaftIndex,
    size: int,
) -> list[bytes]:
    """Frames of one segment by Raft index, verified; at least one. Blocks; safe in any thread.

    Args:
        end_index: last entry to return (inclusive).

    Raises:
        CorruptDataError: the segment is damaged.
        OSError: retriable.
    """
    start = segment.load_index(fs, following).position_by_index(first_index)
    frames: list[bytes] = []
    with closing(fs.open(segment.path)) as file, faults_of(segment.path):
        for _, stamp, frame in walk_frames(file, start, size):
            if stamp.raft_index > end_index or (frames and max_bytes < stamp.frame_bytes):
                break
            if stamp.raft_index >= first_index:
                frames.append(frame)
                max_bytes -= stamp.frame_bytes
    return frames


def _find(file: File, segment: Segment, start: int, offset: Offset, size: int) -> tuple[int, Stamp]:
    with faults_of(segment.path):
        for position, stamp in walk_headers(file, start, size):
            if stamp.next_offset > offset:
                if stamp.base_offset > offset:  # a damaged header was passed over: its records must not be left out
                    raise BadFrame(
                        position, f"entry {stamp.raft_index} begins behind offset {offset}, which is missing"
                    )
                return position, stamp
    raise CorruptDataError(f"{segment.path}: no entry with offset {offset}")


def _whole_frames(data: bytes, start: int, end_index: RaftIndex) -> int:
    """Where the last whole frame at or below an index ends; checksums verified.

    Args:
        start: position of the data in the file.
    """
    view, position = memoryview(data), 0
    while len(data) - position >= HEADER_BYTES:
        try:
            stamp = read_stamp(data, position)
            if stamp.raft_index > end_index or stamp.frame_bytes > len(data) - position:
                break
            verify_frame(view[position : position + stamp.frame_bytes])
        except CorruptDataError as error:
            raise BadFrame(start + position, str(error)) from error
        position += stamp.frame_bytes
    return position
