"""The frame in which one Raft entry is replicated, stored and fetched: encode, check, take apart.

A frame is `tag 0x12, length, LogEntry` (see record.proto), with every header field at a fixed place, so that a header
can be read without a parser and a producer's bytes can only stand behind it:

    position  bytes  content
    0         1      0x12, field 2 of FetchResponse
    1         4      length of what follows: a varint padded to four bytes (legal protobuf), little groups first
    5         2      0x0A 0x35: field 1 of LogEntry, 53 bytes: EntryStamp
    7         9      0x09 + base_offset, fixed64 little-endian
    16        9      0x11 + raft_index
    25        9      0x19 + leader_epoch
    34        9      0x21 + append_time_ms (signed)
    43        5      0x2D + record_count, fixed32
    48        2      0x30 + kind, 1..5
    50        5      0x3D + previous_checksum
    55        5      0x45 + checksum: CRC-32C over bytes 0..55 (the tag of the checksum included) and 60..end
    60        …      producers' batches: each 0x12, varint length, RecordBatch
    60        9      in an entry of kind TRIM instead: 0x19 + log_start_offset, fixed64

The chain of `previous_checksum` makes a log that was spliced from two fail, and `checksum` at an index stands for
everything before it. Deliberately absent: any check of what is inside a batch. That is the leader's, once, before it
appends (`core/batch.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from crc32c import crc32c

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import GroupId, Offset, RaftIndex, Term
from fluxlog.v1 import record_pb2

FRAME_TAG = 0x12
PREFIX_BYTES = 5
HEADER_BYTES = 60
_CHECKSUM_AT = 56
_STAMP_TAG = b"\x0a\x35"

_HEADER = struct.Struct("<5s2sBQBQBQBqBIBBBIBI")
assert _HEADER.size == HEADER_BYTES
_TRIM = struct.Struct("<BQ")
_TRIM_TAG = 0x19
_TAGS = (0x09, 0x11, 0x19, 0x21, 0x2D, 0x30, 0x3D, 0x45)


class EntryKind(IntEnum):
    """As in record.proto."""

    RECORDS = record_pb2.ENTRY_KIND_RECORDS
    BIRTH = record_pb2.ENTRY_KIND_BIRTH
    NO_OP = record_pb2.ENTRY_KIND_NO_OP
    TRIM = record_pb2.ENTRY_KIND_TRIM
    SEAL = record_pb2.ENTRY_KIND_SEAL


_KINDS = {int(kind): kind for kind in EntryKind}


@dataclass(frozen=True, slots=True)
class Stamp:
    """The fixed header of a frame."""

    base_offset: Offset
    raft_index: RaftIndex
    leader_epoch: Term
    append_time_ms: int
    record_count: int
    kind: EntryKind
    previous_checksum: int
    checksum: int
    frame_bytes: int
    """Whole frame, header included."""

    @property
    def next_offset(self) -> Offset:
        """Offset of the first record after this entry."""
        return Offset(self.base_offset + self.record_count)


def _padded_length(length: int) -> bytes:
    return bytes(
        (FRAME_TAG, length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14 & 0x7F | 0x80, length >> 21 & 0x7F)
    )


def encode_varint(number: int) -> bytes:
    """As in protobuf: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def build_frame(
    *,
    kind: EntryKind,
    base_offset: int,
    raft_index: int,
    leader_epoch: int,
    append_time_ms: int,
    record_count: int,
    previous_checksum: int,
    batches: Sequence[bytes | memoryview] = (),
    log_start_offset: int | None = None,
) -> bytes:
    """Encode one entry.

    Args:
        base_offset: of the first record, or the next record's offset when there is none.
        record_count: in all batches together; 0 exactly when the kind is not RECORDS.
        batches: encoded RecordBatches, copied once, unchanged.
        log_start_offset: in an entry of kind TRIM, and only there.

    Returns:
        The whole frame, at most limits.ENTRY_FRAME_BYTES_MAX bytes.
    """
    parts: list[bytes | memoryview] = [b""]
    body_bytes = 0
    for batch in batches:
        head = b"\x12" + encode_varint(len(batch))
        parts += (head, batch)
        body_bytes += len(head) + len(batch)
    assert (log_start_offset is not None) == (kind == EntryKind.TRIM)
    if log_start_offset is not None:
        parts.append(_TRIM.pack(_TRIM_TAG, log_start_offset))
        body_bytes += _TRIM.size
    frame_bytes = HEADER_BYTES + body_bytes
    assert frame_bytes <= limits.ENTRY_FRAME_BYTES_MAX, frame_bytes
    header = _HEADER.pack(
        _padded_length(frame_bytes - PREFIX_BYTES), _STAMP_TAG, 0x09, base_offset, 0x11, raft_index, 0x19, leader_epoch,
        0x21, append_time_ms, 0x2D, record_count, 0x30, kind, 0x3D, previous_checksum, 0x45, 0,
    )  # fmt: skip
    checksum = crc32c(header[:_CHECKSUM_AT])
    for part in parts:
        checksum = crc32c(part, checksum)
    parts[0] = header[:_CHECKSUM_AT] + checksum.to_bytes(4, "little")
    return b"".join(parts)


def read_stamp(buffer: bytes | memoryview, position: int = 0) -> Stamp:
    """Read the header of the frame that begins at a position. The checksum is not verified.

    Raises:
        CorruptDataError: fewer than HEADER_BYTES bytes, or not a frame's header.
    """
    if len(buffer) - position < HEADER_BYTES:
        raise CorruptDataError(f"{len(buffer) - position} bytes are less than a frame's header of {HEADER_BYTES}")
    (prefix, stamp_tag, t1, base_offset, t2, raft_index, t3, leader_epoch, t4, append_time_ms, t5, record_count, t6,
     kind, t7, previous_checksum, t8, checksum) = _HEADER.unpack_from(buffer, position)  # fmt: skip
    length = prefix[1] & 0x7F | (prefix[2] & 0x7F) << 7 | (prefix[3] & 0x7F) << 14 | prefix[4] << 21
    frame_bytes = length + PREFIX_BYTES
    if (
        (t1, t2, t3, t4, t5, t6, t7, t8) != _TAGS
        or stamp_tag != _STAMP_TAG
        or kind not in _KINDS
        or prefix != _padded_length(length & 0xFFFFFFF)
        or not HEADER_BYTES <= frame_bytes <= limits.ENTRY_FRAME_BYTES_MAX
        or (kind == EntryKind.RECORDS) != (record_count > 0)
    ):
        raise CorruptDataError("not the header of an entry")
    return Stamp(
        Offset(base_offset), RaftIndex(raft_index), Term(leader_epoch), append_time_ms, record_count, _KINDS[kind],
        previous_checksum, checksum, frame_bytes,
    )  # fmt: skip


def verify_frame(frame: bytes | memoryview) -> Stamp:
    """Check one whole frame: header, length and checksum.

    Raises:
        CorruptDataError: otherwise.
    """
    stamp = read_stamp(frame)
    if stamp.frame_bytes != len(frame):
        raise CorruptDataError(f"a frame of {stamp.frame_bytes} bytes in {len(frame)} bytes")
    view = memoryview(frame)
    if crc32c(view[HEADER_BYTES:], crc32c(view[:_CHECKSUM_AT])) != stamp.checksum:
        raise CorruptDataError(f"checksum of entry {stamp.raft_index} does not match its bytes")
    return stamp


def read_trim(frame: bytes | memoryview) -> Offset:
    """The log start offset of a verified frame of kind TRIM.

    Raises:
        CorruptDataError: the body is not just that.
    """
    if len(frame) != HEADER_BYTES + _TRIM.size or frame[HEADER_BYTES] != _TRIM_TAG:
        raise CorruptDataError("not the body of an entry that moves the log start")
    return Offset(_TRIM.unpack_from(frame, HEADER_BYTES)[1])


def split_batches(frame: bytes | memoryview) -> list[memoryview]:
    """The encoded RecordBatches of a verified frame, in order, without a copy.

    Raises:
        CorruptDataError: the body is not a sequence of length-delimited fields 2.
    """
    view = memoryview(frame)
    position, end, out = HEADER_BYTES, len(view), []
    while position < end:
        if view[position] != 0x12:
            raise CorruptDataError("an entry's body has another field than batches")
        length, shift, position = 0, 0, position + 1
        while True:
            if position >= end or shift > 28:
                raise CorruptDataError("a batch's length is cut off")
            byte = view[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if length > end - position:
            raise CorruptDataError("a batch is longer than its entry")
        out.append(view[position : position + length])
        position += length
    return out


def identity_checksum(group: GroupId, generation: int) -> int:
    """What the chain of a group's log begins with: `previous_checksum` of its first entry."""
    return crc32c(group.topic_id + struct.pack("<II", group.partition, generation))


def birth_frame(group: GroupId, generation: int) -> bytes:
    """First entry of a group's log: index 1, the generation's base term, the same bytes on every replica.

    pysyncobj's constructor would add an entry of its own to an empty journal; this one precedes it.
    """
    return build_frame(
        kind=EntryKind.BIRTH, base_offset=0, raft_index=1, leader_epoch=generation << limits.GENERATION_TERM_BITS,
        append_time_ms=0, record_count=0, previous_checksum=identity_checksum(group, generation),
    )  # fmt: skip
