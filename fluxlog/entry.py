"""Reading entries on the client: from the bytes of a FetchResponse to batches and records with their offsets.

Iterating is resumable: when a batch cannot be decoded, the error says where to go on, and the same entries can be
iterated again from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from crc32c import crc32c
from google.protobuf.message import DecodeError

from fluxlog.batch import CorruptBatchError, DecodedBatch, Headers
from fluxlog.v1 import log_pb2, record_pb2

_ENTRIES_TAG = 0x12
HEADER_BYTES = 60
_CHECKSUM_TAG_AT = 55
_CHECKSUM_AT = 56
_CHECKSUM_TAG = 0x45


class CorruptResponseError(Exception):
    """A fetched response, or an entry's checksum in it, is wrong. Fetch again; if it remains, from another node."""


class UndecodableBatchError(CorruptBatchError):
    """A batch in the log cannot be decoded; reading goes on at `next_offset`.

    Args:
        base_offset: of the batch's first record.
        next_offset: first offset after the batch.
    """

    def __init__(self, message: str, base_offset: int, next_offset: int) -> None:
        super().__init__(f"the batch at offsets {base_offset}..{next_offset - 1} cannot be decoded: {message}")
        self.base_offset = base_offset
        self.next_offset = next_offset


@dataclass(frozen=True, slots=True)
class FetchedBatch:
    """One producer's batch as it stands in the log, not yet decoded."""

    base_offset: int
    next_offset: int
    """First offset after the batch."""
    leader_epoch: int
    append_time_ms: int
    """The leader's clock at append, Unix milliseconds, never decreasing along a partition."""
    message: record_pb2.RecordBatch

    def decode(self) -> DecodedBatch:
        """Decode and check the columns.

        Raises:
            UndecodableBatchError: otherwise.
        """
        try:
            return DecodedBatch(self.message)
        except CorruptBatchError as error:
            raise UndecodableBatchError(str(error), self.base_offset, self.next_offset) from error


class FetchedRecord(NamedTuple):
    """One record with its place in the log."""

    offset: int
    value: bytes | None
    key: bytes | None
    headers: Headers
    timestamp_ms: int
    """The producer's time, Unix milliseconds."""
    append_time_ms: int
    leader_epoch: int


def parse_response(data: bytes, *, verify: bool = True) -> log_pb2.FetchResponse:
    """Parse a FetchResponse, or a sequence of frames, which is the same.

    Args:
        verify: check each entry's checksum.

    Raises:
        CorruptResponseError: not a FetchResponse, or a checksum does not match.
    """
    try:
        response = log_pb2.FetchResponse.FromString(data)
    except DecodeError as error:
        raise CorruptResponseError("the bytes are not a FetchResponse") from error
    if verify and response.entries:
        verified = _verify_entries(data)
        if verified != len(response.entries):
            raise CorruptResponseError(f"{verified} entries with a checksum, {len(response.entries)} entries")
    return response


def batches_of(entries: Iterable[record_pb2.LogEntry], from_offset: int) -> Iterator[FetchedBatch]:
    """The batches of entries, in order, without those that end at or below `from_offset`.

    Entries that are Raft's own carry none.
    """
    for entry in entries:
        stamp = entry.stamp
        base_offset = stamp.base_offset
        for message in entry.batches:
            deltas = message.offset_deltas
            next_offset = base_offset + (deltas[-1] + 1 if deltas else message.record_count)
            if next_offset > from_offset:
                yield FetchedBatch(base_offset, next_offset, stamp.leader_epoch, stamp.append_time_ms, message)
            base_offset = next_offset


def records_of(entries: Iterable[record_pb2.LogEntry], from_offset: int) -> Iterator[FetchedRecord]:
    """The records of entries from an offset on, one object each.

    For high rates use `batches_of` and the columns of a batch.

    Raises:
        UndecodableBatchError: at a batch that cannot be decoded; iterate again from its next_offset to step over it.
    """
    for batch in batches_of(entries, from_offset):
        decoded = batch.decode()
        for offset, record in zip(decoded.offsets(batch.base_offset), decoded, strict=True):
            if offset >= from_offset:
                yield FetchedRecord(offset, *record, batch.append_time_ms, batch.leader_epoch)


def _verify_entries(data: bytes) -> int:
    """Check the checksum of each frame; other fields of the response are passed over.

    Returns:
        Number of frames.
    """
    view, position, count = memoryview(data), 0, 0
    while position < len(data):
        start, tag = position, data[position]
        length, position = _read_length(data, position + 1)
        position += length
        if position > len(data):
            raise CorruptResponseError(f"the field at byte {start} is cut off")
        if tag == _ENTRIES_TAG:
            verify_frame(view[start:position])
            count += 1
        elif tag & 7 != 2:
            # The server sends bytes fields only; a newer one may send others after the entries. The caller counts.
            break
    return count


def verify_frame(frame: memoryview) -> None:
    """Check one whole frame's checksum.

    Raises:
        CorruptResponseError: it does not match, or there is no whole stamp.
    """
    if len(frame) < HEADER_BYTES or frame[_CHECKSUM_TAG_AT] != _CHECKSUM_TAG:
        raise CorruptResponseError("an entry without a whole stamp")
    expected = int.from_bytes(frame[_CHECKSUM_AT:HEADER_BYTES], "little")
    if crc32c(frame[HEADER_BYTES:], crc32c(frame[:_CHECKSUM_AT])) != expected:
        raise CorruptResponseError("the checksum of an entry does not match its bytes")


def _read_length(data: bytes, position: int) -> tuple[int, int]:
    length = shift = 0
    for byte in data[position : position + 5]:
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, position
        shift += 7
    raise CorruptResponseError("a length is cut off")
