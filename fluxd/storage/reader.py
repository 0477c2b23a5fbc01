"""Reading whole frames from one segment file, in a thread: for consumers, and for replicas that copy."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from io import BytesIO

from fluxd.core.entry import HEADER_BYTES, Stamp, read_stamp, verify_frame
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import Offset, RaftIndex
from fluxd.storage.filesystem import File, FileSystem
from fluxd.storage.frames import BadFrame, faults_of, walk_frames, walk_headers
from fluxd.storage.index import SegmentIndex
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


class FrameBlock:
    """Whole frames one after another, behind room for a head, in one piece of memory that becomes bytes without a copy.

    Args:
        memory: its content is the room, then the frames; nobody else has it.
        room: bytes before the first frame.
        next_offset: offset of the first record after the frames.
    """

    __slots__ = ("_memory", "next_offset", "room", "size")

    def __init__(self, memory: BytesIO, room: int, next_offset: Offset) -> None:
        self._memory, self.room, self.next_offset = memory, room, next_offset
        with memory.getbuffer() as view:
            self.size = len(view) - room
        """Of the frames, bytes."""

    @classmethod
    def of(cls, frames: bytes, room: int, next_offset: Offset) -> FrameBlock:
        """From frames that are in memory already. One copy."""
        return cls(BytesIO(b"".join((bytes(room), frames))), room, next_offset)

    def behind(self, head: bytes) -> bytes:
        """Head and frames. Args: head: as long as the room."""
        assert len(head) == self.room, (len(head), self.room)
        with self._memory.getbuffer() as view:
            view[: self.room] = head
        return self._memory.getvalue()


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Whole frames of one segment from the one that holds a record: what is to be read, but not yet read.

    Args:
        max_bytes: of the result, but the first frame is always in it.
        end_index: last entry to return (inclusive).
        size: bytes of the segment that may be read: the end of a frame.
    """

    fs: FileSystem
    segment: Segment
    following: Stamp | None
    offset: Offset
    max_bytes: int
    end_index: RaftIndex
    size: int

    def __call__(self) -> bytes:
        """`read`, without room."""
        return self.read().behind(b"")

    def read(self, room: int = 0) -> FrameBlock:
        """Blocks; safe in any thread.

        Raises:
            CorruptDataError: the segment is damaged.
            OSError: retriable.
        """
        block = self._read(self.segment.wait_for_index(self.fs, self.following), room, wait=True)
        assert block is not None
        return block

    def read_if_cached(self, room: int = 0) -> FrameBlock | None:
        """The same on the loop, when all of it is in the machine's memory; None: it is not, and nothing was waited for.

        To copy a MiB takes less time than to have a thread do so and to hear of it.
        """
        index = self.segment.index
        return None if index is None else self._read(index, room, wait=False)

    def _read(self, index: SegmentIndex, room: int, *, wait: bool) -> FrameBlock | None:
        start = index.position_by_offset(self.offset)
        wanted = index.end_of_run(start, self.max_bytes, self.size) - start
        memory = BytesIO(bytes(room + wanted))
        with memory.getbuffer() as view:
            with closing(self.fs.open(self.segment.path)) as file:
                found = file.read_into(start, view[room:], wait=wait)
            if found < wanted and not wait:
                return None
            with faults_of(self.segment.path):
                first, end, next_offset = self._select(view[room : room + found], start)
            if first:
                view[room : room + end - first] = view[room + first : room + end]
        memory.truncate(room + end - first)
        return FrameBlock(memory, room, next_offset)

    def _select(self, data: memoryview, start: int) -> tuple[int, int, Offset]:
        """Which frames to return, checksums verified: where the first one begins, where the last one ends, and the
        offset behind it.

        Args:
            start: position of the data in the file.
        """
        first, end, next_offset = -1, 0, self.offset
        while len(data) - end >= HEADER_BYTES:
            try:
                stamp = read_stamp(data, end)
                beyond = stamp.raft_index > self.end_index or stamp.frame_bytes > len(data) - end
                if beyond or (first >= 0 and end + stamp.frame_bytes - first > self.max_bytes):
                    break
                if stamp.next_offset > self.offset or first >= 0:
                    verify_frame(data[end : end + stamp.frame_bytes])
            except CorruptDataError as error:
                raise BadFrame(start + end, str(error)) from error
            if first < 0 and stamp.next_offset > self.offset:
                if stamp.base_offset > self.offset:  # its records must not be left out
                    raise BadFrame(
                        start + end, f"entry {stamp.raft_index} begins behind offset {self.offset}, which is missing"
                    )
                first = end
            end += stamp.frame_bytes
            next_offset = stamp.next_offset
            if stamp.raft_index == self.end_index:  # what stands behind it may have been cut off during the read
                break
        if first < 0:
            raise BadFrame(start + end, f"no whole entry with offset {self.offset}")
        return first, end, next_offset


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
    start = segment.wait_for_index(fs, following).position_by_index(first_index)
    frames: list[bytes] = []
    with closing(fs.open(segment.path)) as file, faults_of(segment.path):
        for _, stamp, frame in walk_frames(file, start, size):
            if frames and max_bytes < stamp.frame_bytes:
                break
            if stamp.raft_index >= first_index:
                frames.append(frame)
                max_bytes -= stamp.frame_bytes
            if stamp.raft_index >= end_index:  # what stands behind it may be cut off meanwhile
                break
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
