"""Keeps the groups' log short: the coordinator writes its state into the log now and then, and has trimmed what is
before it.

Every step can be repeated: a coordinator that is replaced in between leaves a state that nobody needs.
"""

from __future__ import annotations

from fluxd.broker.coordinator_log import CoordinatorLog
from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.group_commands import GroupCommands
from fluxd.core.group_snapshot import snapshot
from fluxd.core.groups import GroupResult
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import Offset
from fluxd.observability import get_logger

log = get_logger()


class LogTrimming:
    """See the module."""

    def __init__(self, reactor: Reactor, groups_log: CoordinatorLog, commands: GroupCommands) -> None:
        self._reactor, self._log, self._commands = reactor, groups_log, commands
        self._timer: Timer | None = None
        self._turn = 0
        """Of serving: answers of an earlier one do not count."""
        self._writing = False
        self._written = Offset(0)
        """The log has a whole state that was taken here."""

    def begin(self) -> None:
        """This node coordinates: look now and then."""
        self._timer = self._reactor.call_at(self._reactor.now() + limits.GROUPS_TRIM_INTERVAL, self._round)

    def end(self) -> None:
        """This node coordinates no more."""
        self._turn += 1
        self._writing, self._written = False, Offset(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _round(self) -> None:
        start = self._log.replica.log_start_offset
        if self._written > start:
            self._trim()
        elif not self._writing and self._log.state.applied_offset - start >= limits.GROUPS_TRIM_RECORDS:
            self._write()
        self.begin()

    def _write(self) -> None:
        state, turn = self._log.state, self._turn
        chunks = self._commands.state_chunks(state.applied_offset, snapshot(state))
        left = len(chunks)
        self._writing = True

        def done(answer: GroupResult | FluxError) -> None:
            nonlocal left
            if self._turn != turn or not self._writing:
                return
            left -= 1
            if isinstance(answer, FluxError):
                self._writing = False  # looked at again in the next round
            elif not left:
                self._writing, self._written = False, state.applied_offset
                self._trim()

        for chunk in chunks:
            self._log.propose(chunk, done)

    def _trim(self) -> None:
        """Where that is refused, or unknown, it is tried again in the next round."""
        offset, partition = self._written, str(self._log.replica.group_id)

        def done(error: FluxError | None) -> None:
            if error is None:
                log.info("groups_log_trimmed", partition=partition, log_start_offset=offset)

        self._log.replica.trim(offset, done)
