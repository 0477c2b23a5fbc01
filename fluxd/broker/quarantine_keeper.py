"""Removes what was set aside (`storage/quarantine.py`) when its time is over, or when the disk has no room for it."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId
from fluxd.observability import get_logger
from fluxd.storage.copies import is_being_copied
from fluxd.storage.directory import PARTITIONS
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.quarantine import sweep

log = get_logger()


class QuarantineKeeper:
    """Of one node.

    Args:
        keep_s: how long the last one of a name is kept, seconds.
    """

    def __init__(self, reactor: Reactor, fs: FileSystem, *, keep_s: float) -> None:
        self._reactor, self._fs, self._keep_ms = reactor, fs, int(keep_s * 1000)
        self._timer: Timer | None = None
        self._stopped = False

    def start(self) -> None:
        """Look every QUARANTINE_CHECK_INTERVAL from now on."""
        self._timer = self._reactor.call_at(self._reactor.now() + limits.QUARANTINE_CHECK_INTERVAL, self._look)

    def stop(self) -> None:
        """Remove nothing any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        removed: list[str] = []
        now_ms = self._reactor.wall_ms()

        def look() -> None:
            if self._stopped:
                return
            removed.extend(
                sweep(
                    self._fs, now_ms=now_ms, keep_ms=self._keep_ms, reserve_bytes=limits.DISK_RESERVE_BYTES,
                    wanted=self._unfinished,
                )
            )  # fmt: skip

        def looked(error: BaseException | None) -> None:
            if self._stopped:
                return
            if removed:
                log.info("quarantine_removed", names=removed)
            if error is not None:
                log.warning("quarantine_not_removed", why=str(error))
            self.start()

        self._reactor.run_blocking([look], looked)

    def _unfinished(self, name: str) -> bool:
        """What replaces it is still being copied."""
        return name in self._fs.list(PARTITIONS) and is_being_copied(self._fs, GroupId.from_directory_name(name))
