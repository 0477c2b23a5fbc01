"""A disk that loses what was not synced: the simulated `filesystem.FileSystem`.

Every file has durable bytes and a list of later writes; every directory has durable names and a list of later
changes. A sync moves the list into what is durable. A power cut keeps of each list, independently, a prefix of random
length, tears the last write that it keeps at a random byte, and sometimes leaves zeros where the rest of it would be
(a size that reached the disk before the bytes did). So a name may survive without its bytes, bytes without their
name, and a later file without an earlier one. A kill of the process keeps everything.

A disk can be sick: syncs, writes and reads fail at random. After a sync of a file that failed its unsynced writes are
durable or not, each for itself, and none of them becomes durable by a later sync, although they can be read as long as
the cache keeps them (which it may not): what Linux does. Room can run out: then what grows a file fails.

A file that rests does so whenever it may: each use after a sync, or after a write that may be lost, finds it again by
its path, or fails ("reopen", only on demand).

Not modelled: a disk that reorders writes within one file unless a sync fails, or lies about a sync; a directory whose
sync failed and that forgets its changes (file systems keep a journal of those).
"""

from __future__ import annotations

import copy
import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.simulation.disk_content import Content, Directory, Keep, NameChange, Truncate, Write

__all__ = ["WELL", "Keep", "PowerCut", "Sickness", "SimDisk", "SimFile"]


class PowerCut(BaseException):
    """The power failed at this operation. Not an Exception: no code under test may catch it."""


@dataclass(frozen=True, slots=True)
class Sickness:
    """How often an operation fails: 0 to 1."""

    syncs: float = 0.0
    writes: float = 0.0
    reads: float = 0.0

    def share_of(self, operation: str) -> float:
        """Of one kind of operation."""
        if operation in ("read", "list", "exists", "open"):
            return self.reads
        if operation == "reopen":
            return 0.0
        return self.syncs if operation in ("sync", "sync_directory") else self.writes


WELL = Sickness()
_Directories = list[Directory]
_Nodes = list[Content]
_Strings = list[str]  # in SimDisk `list` is a method


class SimFile:
    """An open file; invalid after a kill or a power cut. Implements `filesystem.File`."""

    def __init__(self, disk: SimDisk, path: str, node: Content, *, rests: bool) -> None:
        self._disk = disk
        self._path = path
        self._node = node
        self._life = disk.life
        self._closed = False
        self._rests = self._may_rest = rests
        """Nothing that was written waits for a sync; once one has failed it does for ever."""

    def append(self, *buffers: bytes | memoryview) -> int:
        """Write all buffers at the end; nothing is written when it fails."""
        self._begin("append", sum(map(len, buffers)))
        self._rests = False
        before = len(self._node.data)
        self._node.change(Write(before, b"".join(buffers)))
        return before

    def write_at(self, position: int, data: bytes, *, may_be_lost: bool = False) -> None:
        """Overwrite at a position, at most the current size."""
        self._begin("write_at")
        self._rests = self._rests and may_be_lost
        if position > len(self._node.data):
            raise ValueError(f"position {position} is beyond the size {len(self._node.data)} of {self._path}")
        self._node.change(Write(position, bytes(data)))

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position."""
        self._begin("read")
        data = bytes(self._node.data[position : position + size])
        self._disk.bytes_read += len(data)
        return data

    def read_into(self, position: int, buffer: memoryview, *, wait: bool = True) -> int:
        """Fill a buffer; what was forgotten is waited for."""
        if not wait and position < self._disk.forgotten.get(self._path, 0):
            self._check_open()
            return 0
        data = self.read(position, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, at most the current size."""
        self._begin("truncate")
        self._rests = False
        if size > len(self._node.data):
            raise ValueError(f"size {size} is beyond the size {len(self._node.data)} of {self._path}")
        self._node.change(Truncate(size))

    def size(self) -> int:
        """Current size, bytes."""
        return len(self._node.data)

    def sync(self) -> None:
        """What was written becomes durable, or never will."""
        self._check_open()
        self._find_again()
        try:
            self._disk.begin("sync", self._path)
        except OSError:
            self._rests = self._may_rest = False
            self._node.sync_failed(self._disk.rng)
            raise
        self._rests = self._may_rest
        self._node.sync()

    def forget(self, end: int) -> None:
        """There is no cache; that it was asked for is noted."""
        if end:
            self._disk.forgotten[self._path] = end

    def forget_all(self) -> None:
        """There is no cache."""

    def close(self) -> None:
        """Harmless when closed."""
        self._closed = True

    def _begin(self, operation: str, grows: int = 0) -> None:
        self._check_open()
        self._find_again()
        self._disk.begin(operation, self._path, grows)

    def _find_again(self) -> None:
        if self._rests:
            self._disk.begin("reopen", self._path)
            found = self._disk.node_at(self._path)
            if found is not self._node:
                number = errno.ENOENT if found is None else errno.ESTALE
                raise OSError(number, os.strerror(number), self._path)

    def _check_open(self) -> None:
        if self._closed or self._life != self._disk.life:
            raise OSError(errno.EBADF, "file is closed", self._path)


class SimDisk:
    """One data directory.

    Args:
        rng: decides what a power cut keeps.

    Attributes:
        life: number of kills and power cuts so far; a file opened in an earlier life answers EBADF.
        operations: completed or failed calls by name ("append", "sync", "read", "sync_directory", …).
        bytes_read: over all files.
        forgotten: how much of a file need not stay in memory, by path, where that was said.
        free: what `free_bytes` answers, unless there is less room.
        room: bytes that can still be written; None: no end of it.
        sickness: what fails.
        errors: how many operations failed of that, or for want of room.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._root = Directory()
        self.room: int | None = None
        self.sickness = WELL
        self.errors = 0
        self._failures: list[tuple[str, str | None, OSError]] = []
        self._cut_after: int | None = None
        self.life = 0
        self.free = 1 << 40
        self.operations: dict[str, int] = {}
        self.bytes_read = 0
        self.forgotten: dict[str, int] = {}

    # ---- FileSystem

    def open(self, path: str, *, create: bool = False, rests: bool = False) -> SimFile:
        """Open for reading and writing."""
        parent, name = self._parent(path)
        node = parent.names.get(name)
        made = node is None and create
        self.begin("create" if made else "open", path, int(made))
        if node is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = Content()
            self._change((parent, name, node))
        if isinstance(node, Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return SimFile(self, path, node, rests=rests)

    def exists(self, path: str) -> bool:
        """A file or directory of that name is there."""
        self.begin("exists", path)
        return self._lookup(path) is not None

    def list(self, path: str) -> _Strings:
        """Names in a directory, sorted."""
        self.begin("list", path)
        return self.names(path)

    def names(self, path: str) -> _Strings:
        """The same for tests: no operation, never fails."""
        directory = self._lookup(path)
        return sorted(directory.names) if isinstance(directory, Directory) else []

    def make_directory(self, path: str) -> None:
        """With its parents."""
        self.begin("make_directory", path)
        directory = self._root
        for part in path.split("/") if path else []:
            child = directory.names.get(part)
            if child is None:
                child = Directory()
                self._change((directory, part, child))
            if not isinstance(child, Directory):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            directory = child

    def rename(self, old: str, new: str) -> None:
        """Atomic, also across directories; replaces an existing file."""
        self.begin("rename", old)
        old_parent, old_name = self._parent(old)
        new_parent, new_name = self._parent(new)
        node = old_parent.names.get(old_name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        if isinstance(new_parent.names.get(new_name), Directory):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), new)
        self._change((old_parent, old_name, None), (new_parent, new_name, node))

    def remove(self, path: str) -> None:
        """Remove a file; harmless when it is missing."""
        self.begin("remove", path)
        if isinstance(self._lookup(path), Content):
            parent, name = self._parent(path)
            self._change((parent, name, None))

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; harmless when it is missing."""
        self.begin("remove_tree", path)
        directory = self._lookup(path)
        if not isinstance(directory, Directory):
            return
        for name, node in list(directory.names.items()):
            if isinstance(node, Directory):
                self.remove_tree(f"{path}/{name}")
            else:
                self.remove(f"{path}/{name}")
        parent, name = self._parent(path)
        self._change((parent, name, None))

    def free_bytes(self) -> int:
        """As it was set."""
        return self.free if self.room is None else min(self.free, self.room)

    def sync_directory(self, path: str) -> None:
        """Names in it become durable."""
        self.begin("sync_directory", path)
        directory = self._lookup(path)
        if not isinstance(directory, Directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        for change in directory.pending:
            change.make_durable()
        directory.pending.clear()

    # ---- faults

    def kill(self) -> None:
        """The process ends: open files are invalid, nothing is lost, nothing becomes durable."""
        self.life += 1
        self.heal()

    def power_cut(self, keep: Keep = Keep.RANDOM) -> None:
        """The machine ends: unsynced changes are lost, but for what `keep` leaves of them."""
        self.kill()
        self._cut_after = None
        directories, files = self._everything()
        for directory in directories:
            directory.cut(self.rng, keep)
        for directory in directories:
            directory.pending.clear()
            directory.names = dict(directory.durable)
        for node in files:
            node.cut(self.rng, keep)

    def cut_after(self, operations: int) -> None:
        """Raise PowerCut at the operation that follows so many changing ones (syncs count), and let nothing change
        after it.

        The test then calls `power_cut` with what is to be kept.
        """
        self._cut_after = operations

    def fail_next(self, operation: str, error: OSError, *, path: str | None = None) -> None:
        """Let the next such operation fail, without effect.

        Args:
            operation: name of a method of File or FileSystem.
            path: only on a file or directory whose path contains this.
        """
        self._failures.append((operation, path, error))

    def heal(self) -> None:
        """Forget the failures that have not happened yet."""
        self._failures.clear()

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Nothing fails: for who looks from outside."""
        kept = self.sickness, self._failures, self._cut_after
        self.sickness, self._failures, self._cut_after = WELL, [], None
        try:
            yield
        finally:
            self.sickness, self._failures, self._cut_after = kept

    def wipe(self) -> None:
        """A new, empty disk."""
        self.kill()
        self._root = Directory()
        self.sickness, self.room = WELL, None

    # ---- for tests

    def lossy_files(self) -> _Strings:
        """Names of files in which a failed sync may have left holes, also where they come back by a power cut only."""
        return [name for directory in self._everything()[0] for names in (directory.names, directory.durable)
                for name, node in names.items() if isinstance(node, Content) and node.lossy]  # fmt: skip

    def durable_bytes(self, path: str) -> bytes | None:
        """What a power cut cannot take from a file; None: its name is not durable."""
        directory: Content | Directory | None = self._root
        for part in path.split("/"):
            directory = directory.durable.get(part) if isinstance(directory, Directory) else None
        return bytes(directory.durable) if isinstance(directory, Content) else None

    def current_bytes(self, path: str) -> bytes:
        """What a read would return."""
        node = self._lookup(path)
        assert isinstance(node, Content), path
        return bytes(node.data)

    def set_bytes(self, path: str, data: bytes) -> None:
        """Make a file hold exactly these bytes, durably: damage, or a state to begin with."""
        self.make_directory(path.rpartition("/")[0])
        self.open(path, create=True)
        node = self._lookup(path)
        assert isinstance(node, Content), path
        node.data, node.durable = bytearray(data), bytearray(data)
        node.pending.clear()
        self.sync_everything()

    def flip_bit(self, path: str, position: int, bit: int = 0) -> None:
        """Damage one byte of a file, where it is written and where it is durable."""
        node = self._lookup(path)
        assert isinstance(node, Content), path
        for data in (node.data, node.durable):
            if position < len(data):
                data[position] ^= 1 << bit

    def cut_off(self, path: str, size: int) -> None:
        """Damage a file: only so many bytes of it are left."""
        node = self._lookup(path)
        assert isinstance(node, Content), path
        node.sync()
        for data in (node.data, node.durable):
            del data[size:]

    def sync_everything(self) -> None:
        """Make all that is there durable."""
        directories, files = self._everything()
        for directory in directories:
            for change in directory.pending:
                change.make_durable()
            directory.pending.clear()
        for node in files:
            node.sync()

    def copy(self, rng: random.Random) -> SimDisk:
        """A disk with the same durable and unsynced content, to try another fate on; no file is open on it."""
        twin = SimDisk(rng)
        twin._root = copy.deepcopy(self._root)
        return twin

    # ---- inside

    def node_at(self, path: str) -> Content | Directory | None:
        """What a path names."""
        return self._lookup(path)

    def begin(self, operation: str, path: str, grows: int = 0) -> None:
        """Count an operation and let it fail when that was asked for."""
        self.operations[operation] = self.operations.get(operation, 0) + 1
        if self._cut_after is not None and operation not in ("read", "list", "exists", "reopen"):
            if self._cut_after == 0:
                raise PowerCut
            self._cut_after -= 1
        for failure in self._failures:
            wanted, part, error = failure
            if wanted == operation and (part is None or part in path):
                self._failures.remove(failure)
                self.errors += 1
                raise error
        share = self.sickness.share_of(operation)
        if share and self.rng.random() < share:
            self.errors += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if self.room is not None and grows:
            if grows > self.room:
                self.errors += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            self.room -= grows

    def _change(self, *changes: tuple[Directory, str, Content | Directory | None]) -> None:
        names = NameChange(list(changes))
        for directory, name, node in changes:
            if node is None:
                directory.names.pop(name, None)
            else:
                directory.names[name] = node
            if names not in directory.pending:
                directory.pending.append(names)

    def _parent(self, path: str) -> tuple[Directory, str]:
        head, _, name = path.rpartition("/")
        parent = self._lookup(head)
        if not isinstance(parent, Directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return parent, name

    def _lookup(self, path: str) -> Content | Directory | None:
        node: Content | Directory | None = self._root
        for part in path.split("/") if path else []:
            node = node.names.get(part) if isinstance(node, Directory) else None
        return node

    def _everything(self) -> tuple[_Directories, _Nodes]:
        """All that is reachable by a current or a durable name: a removal that is lost brings a name back."""
        directories: _Directories = [self._root]
        files: _Nodes = []
        seen = {id(self._root)}
        for directory in directories:
            for node in (*directory.names.values(), *directory.durable.values()):
                if id(node) in seen:
                    continue
                seen.add(id(node))
                if isinstance(node, Directory):
                    directories.append(node)
                else:
                    files.append(node)
        return directories, files
