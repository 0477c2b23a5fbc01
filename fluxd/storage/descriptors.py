"""Which files of a data directory have a descriptor: those in use, and of those that rest the ones used last.

A node may hold thousands of replicas, each with two open files, and most of them are not written for hours. So a file
that was opened as one that `rests` may give its descriptor back while nobody uses it, and takes one again when it is
used. Whether it may is the file's to say (`real.RealFile.rest`): never while something written is not synced.

What is used last is approximated: a use sets a flag and nothing else; who looks for a file that may rest passes those
over that have it, once, and takes it off. The bound is therefore soft, as it is where all files are in use at once.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
from collections import OrderedDict
from typing import Protocol

_SHARE = 2
_LOOKED_AT_MAX = 64
_RELEASED_AT_ONCE = 32
_FILE_MODE = 0o640
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class Resting(Protocol):
    """A file that may rest."""

    used: bool
    """Since it was last looked at, beside the use for which it was opened."""

    def rest(self) -> bool:
        """Give the descriptor back, from any thread, without waiting. False: not now."""


class Descriptors:
    """The files that may rest and have a descriptor now. From any thread.

    Args:
        limit: so many may have one, as long as that many can rest; None: half of what this process may open, the rest
            is for connections and for what is read.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = _half_of_what_is_allowed() if limit is None else limit
        self._lock = threading.Lock()
        self._held: OrderedDict[Resting, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def open(self, path: str, flags: int) -> int:
        """A descriptor. Where there is none left, files that rest make room first.

        Raises:
            OSError: EMFILE or ENFILE with the limit, and what to do about it; or any other.
        """
        try:
            return os.open(path, flags, _FILE_MODE)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
        self._release(_RELEASED_AT_ONCE, looked_at_max=2 * len(self._held))
        try:
            return os.open(path, flags, _FILE_MODE)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            why = f"{os.strerror(error.errno or 0)}, {allowed} are allowed for this process (raise `ulimit -n`)"
            raise OSError(error.errno, why, path) from error

    def took(self, file: Resting) -> None:
        """It has a descriptor."""
        with self._lock:
            self._held[file] = None
            excess = len(self._held) - self.limit
        if excess > 0:
            self._release(excess, looked_at_max=_LOOKED_AT_MAX)

    def gave_back(self, file: Resting) -> None:
        """It has none any more; harmless when that is known."""
        with self._lock:
            self._held.pop(file, None)

    def _release(self, count: int, *, looked_at_max: int) -> None:
        for _ in range(looked_at_max):
            with self._lock:
                if not self._held:
                    return
                file = next(iter(self._held))
                self._held.move_to_end(file)
            if file.used:
                file.used = False
            elif file.rest():  # without the lock: the file takes its own, and calls `gave_back`
                count -= 1
                if count == 0:
                    return


def _half_of_what_is_allowed() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if allowed == resource.RLIM_INFINITY else max(1, allowed // _SHARE)
