"""What waits to be sent to one peer on one stream: bounded; all that is queued in one turn of the loop goes as
one frame."""

from __future__ import annotations

import asyncio
from collections import deque

from fluxd.core import limits
from fluxlog.v1 import peer_pb2

FRAME_BYTES_TARGET = limits.ENTRY_FRAME_BYTES_MAX
"""A frame takes more messages up to this; the first one whatever its size."""
CONTROL_BYTES_MAX = 4 * limits.MIB

_MESSAGE_TAG = b"\x0a"
_STATUS_TAG = b"\x12"


def _field(tag: bytes, data: bytes) -> bytes:
    length, head = len(data), bytearray(tag)
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
        self._messages: deque[bytes] = deque()
        self._status: bytes | None = None
        self._filled = asyncio.Event()

    def put(self, message: peer_pb2.GroupMessage) -> bool:
        """Queue one message. False when it would exceed the bound: dropped."""
        data = message.SerializeToString()
        if self.bytes_queued + len(data) > self.bytes_max:
            return False
        self.bytes_queued += len(data)
        self._messages.append(data)
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
        while self._messages and (not parts or size + len(self._messages[0]) <= FRAME_BYTES_TARGET):
            data = self._messages.popleft()
            parts += (_field(_MESSAGE_TAG, data), data)
            size += len(data)
        self.bytes_queued -= size
        if self._status is not None:
            parts += (_field(_STATUS_TAG, self._status), self._status)
            self._status = None
        if not self._messages:
            self._filled.clear()
        return b"".join(parts)
