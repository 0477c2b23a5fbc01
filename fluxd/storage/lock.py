"""One process at a time in a data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fluxd.storage.errors import DirectoryError

LOCK_NAME = "lock"


class DirectoryLock:
    """An exclusive lock that the system releases when the process ends, however it ends.

    Raises:
        DirectoryError: another process holds it; the message names its process id.
        OSError: the file system has no such locks, or no room for one.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise DirectoryError(f"{root} is in use by another process (process id {holder})") from error
        except OSError as error:
            self.release()
            raise OSError(error.errno, f"it cannot be locked: {error.strerror}", str(root / LOCK_NAME)) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Harmless when released."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
