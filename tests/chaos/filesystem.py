"""A filesystem for real processes that can be made to forget what was not synced, as a power cut would.

It is the machine's, with an undo journal beside it (`journal.py`): killed processes keep everything, as the page cache
does; `power.cut` takes unsynced changes back while the process is dead. Like the simulated disk it neither reorders
the writes of one file nor lies about a sync.
"""

from __future__ import annotations

import os
from pathlib import Path

from fluxd.storage.real import RealFile, RealFileSystem
from tests.chaos.journal import Journal

_Strings = list[str]  # in PowerCutFileSystem `list` is a method


class PowerCutFile:
    """An open file. Implements `filesystem.File`."""

    def __init__(self, file: RealFile, number: int, journal: Journal) -> None:
        self._file, self._number, self._journal = file, number, journal

    def append(self, *buffers: bytes | memoryview) -> int:
        """Write all buffers at the end."""
        with self._journal.lock:
            self._journal.add("append", self._number, self._file.size())
            return self._file.append(*buffers)

    def write_at(self, position: int, data: bytes, *, may_be_lost: bool = False) -> None:
        """Overwrite at a position."""
        with self._journal.lock:
            old = self._file.read(position, len(data)).hex()
            self._journal.add("write", self._number, position, len(data), old)
            self._file.write_at(position, data, may_be_lost=may_be_lost)

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position."""
        return self._file.read(position, size)

    def read_into(self, position: int, buffer: memoryview, *, wait: bool = True) -> int:
        """Fill a buffer from a position."""
        return self._file.read_into(position, buffer, wait=wait)

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes."""
        with self._journal.lock:
            removed = self._file.read(size, max(0, self._file.size() - size)).hex()
            self._journal.add("truncate", self._number, size, removed)
            self._file.truncate(size)

    def size(self) -> int:
        """Current size, bytes."""
        return self._file.size()

    def sync(self) -> None:
        """fdatasync; what was written before the call can no more be lost."""
        with self._journal.lock:
            through = self._journal.last
        self._file.sync()
        self._journal.add("sync", self._number, through)

    def forget(self, end: int) -> None:
        """A hint for the page cache."""
        self._file.forget(end)

    def forget_all(self) -> None:
        """A hint for the page cache."""
        self._file.forget_all()

    def close(self) -> None:
        """Harmless when closed."""
        self._file.close()


class PowerCutFileSystem:
    """A data directory. Implements `filesystem.FileSystem`."""

    def __init__(self, root: Path) -> None:
        self._real = RealFileSystem(root)
        self._root = root
        self._journal = Journal(root)

    def open(self, path: str, *, create: bool = False, rests: bool = False) -> PowerCutFile:
        """Open for reading and writing."""
        with self._journal.lock:
            if create and not self.exists(path) and self._root.joinpath(path).parent.is_dir():
                self._journal.add("create", self._parent_of(path), path.rpartition("/")[2])
            file = self._real.open(path, create=create, rests=rests)
            return PowerCutFile(file, self._root.joinpath(path).stat().st_ino, self._journal)

    def exists(self, path: str) -> bool:
        """A file or directory of that name is there."""
        return self._real.exists(path)

    def list(self, path: str) -> _Strings:
        """Names in a directory, sorted."""
        return self._real.list(path)

    def make_directory(self, path: str) -> None:
        """With its parents."""
        with self._journal.lock:
            parts = path.split("/") if path else []
            for count in range(1, len(parts) + 1):
                part = "/".join(parts[:count])
                if not self.exists(part):
                    self._journal.add("create", self._parent_of(part), parts[count - 1])
                    self._real.make_directory(part)

    def rename(self, old: str, new: str) -> None:
        """Atomic; replaces an existing file, which is kept for the undo."""
        with self._journal.lock:
            target = self._root / new
            number = self._journal.add(
                "rename", self._parent_of(old), old.rpartition("/")[2], self._parent_of(new), new.rpartition("/")[2]
            )
            if target.is_file():
                os.link(target, self._journal.kept / str(number))
            self._real.rename(old, new)

    def remove(self, path: str) -> None:
        """Remove a file; harmless when it is missing."""
        with self._journal.lock:
            if self._root.joinpath(path).is_file():
                self._keep(path)

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it, one after the other; harmless when it is missing."""
        with self._journal.lock:
            if not self._root.joinpath(path).is_dir():
                return
            for name in self.list(path):
                child = f"{path}/{name}"
                if self._root.joinpath(child).is_dir():
                    self.remove_tree(child)
                else:
                    self.remove(child)
            self._keep(path)

    def free_bytes(self) -> int:
        """The machine's."""
        return self._real.free_bytes()

    def sync_directory(self, path: str) -> None:
        """Names in it can no more be lost."""
        with self._journal.lock:
            through, number = self._journal.last, self._root.joinpath(path).stat().st_ino
        self._real.sync_directory(path)
        self._journal.add("sync_directory", number, through)

    def _keep(self, path: str) -> None:
        number = self._journal.add("remove", self._parent_of(path), path.rpartition("/")[2])
        self._root.joinpath(path).rename(self._journal.kept / str(number))

    def _parent_of(self, path: str) -> int:
        return self._root.joinpath(path).parent.stat().st_ino
