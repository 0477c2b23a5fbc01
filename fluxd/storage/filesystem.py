"""The few operations on files that fluxd needs, as an interface.

Two implementations: `storage/real.py` (the machine's) and `tests/simulation/disk.py` (loses unsynced bytes, tears the
last write, fails on demand). Both pass the same contract tests. Paths are relative to the data directory, with "/"
between parts; "" is the data directory itself.

Durability: bytes are durable once a `File.sync` that began after the write has returned. A new, renamed or removed
name is durable once `FileSystem.sync_directory` of its directory, begun after it, has returned. Errors are OSError.
"""

from __future__ import annotations

from typing import Final, Protocol

TEMPORARY_SUFFIX: Final = ".tmp"
"""Of a file that is to take another one's place: whoever finds it unfinished removes it."""


class File(Protocol):
    """An open file. Reads and writes may come from the loop's thread while `sync` runs in another."""

    def append(self, *buffers: bytes | memoryview) -> int:
        """Write all buffers at the end, in order; returns the file's size before them.

        A short write (disk full) is undone by truncating back to the old size before OSError is raised.
        """

    def write_at(self, position: int, data: bytes, *, may_be_lost: bool = False) -> None:
        """Overwrite at a position (at most the current size).

        Args:
            may_be_lost: a later sync that succeeds need not mean that these bytes are durable; they are written again
                before one is to say so. A file that rests may do so before a sync.
        """

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position; fewer only at the end of the file."""

    def read_into(self, position: int, buffer: memoryview, *, wait: bool = True) -> int:
        """Fill a buffer from a position.

        Args:
            wait: False: nothing is waited for; what is not in the machine's memory is left out.

        Returns:
            Bytes that were read: fewer than asked for only at the end of the file, or where not waited for.
        """

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""

    def size(self) -> int:
        """Current size, bytes."""

    def sync(self) -> None:
        """fdatasync: blocks until what was written before the call is durable, size included."""

    def forget(self, end: int) -> None:
        """A hint: what stands before `end` and is synced will hardly be read, so it need not stay in memory. From any
        thread; never an error."""

    def forget_all(self) -> None:
        """A hint: what is read next should come from the disk, as far as it is synced. From any thread; never an
        error."""

    def close(self) -> None:
        """Harmless when closed."""


class FileSystem(Protocol):
    """One data directory."""

    def open(self, path: str, *, create: bool = False, rests: bool = False) -> File:
        """Open for reading and writing.

        Args:
            create: an existing file is opened as it is; without, a missing file is FileNotFoundError.
            rests: it will be open for long and hardly used. The system's resources for it may be given back while
                nobody uses it and all that was written is synced; then a use takes them again, by its path. So it must
                keep its name while it is open, and any use may raise OSError as `open` may; nothing was done then.
        """

    def exists(self, path: str) -> bool:
        """A file or directory of that name is there."""

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; a missing directory has none."""

    def make_directory(self, path: str) -> None:
        """With its parents; harmless when it exists."""

    def rename(self, old: str, new: str) -> None:
        """Atomic; replaces an existing file. A directory may be renamed to a name that is free."""

    def remove(self, path: str) -> None:
        """Remove a file; harmless when it is missing."""

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; harmless when it is missing."""

    def free_bytes(self) -> int:
        """Space that is left for this process."""

    def sync_directory(self, path: str) -> None:
        """fsync of a directory: names in it become durable."""
