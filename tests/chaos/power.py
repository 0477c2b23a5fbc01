"""A power cut: what a dead process had written and not synced is taken back, but for a random part of it.

Of each file's unsynced changes, and independently of each directory's, a prefix of random length stays; the last
write that stays is torn at a random byte, and sometimes zeros stand where the rest of it would be. The same as the
simulated disk does.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.journal import CONTENT, Entry, Journal, directories_of, pending_of
from tests.simulation.disk import Keep

_ZEROS = 0.25
"""Probability that a torn write at the end of a file has zeros behind it."""


@dataclass(slots=True)
class Lost:
    """What a power cut took."""

    writes: int = 0
    torn: int = 0
    names: int = 0


def cut(root: Path, rng: random.Random, keep: Keep = Keep.RANDOM) -> Lost:
    """Take unsynced changes of a data directory back. No process may use it.

    Args:
        root: of a directory that was used through `PowerCutFileSystem`.
        keep: what stays of unsynced changes.
    """
    journal = Journal(root)
    rollback = _Rollback(root, journal, rng, keep)
    rollback.run(list(pending_of(journal.read())))
    journal.forget()
    journal.close()
    return rollback.lost


class _Rollback:
    def __init__(self, root: Path, journal: Journal, rng: random.Random, keep: Keep) -> None:
        self._root, self._journal, self._rng, self._keep = root, journal, rng, keep
        self.lost = Lost()

    def run(self, pending: list[Entry]) -> None:
        files: dict[int, list[Entry]] = defaultdict(list)
        directories: dict[int, list[Entry]] = defaultdict(list)
        for entry in pending:
            if entry[1] in CONTENT:
                files[entry[2]].append(entry)
            else:
                for directory in directories_of(entry):
                    directories[directory].append(entry)
        paths = self._find()
        for number, entries in files.items():
            self._undo_content(paths[number], entries)
        undone = {entry[0]: entry for entry in pending if entry[1] not in CONTENT}
        for entries in directories.values():
            for entry in entries[: self._kept_of(entries)]:
                undone.pop(entry[0], None)
        for number in sorted(undone, reverse=True):
            self._undo_name(undone[number])

    def _kept_of(self, entries: list[Entry]) -> int:
        if self._keep is Keep.RANDOM:
            return self._rng.randint(0, len(entries))
        return len(entries) if self._keep is Keep.EVERYTHING else 0

    def _find(self) -> dict[int, Path]:
        """Where each inode is now. What was replaced and not yet is found under its old name, too."""
        everything = [self._root, *self._root.rglob("*"), *self._journal.kept.rglob("*")]
        return {path.stat().st_ino: path for path in everything}

    # ---- bytes

    def _undo_content(self, path: Path, entries: list[Entry]) -> None:
        count = self._kept_of(entries)
        with path.open("r+b") as file:
            content = bytearray(file.read())
            for entry in reversed(entries[count:]):
                _undo(content, entry)
                self.lost.writes += 1
            if count and self._keep is Keep.RANDOM and entries[count - 1][1] != "truncate":
                self._tear(content, entries[count - 1])
            file.seek(0)
            file.write(content)
            file.truncate()

    def _tear(self, content: bytearray, entry: Entry) -> None:
        at, data = _written(content, entry)
        _undo(content, entry)
        there = self._rng.randint(0, len(data))
        content[at : at + there] = data[:there]
        if there < len(data):
            self.lost.torn += 1
            if at + there == len(content) and self._rng.random() < _ZEROS:
                content += bytes(self._rng.randint(1, len(data) - there))

    # ---- names

    def _undo_name(self, entry: Entry) -> None:
        paths = self._find()
        kept = self._journal.kept / str(entry[0])
        place = paths[entry[2]] / entry[3]
        match entry[1]:
            case "create":
                if place.exists():
                    place.rename(kept)
                    self.lost.names += 1
            case "remove":
                if kept.exists() and not place.exists():
                    kept.rename(place)
                    self.lost.names += 1
            case "rename":
                target = paths[entry[4]] / entry[5]
                if target.exists() and not place.exists():
                    target.rename(place)
                    self.lost.names += 1
                    if kept.exists():
                        kept.rename(target)


def _written(content: bytearray, entry: Entry) -> tuple[int, bytes]:
    """Position and bytes of the newest write."""
    at = entry[3]
    return at, bytes(content[at:] if entry[1] == "append" else content[at : at + entry[4]])


def _undo(content: bytearray, entry: Entry) -> None:
    """Take the newest change back."""
    match entry[1]:
        case "append":
            del content[entry[3] :]
        case "write":
            content[entry[3] : entry[3] + entry[4]] = bytes.fromhex(entry[5])
        case "truncate":
            # It may have been cut off before it happened.
            content[entry[3] :] = bytes.fromhex(entry[4])
