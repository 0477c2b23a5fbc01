"""Small files that are replaced as a whole, as JSON: power lost on the way leaves the old or the new one."""

from __future__ import annotations

import json
from contextlib import closing

from fluxd.storage.filesystem import TEMPORARY_SUFFIX, FileSystem


def replace_json(fs: FileSystem, path: str, content: object) -> None:
    """Durably. Blocks.

    Raises:
        OSError: the old one is still there, or the new one is, its name perhaps not durable.
    """
    temporary = path + TEMPORARY_SUFFIX
    fs.remove(temporary)
    with closing(fs.open(temporary, create=True)) as file:
        file.append(json.dumps(content, indent=2).encode() + b"\n")
        file.sync()
    fs.rename(temporary, path)
    fs.sync_directory(path.rpartition("/")[0])
