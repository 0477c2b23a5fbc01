"""The directory of a replica that is being copied.

The file `copying` in it is the mark: as long as it is there, nothing in the directory counts. It is durable before
anything else is written, and the last thing to go. What stood there before is moved away as a whole, so that no power
cut leaves a part of it without a mark.
"""

from __future__ import annotations

from contextlib import closing

from fluxd.core.types import GroupId, RaftIndex
from fluxd.storage.errors import LogCorrupt, LogMissing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.log import PartitionLog
from fluxd.storage.snapshot import snapshot_name

MARK = "copying"
_PARTITIONS = "partitions"
_QUARANTINE = "quarantine"
_REST_SUFFIX = ".copy"
_MAGIC = b"FLUXCOPY"


def is_being_copied(fs: FileSystem, group: GroupId) -> bool:
    """A copy was begun and not finished."""
    return fs.exists(f"{_path(group)}/{MARK}")


def open_or_begin(fs: FileSystem, group: GroupId, generation: int) -> PartitionLog | None:
    """What was copied so far, opened; None: the directory has been prepared for a new copy. Blocks.

    What is there and is no copy is set aside in quarantine.
    """
    if not is_being_copied(fs, group):
        begin(fs, group)
        return None
    fs.sync_directory(_path(group))  # a kill leaves a mark whose name is not durable
    fs.sync_directory(_PARTITIONS)
    try:
        return PartitionLog.open(fs, _path(group), group, generation, segment_bytes=1 << 62)
    except (LogMissing, LogCorrupt):
        begin(fs, group)
        return None


def begin(fs: FileSystem, group: GroupId) -> None:
    """Set aside what is there, and leave an empty directory with a durable mark. Blocks."""
    path, rest = _path(group), f"{_QUARANTINE}/{group.directory_name}{_REST_SUFFIX}"
    fs.make_directory(_QUARANTINE)
    fs.remove_tree(rest)
    if fs.exists(path):
        copied = is_being_copied(fs, group)
        aside = rest if copied else _free_name(fs, group)
        fs.rename(path, aside)
        fs.sync_directory(_QUARANTINE)
        fs.sync_directory(_PARTITIONS)
        fs.remove_tree(rest)
    fs.make_directory(path)
    with closing(fs.open(f"{path}/{MARK}", create=True)) as file:
        file.append(_MAGIC)
        file.sync()
    fs.sync_directory(path)
    fs.sync_directory(_PARTITIONS)
    fs.sync_directory("")


def create_log(
    fs: FileSystem,
    group: GroupId,
    generation: int,
    first_frame: bytes,
    *,
    snapshot: tuple[RaftIndex, bytes] | None,
    segment_bytes: int,
) -> PartitionLog:
    """A log that begins with the leader's first entry, beside the leader's snapshot (index, file). Blocks."""
    path = _path(group)
    if snapshot is not None:
        index, data = snapshot
        with closing(fs.open(f"{path}/{snapshot_name(index)}", create=True)) as file:
            file.truncate(0)
            file.append(data)
            file.sync()
    return PartitionLog.create_copy(fs, path, group, generation, first_frame, segment_bytes=segment_bytes)


def finish(fs: FileSystem, group: GroupId) -> None:
    """The copy is a replica: the mark goes, durably. Blocks."""
    fs.remove(f"{_path(group)}/{MARK}")
    fs.sync_directory(_path(group))


def _path(group: GroupId) -> str:
    return f"{_PARTITIONS}/{group.directory_name}"


def _free_name(fs: FileSystem, group: GroupId) -> str:
    number = 1
    while fs.exists(f"{_QUARANTINE}/{group.directory_name}.{number}"):
        number += 1
    return f"{_QUARANTINE}/{group.directory_name}.{number}"
