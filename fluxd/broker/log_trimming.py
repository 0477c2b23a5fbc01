"""Keeps the log of a state short: whoever leads writes the whole state into the log now and then, and has trimmed what
is before it.

The log start is moved only when every chunk of the state is committed: at each moment a majority has, on disk, what the
state can be made from. Every step can be repeated: a leader that is replaced in between leaves a state that nobody
needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.state_chunks import state_chunks
from fluxd.core.types import Offset
from fluxd.observability import get_logger
from fluxlog.v1 import state_pb2

log = get_logger()

Done = Callable[[FluxError | None], None]


class StateLog(Protocol):
    """A log, and the state that its records make, on the node that leads."""

    @property
    def name(self) -> str: ...
    @property
    def log_start_offset(self) -> Offset: ...
    @property
    def applied_offset(self) -> Offset: ...
    def is_long(self) -> bool:
        """Long enough to write the state and trim what is before."""

    def encoded_state(self) -> bytes:
        """With all records below `applied_offset`."""

    def append_chunk(self, chunk: state_pb2.StateChunk, done: Done) -> None:
        """Append one record; None: it is committed."""

    def trim(self, log_start_offset: Offset, done: Done) -> None:
        """Move the log start; None: that is committed."""


class LogTrimming:
    """See the module."""

    def __init__(self, reactor: Reactor, state_log: StateLog) -> None:
        self._reactor, self._log = reactor, state_log
        self._timer: Timer | None = None
        self._turn = 0
        """Of leading: answers of an earlier one do not count."""
        self._writing = False
        self._written = Offset(0)
        """The log has a whole state that was taken here."""

    def begin(self) -> None:
        """This node leads: look now and then."""
        self._timer = self._reactor.call_at(self._reactor.now() + limits.LOG_TRIM_INTERVAL, self._round)

    def end(self) -> None:
        """This node leads no more."""
        self._turn += 1
        self._writing, self._written = False, Offset(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _round(self) -> None:
        if self._written > self._log.log_start_offset:
            self._trim()
        elif not self._writing and self._log.is_long():
            taken_at = self._log.applied_offset
            self._writing = True
            self._write(taken_at, iter(state_chunks(taken_at, self._log.encoded_state())))
        self.begin()

    def _write(self, taken_at: Offset, left: Iterator[state_pb2.StateChunk]) -> None:
        """One chunk after the other, so that changes need not wait behind all of them."""
        turn, chunk = self._turn, next(left, None)
        if chunk is None:
            self._writing, self._written = False, taken_at
            self._trim()
            return

        def done(error: FluxError | None) -> None:
            if self._turn != turn:
                return
            if error is None:
                self._write(taken_at, left)
            else:
                self._writing = False  # looked at again in the next round

        self._log.append_chunk(chunk, done)

    def _trim(self) -> None:
        """Where that is refused, or unknown, it is tried again in the next round."""
        offset, name = self._written, self._log.name

        def done(error: FluxError | None) -> None:
            if error is None:
                log.info("state_log_trimmed", partition=name, log_start_offset=offset)

        self._log.trim(offset, done)
