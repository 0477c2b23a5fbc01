"""Which partition a line goes to, and batches of lines per partition."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fluxctl.lines import LINE_BYTES_MAX, Line
from fluxctl.tally import SentLines, Tally
from fluxlog.errors import FluxlogError
from fluxlog.sender import Sender

_BATCH_BYTES_TARGET = 512 * 1024
"""With at most 65,536 lengths beside them, these stay below the limit of 1 MiB."""
_ROOM_TIMEOUT = 0.1


class InterruptedProducing(Exception):
    """There was no room for a batch, and the user had enough of waiting. It waits on, unsent."""


@dataclass(slots=True)
class _Waiting:
    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    keyed: bool = False


class LineBatcher:
    """Sends lines as records.

    Lines with a key go to partition crc32(key) modulo the number of partitions; lines without one round robin.

    Args:
        partitions: that may be written to.
        separator: what ends the key in a line; empty: lines have no keys. A line without it has a null key.
        batch_lines: 1..65,536.
        interrupted: asked while there is no room; when it says so, InterruptedProducing is raised.
    """

    def __init__(
        self,
        sender: Sender,
        tally: Tally,
        partitions: Sequence[int],
        *,
        separator: bytes = b"",
        batch_lines: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._interrupted = interrupted
        self._sender, self._tally = sender, tally
        self._partitions, self._separator, self._batch_lines = list(partitions), separator, batch_lines
        self._waiting = {number: _Waiting() for number in self._partitions}
        self._next = 0
        self.lines = 0
        """Taken so far; the last one's number."""

    def add(self, lines: Sequence[Line]) -> None:
        """Take lines; full batches leave (and wait for room in the sender)."""
        for line in lines:
            self.lines += 1
            if line is None:
                message = f"a line is longer than {LINE_BYTES_MAX} bytes"
                self._tally.refuse("BATCH_TOO_LARGE", message, [self.lines], [])
                continue
            key: bytes | None = None
            value = line
            if self._separator:
                first, found, rest = line.partition(self._separator)
                if found:
                    key, value = first, rest
            waiting, number = self._choose(key)
            if waiting.values and waiting.size + len(line) > _BATCH_BYTES_TARGET:
                waiting = self._send(number)
            waiting.values.append(value)
            waiting.keys.append(key)
            waiting.numbers.append(self.lines)
            waiting.lines.append(line)
            waiting.size += len(line)
            waiting.keyed |= key is not None
            if len(waiting.values) >= self._batch_lines:
                self._send(number)

    def flush(self) -> None:
        """Send what waits."""
        for number in self._partitions:
            if self._waiting[number].values:
                self._send(number)

    def give_up(self) -> None:
        """Count what waits as not sent."""
        for waiting in self._waiting.values():
            if waiting.values:
                self._tally.refuse("NOT_SENT", "interrupted before it was sent", waiting.numbers, waiting.lines)
        self._waiting = {number: _Waiting() for number in self._partitions}

    def _choose(self, key: bytes | None) -> tuple[_Waiting, int]:
        if key is None:
            number = self._partitions[self._next]
            self._next = (self._next + 1) % len(self._partitions)
        else:
            number = self._partitions[zlib.crc32(key) % len(self._partitions)]
        return self._waiting[number], number

    def _send(self, number: int) -> _Waiting:
        waiting = self._waiting[number]
        while True:
            try:
                self._sender.send(
                    number,
                    waiting.values,
                    keys=waiting.keys if waiting.keyed else None,
                    context=SentLines(waiting.numbers, waiting.lines),
                    timeout=_ROOM_TIMEOUT,
                )
                break
            except FluxlogError as failure:
                if failure.reason != "BUFFER_FULL":
                    raise
                if self._interrupted():
                    raise InterruptedProducing from failure
        self._waiting[number] = _Waiting()
        return self._waiting[number]
