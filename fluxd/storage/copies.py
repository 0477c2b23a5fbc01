"""Where a replica's log is copied to, and how the copy takes the log's place.

In place, when what is there is lost or damaged. The file `copying` in the directory is the mark: as long as it is
there, nothing in the directory counts. It is durable before anything else is written, and the last thing to go. What
stood there before is moved away as a whole, so that no power cut leaves a part of it without a mark.

Beside (`copies/<group>/`), when the replica takes part and is only behind: its old log counts until the copy is whole.
Then the file `replaces` is written into the copy, durably: from that moment on the copy counts and the old log does
not, whatever happens. The old log is removed, the copy gets its name, the file goes; power lost on the way, the next
open does the rest.
"""

from __future__ import annotations

from contextlib import closing

from fluxd.core import limits
from fluxd.core.entry import verify_frame
from fluxd.core.types import GroupId, RaftIndex
from fluxd.storage.errors import LogCorrupt, LogMissing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.head import vouches
from fluxd.storage.log import PartitionLog
from fluxd.storage.quarantine import QUARANTINE, free_path
from fluxd.storage.snapshot import Snapshot, decode_snapshot, snapshot_indexes, snapshot_name

MARK = "copying"
REPLACES = "replaces"
COPIES = "copies"
_PARTITIONS = "partitions"
_REST_SUFFIX = ".copy"
_MAGIC = b"FLUXCOPY"


def is_being_copied(fs: FileSystem, group: GroupId) -> bool:
    """A copy was begun and not finished."""
    return fs.exists(f"{_path(group)}/{MARK}")


def open_or_begin(
    fs: FileSystem,
    group: GroupId,
    generation: int,
    *,
    segment_bytes: int = limits.SEGMENT_BYTES_DEFAULT,
    beside: bool = False,
) -> PartitionLog | None:
    """What was copied so far, opened; None: the directory has been prepared for a new copy. Blocks.

    What is there and is no copy is set aside in quarantine.
    """
    if not (fs.exists(_path(group, beside=True)) if beside else is_being_copied(fs, group)):
        begin(fs, group, beside=beside)
        return None
    path = _path(group, beside=beside)
    fs.sync_directory(path)  # a kill leaves a mark whose name is not durable
    fs.sync_directory(COPIES if beside else _PARTITIONS)
    try:
        return PartitionLog.open(fs, path, group, generation, segment_bytes=segment_bytes, unfinished=True)
    except (LogMissing, LogCorrupt):
        begin(fs, group, beside=beside)
        return None


def begin(fs: FileSystem, group: GroupId, *, beside: bool = False) -> None:
    """Leave an empty directory for a copy; in place: set aside what is there, and mark it durably. Blocks."""
    discard(fs, group)  # in place too: what was copied beside is of a log that counts no more
    if beside:
        fs.make_directory(COPIES)
        fs.sync_directory("")
        fs.make_directory(_path(group, beside=True))
        fs.sync_directory(COPIES)
        return
    path, rest = _path(group), f"{QUARANTINE}/{group.directory_name}{_REST_SUFFIX}"
    fs.make_directory(QUARANTINE)
    fs.remove_tree(rest)
    if fs.exists(path):
        copied = is_being_copied(fs, group)
        aside = rest if copied else free_path(fs, group.directory_name)
        fs.rename(path, aside)
        fs.sync_directory(QUARANTINE)
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
    beside: bool = False,
) -> PartitionLog:
    """A log that begins with the leader's first entry, beside the leader's snapshot (index, file). Blocks.

    Raises:
        LogCorrupt: it could never be opened: the snapshot does not vouch for the entry. Nothing was written.
    """
    path, first = _path(group, beside=beside), verify_frame(first_frame)
    if not vouches(_decoded(group, snapshot, first.raft_index), first):
        raise LogCorrupt(
            f"the leader's snapshot of entry {snapshot[0] if snapshot else 0} does not vouch for entry "
            f"{first.raft_index}, offset {first.base_offset}, with which its log begins"
        )
    if snapshot is not None:
        index, data = snapshot
        with closing(fs.open(f"{path}/{snapshot_name(index)}", create=True)) as file:
            file.truncate(0)
            file.append(data)
            file.sync()
    return PartitionLog.create_copy(fs, path, group, generation, first_frame, segment_bytes=segment_bytes)


def _decoded(group: GroupId, snapshot: tuple[RaftIndex, bytes] | None, first_index: RaftIndex) -> Snapshot | None:
    """As opening will load it, but for the entry that it is tied to, which is yet to come."""
    decoded = decode_snapshot(group, snapshot[1]) if snapshot is not None else None
    if snapshot is None or decoded is None or decoded.index != snapshot[0] or decoded.index < first_index:
        return None
    return decoded


def finish(fs: FileSystem, group: GroupId) -> None:
    """The copy is a replica: the mark goes, durably. Blocks."""
    fs.remove(f"{_path(group)}/{MARK}")
    fs.sync_directory(_path(group))


def index_wanted(fs: FileSystem, group: GroupId, *, beside: bool) -> RaftIndex:
    """A copy is nothing without this entry: its snapshot is tied to it. Blocks."""
    return max(snapshot_indexes(fs, _path(group, beside=beside)), default=RaftIndex(0))


def is_beside(fs: FileSystem, group: GroupId) -> bool:
    """There is something of a copy beside the log."""
    return fs.exists(_path(group, beside=True))


def discard(fs: FileSystem, group: GroupId) -> None:
    """Remove what was copied beside the log; harmless when there is nothing. Blocks."""
    if is_beside(fs, group):
        fs.remove(f"{_path(group, beside=True)}/{REPLACES}")
        fs.sync_directory(_path(group, beside=True))  # a rest of it must never take a log's place
        fs.remove_tree(_path(group, beside=True))
        fs.sync_directory(COPIES)


def decide(fs: FileSystem, group: GroupId, generation: int) -> None:
    """The copy beside the log, which is whole and synced, counts from now on; the log does not. Blocks.

    Nothing may have been promised on the strength of the log that the copy does not have; nothing may be written to the
    log any more. `finish_replacing` follows, now or at the next start.

    Raises:
        LogMissing, LogCorrupt: the copy does not open; it is removed, and the log counts as before.
    """
    path = _path(group, beside=True)
    try:
        PartitionLog.open(fs, path, group, generation, segment_bytes=limits.SEGMENT_BYTES_DEFAULT).close()
    except (LogMissing, LogCorrupt):
        discard(fs, group)
        raise
    with closing(fs.open(f"{path}/{REPLACES}", create=True)) as file:
        file.append(_MAGIC)
        file.sync()
    fs.sync_directory(path)
    fs.sync_directory(COPIES)


def finish_replacing(fs: FileSystem, group: GroupId) -> None:
    """Give a copy the place of the log if that was decided; from wherever an earlier attempt got. Blocks."""
    path, beside = _path(group), _path(group, beside=True)
    if fs.exists(f"{beside}/{REPLACES}"):
        fs.sync_directory(beside)  # a kill leaves a decision that is not durable
        fs.sync_directory(COPIES)
        fs.remove_tree(path)
        fs.sync_directory(_PARTITIONS)
        fs.rename(beside, path)
        fs.sync_directory(_PARTITIONS)
        fs.sync_directory(COPIES)
    if fs.exists(f"{path}/{REPLACES}"):
        fs.sync_directory(_PARTITIONS)
        if fs.exists(COPIES):
            fs.sync_directory(COPIES)
        fs.remove(f"{path}/{REPLACES}")
        fs.sync_directory(path)


def _path(group: GroupId, *, beside: bool = False) -> str:
    return f"{COPIES if beside else _PARTITIONS}/{group.directory_name}"
