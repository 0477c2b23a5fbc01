"""The machine's filesystem.

Writes go to a remembered end of file (no fstat, no seek per append). `sync` may run in another thread than `close`: a
descriptor is given back to the system only when no call uses it, since its number would otherwise be reused for
another file under that call.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC
_FILE_MODE = 0o640
_DIRECTORY_MODE = 0o750
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_FORGET_BYTES = 1024 * 1024
_FORGET_ALIGNMENT = 64 * 1024


class RealFile:
    """An open file: one descriptor. Implements `filesystem.File`."""

    def __init__(self, path: str, flags: int) -> None:
        self._path = path
        self._fd = os.open(path, flags, _FILE_MODE)
        self._size = os.fstat(self._fd).st_size
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._forgotten = 0

    def append(self, *buffers: bytes | memoryview) -> int:
        """Write all buffers at the end, in order; returns the size before them."""
        self._check_open()
        before = self._size
        try:
            total = sum(map(len, buffers))
            written = os.pwrite(self._fd, buffers[0], before) if len(buffers) == 1 else 0
            if written != total:
                self._write_all(b"".join(buffers), written)
        except OSError:
            os.ftruncate(self._fd, before)
            raise
        self._size = before + total
        return before

    def write_at(self, position: int, data: bytes) -> None:
        """Overwrite at a position, at most the current size."""
        self._check_open()
        if position > self._size:
            raise ValueError(f"position {position} is beyond the size {self._size} of {self._path}")
        view, at = memoryview(data), position
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written
        self._size = max(self._size, at)

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position; fewer only at the end of the file."""
        with self._using():
            data = os.pread(self._fd, size, position)
            if not data or len(data) == size:
                return data
            parts = [data]
            missing = size - len(data)
            while missing and (data := os.pread(self._fd, missing, position + size - missing)):
                parts.append(data)
                missing -= len(data)
        return b"".join(parts)

    def read_into(self, position: int, buffer: memoryview, *, wait: bool = True) -> int:
        """Fill a buffer from a position; how many bytes.

        Not every file system can tell what is in memory (and no other system than Linux): there nothing ever is.
        """
        done = 0
        with self._using():
            while done < len(buffer):
                if wait:
                    count = os.preadv(self._fd, [buffer[done:]], position + done)
                else:
                    count = _read_cached(self._fd, buffer[done:], position + done)
                if not count:
                    break
                done += count
        return done

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, at most the current size."""
        self._check_open()
        if size > self._size:
            raise ValueError(f"size {size} is beyond the size {self._size} of {self._path}")
        os.ftruncate(self._fd, size)
        self._size = size
        self._forgotten = min(self._forgotten, size - size % _FORGET_ALIGNMENT)

    def size(self) -> int:
        """Current size, bytes."""
        return self._size

    def sync(self) -> None:
        """fdatasync."""
        with self._using():
            os.fdatasync(self._fd)

    def forget(self, end: int) -> None:
        """Have the page cache drop what was synced, a stretch at a time. The last pages stay: they are written again.

        Fresh pages are dear, above all in a virtual machine (half of the processor time of a produce load, measured);
        pages that were just given back are not.
        """
        start, stop = self._forgotten, end - end % _FORGET_ALIGNMENT
        if stop - start < _FORGET_BYTES:
            return
        self._forgotten = stop
        with suppress(OSError), self._using():  # only a hint
            os.posix_fadvise(self._fd, start, stop - start, os.POSIX_FADV_DONTNEED)

    def forget_all(self) -> None:
        """Have the page cache drop the file; what was not written back stays."""
        with suppress(OSError), self._using():  # only a hint
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Give the descriptor back, at once or when the last call that uses it returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._users == 0:
                os.close(self._fd)

    def _write_all(self, data: bytes, done: int) -> None:
        view = memoryview(data)
        while done < len(data):
            written = os.pwrite(self._fd, view[done:], self._size + done)
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
            done += written

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "file is closed", self._path)

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            self._check_open()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._closed and self._users == 0:
                    os.close(self._fd)


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
    """A directory of the machine; it is made when missing. Implements `filesystem.FileSystem`."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        self._root = str(root.absolute())

    def open(self, path: str, *, create: bool = False) -> RealFile:
        """Open for reading and writing."""
        return RealFile(self._at(path), _OPEN_FLAGS | (os.O_CREAT if create else 0))

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
        fd = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root
