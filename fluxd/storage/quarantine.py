"""What was set aside, `quarantine/<name>.<number>`, and how long it is kept.

Logs that were damaged and have been copied anew, directories of partitions that the cluster does not know, damaged
vote files. Nothing reads them; they are for people who want to know what happened. Of each name the last one is kept,
for a while, and not once space is short.

    quarantine/since.json    when each was first seen here, Unix milliseconds by name

`since.json` is replaced as a whole. Without it, or when it is damaged, the time begins anew: things are kept longer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing

from fluxd.storage.filesystem import FileSystem
from fluxd.storage.json_file import replace_json

QUARANTINE = "quarantine"
SINCE_NAME = "since.json"
_FILES = ("votes",)
"""The others are directories."""


def free_path(fs: FileSystem, name: str) -> str:
    """Where something of this name can be set aside: behind all that are there. Blocks."""
    numbers = [number for stem, number in map(_parse, fs.list(QUARANTINE)) if stem == name]
    return f"{QUARANTINE}/{name}.{max(numbers, default=0) + 1}"


def sweep(
    fs: FileSystem, *, now_ms: int, keep_ms: int, reserve_bytes: int, wanted: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Remove what need not be kept any longer. Blocks.

    Args:
        now_ms: Unix time.
        keep_ms: since it was set aside.
        reserve_bytes: with less free space than this nothing is kept, the oldest goes first.
        wanted: what has this name is not replaced yet: kept for as long as there is room.

    Returns:
        What was removed.

    Raises:
        OSError: the rest is left for the next time.
    """
    entries = [entry for entry in fs.list(QUARANTINE) if _parse(entry)[1]]
    known = _read_since(fs)
    since = {entry: min(known.get(entry, now_ms), now_ms) for entry in entries}
    last = {stem: entry for stem, _, entry in sorted((*_parse(entry), entry) for entry in entries)}
    unfinished = {stem for stem in last if wanted(stem)}
    kept = [entry for entry in last.values() if now_ms - since[entry] < keep_ms or _parse(entry)[0] in unfinished]
    kept.sort(key=lambda entry: (_parse(entry)[0] in unfinished, since[entry], entry))
    removed = []
    for entry in [entry for entry in entries if entry not in kept] + kept:
        if entry in kept and fs.free_bytes() >= reserve_bytes:
            break
        remove = fs.remove if _parse(entry)[0] in _FILES else fs.remove_tree
        remove(f"{QUARANTINE}/{entry}")
        removed.append(entry)
        del since[entry]
    if since != known:
        replace_json(fs, f"{QUARANTINE}/{SINCE_NAME}", since)
    return removed


def _parse(entry: str) -> tuple[str, int]:
    """Name and number; (…, 0): not something that was set aside."""
    stem, dot, number = entry.rpartition(".")
    return (stem, int(number)) if dot and number.isdecimal() else (entry, 0)


def _read_since(fs: FileSystem) -> dict[str, int]:
    try:
        with closing(fs.open(f"{QUARANTINE}/{SINCE_NAME}")) as file:
            content = json.loads(file.read(0, file.size()))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {entry: at for entry, at in content.items() if isinstance(at, int)}
