"""The machine's filesystem.

Writes go to a remembered end of file (no fstat, no seek per append). `sync` may run in another thread than `close`: a
descriptor is given back to the system only when no call uses it, since its number would otherwise be reused for
another file under that call.

A file that may rest (`descriptors.py`) keeps its descriptor from the first write until a sync that began after the
last one has succeeded: the system tells of a write that did not reach the disk only through a descriptor that was open
meanwhile, and only once. So after a sync that failed it does not rest any more. It is opened again by its path, and
must be the file that it was: same inode, same size.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fluxd.storage.descriptors import Descriptors

_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC
_DIRECTORY_MODE = 0o750
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_FORGET_BYTES = 1024 * 1024
_FORGET_ALIGNMENT = 64 * 1024
_RESTS = -1


class RealFile:
    """An open file: one descriptor, or none while it rests. Implements `filesystem.File` and `descriptors.Resting`."""

    def __init__(self, path: str, flags: int, descriptors: Descriptors, *, rests: bool) -> None:
        self._path = path
        self._descriptors = descriptors
        self._may_rest = rests
        self._fd = descriptors.open(path, flags)
        found = os.fstat(self._fd)
        self._size, self._identity = found.st_size, (found.st_dev, found.st_ino)
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._forgotten = 0
        self._writes = self._writes_synced = 0
        self._sync_failed = False
        self.used = False
        if rests:
            descriptors.took(self)

    def append(self, *buffers: bytes | memoryview) -> int:
        """Write all buffers at the end, in order; returns the size before them."""
        with self._lock:  # without `_changing`: this is the hot path
            fd = self._descriptor()
            self._writes += 1
            before = self._size
            try:
                total = sum(map(len, buffers))
                written = os.pwrite(fd, buffers[0], before) if len(buffers) == 1 else 0
                if written != total:
                    self._write_all(fd, b"".join(buffers), written)
            except OSError as error:
                self._name(error)
                os.ftruncate(fd, before)
                raise
            self._size = before + total
        return before

    def write_at(self, position: int, data: bytes, *, may_be_lost: bool = False) -> None:
        """Overwrite at a position, at most the current size."""
        with self._changing() as fd:
            if position > self._size:
                raise ValueError(f"position {position} is beyond the size {self._size} of {self._path}")
            if not may_be_lost:
                self._writes += 1
            view, at = memoryview(data), position
            while view:
                written = os.pwrite(fd, view, at)
                view, at = view[written:], at + written
            self._size = max(self._size, at)

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position; fewer only at the end of the file."""
        with self._using() as fd:
            data = os.pread(fd, size, position)
            if not data or len(data) == size:
                return data
            parts = [data]
            missing = size - len(data)
            while missing and (data := os.pread(fd, missing, position + size - missing)):
                parts.append(data)
                missing -= len(data)
        return b"".join(parts)

    def read_into(self, position: int, buffer: memoryview, *, wait: bool = True) -> int:
        """Fill a buffer from a position; how many bytes.

        Not every file system can tell what is in memory (and no other system than Linux): there nothing ever is.
        """
        done = 0
        with self._using() as fd:
            while done < len(buffer):
                if wait:
                    count = os.preadv(fd, [buffer[done:]], position + done)
                else:
                    count = _read_cached(fd, buffer[done:], position + done)
                if not count:
                    break
                done += count
        return done

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, at most the current size."""
        with self._changing() as fd:
            if size > self._size:
                raise ValueError(f"size {size} is beyond the size {self._size} of {self._path}")
            self._writes += 1
            os.ftruncate(fd, size)
            self._size = size
            self._forgotten = min(self._forgotten, size - size % _FORGET_ALIGNMENT)

    def size(self) -> int:
        """Current size, bytes."""
        return self._size

    def sync(self) -> None:
        """fdatasync."""
        with self._lock:
            fd, covered = self._descriptor(), self._writes
            self._users += 1
        try:
            os.fdatasync(fd)
            self._writes_synced = covered
        except OSError as error:
            self._sync_failed = True
            self._name(error)
            raise
        finally:
            self._end_use()

    def forget(self, end: int) -> None:
        """Have the page cache drop what was synced, a stretch at a time. The last pages stay: they are written again.

        Fresh pages are dear, above all in a virtual machine (half of the processor time of a produce load, measured);
        pages that were just given back are not.
        """
        start, stop = self._forgotten, end - end % _FORGET_ALIGNMENT
        if stop - start < _FORGET_BYTES:
            return
        self._forgotten = stop
        if self._fd == _RESTS:
            return  # not worth a descriptor
        with suppress(OSError), self._using() as fd:  # only a hint
            os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)

    def forget_all(self) -> None:
        """Have the page cache drop the file; what was not written back stays."""
        with suppress(OSError), self._using() as fd:  # only a hint
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rest(self) -> bool:
        """See `Resting`. False also while another call is on."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._users or self._writes != self._writes_synced or self._sync_failed or self._closed:
                return False
            with suppress(OSError):  # what counts is synced, or was never to count
                self._give_back()
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Give the descriptor back, at once or when the last call that uses it returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._users == 0:
                self._give_back()

    def _write_all(self, fd: int, data: bytes, done: int) -> None:
        view = memoryview(data)
        while done < len(data):
            written = os.pwrite(fd, view[done:], self._size + done)
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
            done += written

    # ---- the descriptor; with the lock held

    def _descriptor(self) -> int:
        if self._closed:
            raise OSError(errno.EBADF, "file is closed", self._path)
        if self._fd == _RESTS:
            self._open_again()
        else:
            self.used = True
        return self._fd

    def _open_again(self) -> None:
        fd = self._descriptors.open(self._path, _OPEN_FLAGS)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != self._identity or found.st_size != self._size:
            os.close(fd)
            raise OSError(errno.ESTALE, "another file has taken its place while it was at rest", self._path)
        self._fd = fd
        self._descriptors.took(self)

    def _give_back(self) -> None:
        fd, self._fd = self._fd, _RESTS
        if fd == _RESTS:
            return
        if self._may_rest:
            self._descriptors.gave_back(self)
        os.close(fd)

    @contextmanager
    def _changing(self) -> Iterator[int]:
        with self._lock:
            fd = self._descriptor()
            try:
                yield fd
            except OSError as error:
                self._name(error)
                raise

    @contextmanager
    def _using(self) -> Iterator[int]:
        with self._lock:
            fd = self._descriptor()
            self._users += 1
        try:
            yield fd
        except OSError as error:
            self._name(error)
            raise
        finally:
            self._end_use()

    def _name(self, error: OSError) -> None:
        """Say of which file an error is: the system does not, of a descriptor."""
        if error.filename is None:
            error.filename = self._path

    def _end_use(self) -> None:
        with self._lock:
            self._users -= 1
            if self._closed and self._users == 0:
                self._give_back()


def _read_cached(fd: int, buffer: memoryview, position: int) -> int:
    if _NO_WAIT is None:
        return 0
    try:
        return os.preadv(fd, [buffer], position, _NO_WAIT)
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return 0


class RealFileSystem:
    """A directory of the machine, made durably when it is missing. Implements `filesystem.FileSystem`.

    Args:
        descriptors: of files that may rest; None: its own, as many as this process may have.
    """

    def __init__(self, root: Path, descriptors: Descriptors | None = None) -> None:
        root = root.absolute()
        self._root = str(root)
        self._descriptors = Descriptors() if descriptors is None else descriptors
        missing = [made for made in (root, *root.parents) if not made.exists()]
        root.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        for made in missing:
            self._sync_directory(str(made.parent))

    def open(self, path: str, *, create: bool = False, rests: bool = False) -> RealFile:
        """Open for reading and writing."""
        flags = _OPEN_FLAGS | (os.O_CREAT if create else 0)
        return RealFile(self._at(path), flags, self._descriptors, rests=rests)

    def exists(self, path: str) -> bool:
        """A file or directory of that name is there."""
        try:
            os.lstat(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        try:
            return sorted(os.listdir(self._at(path)))  # noqa: PTH208 - names only, thousands of them
        except FileNotFoundError:
            return []

    def make_directory(self, path: str) -> None:
        """With its parents."""
        Path(self._at(path)).mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)

    def rename(self, old: str, new: str) -> None:
        """Atomic; a directory's new name must be free."""
        Path(self._at(old)).replace(self._at(new))

    def remove(self, path: str) -> None:
        """Remove a file; harmless when it is missing."""
        Path(self._at(path)).unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; harmless when it is missing."""
        if self.exists(path):
            shutil.rmtree(self._at(path))

    def free_bytes(self) -> int:
        """Space that is left for this process."""
        found = os.statvfs(self._root)
        return found.f_bavail * found.f_frsize

    def sync_directory(self, path: str) -> None:
        """fsync of a directory."""
        self._sync_directory(self._at(path))

    def _sync_directory(self, path: str) -> None:
        fd = self._descriptors.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root
