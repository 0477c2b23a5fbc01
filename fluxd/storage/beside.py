"""What stands beside the segments of a log, its state file and its snapshots: read again, and written anew.

The memory of a replica that takes part knows what both say, so what the disk has lost of them is written once more.
Nothing has to be copied or admitted for that: no promise rests on the old bytes alone while the process lives.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial

from fluxd.core.types import GroupId, RaftIndex
from fluxd.storage.checkpoint import STATE_NAME, StateFile
from fluxd.storage.errors import is_damage
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.snapshot import damaged_snapshots, snapshot_name


@dataclass(frozen=True, slots=True)
class Faults:
    """What is damaged.

    Args:
        state: path, position and what is wrong with the state file; empty: nothing.
        snapshots: the same by the snapshot's index.
    """

    state: str
    snapshots: dict[RaftIndex, str]

    def __bool__(self) -> bool:
        return bool(self.state or self.snapshots)

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.state, *self.snapshots.values())))


class BesideLog:
    """Of one open log. All calls block, and are for another thread."""

    def __init__(self, fs: FileSystem, directory: str, group: GroupId, state: StateFile) -> None:
        self._fs, self._directory, self._group, self._state = fs, directory, group, state

    def faults(self, snapshot_index: RaftIndex) -> Faults:
        """Read all of it again.

        Args:
            snapshot_index: of the last snapshot that was finished; 0: there is none.

        Raises:
            OSError: something cannot be read, for a reason that may pass.
        """
        path = f"{self._directory}/{STATE_NAME}"
        try:
            why = self._state.fault(self._fs, path)
        except OSError as error:
            if not is_damage(error):
                raise
            why = f"position 0: {error.strerror}"
        snapshots = damaged_snapshots(self._fs, self._directory, self._group, snapshot_index)
        return Faults(f"{path}: {why}" if why else "", snapshots)

    def write_state_anew(self) -> None:
        """From memory, durably."""
        self._state.write_anew(self._fs, f"{self._directory}/{STATE_NAME}")

    def steps_to_remove(self, snapshots: Set[RaftIndex]) -> list[Callable[[], None]]:
        """Let go of damaged snapshots, when a newer one is durable."""
        paths = [f"{self._directory}/{snapshot_name(index)}" for index in sorted(snapshots)]
        return [*(partial(self._fs.remove, path) for path in paths), partial(self._fs.sync_directory, self._directory)]
