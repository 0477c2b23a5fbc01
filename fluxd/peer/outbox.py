"""What waits to be sent to one peer on one stream: bounded; all that is queued in one turn of the loop goes as
one frame."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from fluxd.core import limits
from fluxlog.v1 import peer_pb2

FRAME_BYTES_TARGET = limits.ENTRY_FRAME_BYTES_MAX
"""A frame takes more messages up to this; the first one whatever its size."""
CONTROL_BYTES_MAX = 4 * limits.MIB

_MESSAGE_TAG = b"\x0a"  # PeerFrame.messages
_STATUS_TAG = b"\x12"  # PeerFrame.status
_APPEND_TAG = b"\x2a"  # GroupMessage.append_entries
_FRAME_TAG = b"\x2a"  # AppendEntries.frames


def _head(tag: bytes, length: int) -> bytes:
    """Of a field: tag and length."""
    head = bytearray(tag)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


class Outbox:
    """The queue of one stream. Messages are encoded when they are put, so the sender may change them afterwards."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_queued = 0
        self._messages: deque[tuple[list[bytes], int]] = deque()
        """Parts of one encoded GroupMessage each, and their bytes together."""
        self._status: bytes | None = None
        self._filled = asyncio.Event()

    def put(self, message: peer_pb2.GroupMessage, frames: Sequence[bytes] = ()) -> bool:
        """Queue one message. False when it would exceed the bound: dropped.

        Args:
            frames: more entries for its AppendEntries; they are copied once, into what is sent.
        """
        parts = [message.SerializeToString()]
        if frames:
            # A second occurrence of a message field is merged into the first one, as protobuf defines it.
            entries = [part for frame in frames for part in (_head(_FRAME_TAG, len(frame)), frame)]
            parts += (_head(_APPEND_TAG, sum(map(len, entries))), *entries)
        size = sum(map(len, parts))
        if self.bytes_queued + size > self.bytes_max:
            return False
        self.bytes_queued += size
        self._messages.append((parts, size))
        self._filled.set()
        return True

    def put_status(self, status: bytes) -> None:
        """Queue an encoded NodeStatus; it replaces one that has not been sent."""
        self._status = status
        self._filled.set()

    def clear(self) -> None:
        """Drop all that waits: the stream broke."""
        self._messages.clear()
        self.bytes_queued = 0
        self._status = None
        self._filled.clear()

    async def next_frame(self) -> bytes:
        """Wait until something is queued; an encoded PeerFrame."""
        await self._filled.wait()
        parts: list[bytes] = []
        size = 0
        while self._messages and (not parts or size + self._messages[0][1] <= FRAME_BYTES_TARGET):
            message, message_bytes = self._messages.popleft()
            parts += (_head(_MESSAGE_TAG, message_bytes), *message)
            size += message_bytes
        self.bytes_queued -= size
        if self._status is not None:
            parts += (_head(_STATUS_TAG, len(self._status)), self._status)
            self._status = None
        if not self._messages:
            self._filled.clear()
        return b"".join(parts)
