"""The undo journal of a data directory: what was changed since it was last synced, and how to take it back.

It lies beside the data directory (`<name>.undo/`): `journal`, one JSON list a line, and `kept/<number>`, what was
removed or replaced. A line is written before its change, so a process killed in between leaves an undo without a
change, which does nothing; the line of a sync is written after it, so a kill in between leaves the changes undoable,
which is right: nobody was told of that sync.

    [n, "append", file, size]                 the file grew from this size
    [n, "write", file, at, count, old]        `count` bytes were written at `at`, over `old`
    [n, "truncate", file, size, removed]      the file was cut to this size
    [n, "sync", file, through]                changes of this file up to this number are durable
    [n, "create", directory, name]            a file or directory was made
    [n, "remove", directory, name]            it became kept/n
    [n, "rename", directory, name, to_directory, to_name]   what was replaced became kept/n
    [n, "sync_directory", directory, through]

Files and directories are called by their inode numbers, which stay when they are renamed, and are not used again
before the next power cut, since nothing is really removed until then.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Entry = list[Any]

CONTENT = frozenset({"append", "write", "truncate"})
NAMES = frozenset({"create", "remove", "rename"})


def undo_directory(root: Path) -> Path:
    """Where the journal of a data directory is."""
    return root.with_name(root.name + ".undo")


class Journal:
    """An open journal. Changes are made while holding `lock`, from before the entry until after the change."""

    def __init__(self, root: Path) -> None:
        self.directory = undo_directory(root)
        self.kept = self.directory / "kept"
        self.kept.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self._path = self.directory / "journal"
        pending = list(pending_of(self.read()))
        self._keep_only(pending)
        self.last: int = max([0, *(entry[0] for entry in pending), *(int(path.name) for path in self.kept.iterdir())])
        """Number of the newest entry."""
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def add(self, kind: str, *fields: object) -> int:
        """Write an entry; returns its number."""
        with self.lock:
            self.last += 1
            line = json.dumps([self.last, kind, *fields]).encode() + b"\n"
            if os.write(self._fd, line) != len(line):
                raise OSError(f"{self._path}: a short write")
            return self.last

    def read(self) -> list[Entry]:
        """All entries; a last line without its end is what a kill left, and its change did not happen."""
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def forget(self) -> None:
        """Everything that is there is durable, and what was kept is removed at last."""
        self._keep_only([])
        shutil.rmtree(self.kept)
        self.kept.mkdir()

    def _keep_only(self, entries: list[Entry]) -> None:
        fresh = self._path.with_name("journal.new")
        fresh.write_bytes(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        fresh.replace(self._path)


def pending_of(entries: list[Entry]) -> Iterator[Entry]:
    """Changes that no sync covers, in order. A rename is durable as soon as one of its directories is synced."""
    files: dict[int, int] = {}
    directories: dict[int, int] = {}
    for entry in entries:
        if entry[1] == "sync":
            files[entry[2]] = max(entry[3], files.get(entry[2], 0))
        elif entry[1] == "sync_directory":
            directories[entry[2]] = max(entry[3], directories.get(entry[2], 0))
    for entry in entries:
        content = entry[1] in CONTENT and entry[0] > files.get(entry[2], 0)
        if content or (entry[1] in NAMES and all(entry[0] > directories.get(one, 0) for one in directories_of(entry))):
            yield entry


def directories_of(entry: Entry) -> list[int]:
    """The directories that a change of names belongs to."""
    return [entry[2], entry[4]] if entry[1] == "rename" else [entry[2]]
