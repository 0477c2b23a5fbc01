"""The groups' log, for those who keep it short."""

from __future__ import annotations

from fluxd.broker.coordinator_log import CoordinatorLog
from fluxd.broker.log_trimming import Done
from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.group_commands import GroupCommands
from fluxd.core.group_snapshot import snapshot
from fluxd.core.groups import GroupResult
from fluxd.core.types import Offset
from fluxlog.v1 import state_pb2


class GroupsStateLog:
    """A `StateLog`."""

    def __init__(self, groups_log: CoordinatorLog, commands: GroupCommands) -> None:
        self._log, self._commands = groups_log, commands

    @property
    def name(self) -> str:
        """The partition's."""
        return str(self._log.replica.group_id)

    @property
    def log_start_offset(self) -> Offset:
        """First offset kept."""
        return self._log.replica.log_start_offset

    @property
    def applied_offset(self) -> Offset:
        """First offset that is not applied."""
        return self._log.state.applied_offset

    def is_long(self) -> bool:
        """There are GROUPS_TRIM_RECORDS commands."""
        return self.applied_offset - self.log_start_offset >= limits.GROUPS_TRIM_RECORDS

    def encoded_state(self) -> bytes:
        """All groups."""
        return snapshot(self._log.state)

    def append_chunk(self, chunk: state_pb2.StateChunk, done: Done) -> None:
        """Behind the changes that wait."""

        def applied(answer: GroupResult | FluxError) -> None:
            done(answer if isinstance(answer, FluxError) else None)

        self._log.propose(self._commands.state_chunk(chunk), applied)

    def trim(self, log_start_offset: Offset, done: Done) -> None:
        """As the replica does."""
        self._log.replica.trim(log_start_offset, done)
