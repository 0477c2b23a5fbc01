"""Snapshots of a group's state beside its log: `{index:020d}.snap`.

    position  bytes  content (little-endian)
    0         4      "FXP2"
    4         4      checksum of the log's entry at the index: the chain makes it stand for all entries up to there
    8         8      index: the state after this entry, which is committed
    16        8      payload's length
    24        8      log start offset after this entry
    32        16     topic id
    48        4      partition
    52        4      0
    56        n      payload
    56+n      4      CRC-32C of everything before

"FXP1", of logs whose start was never moved, has the first 24 bytes and then the payload.

Written under a temporary name, synced, renamed; the name is synced before older ones are removed. So at every moment
the last snapshot that was finished, or its predecessor, is there. A snapshot whose checksum is not the log's belongs
to entries that are no more and is not loaded. One that is damaged, or that the disk does not give, is passed over.

While the log begins with its birth entry a snapshot only saves replaying. Once the log's head was trimmed it is the
only trace of what stood there, and vouches for where the log begins: without it the log does not open.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from crc32c import crc32c

from fluxd.core.types import TOPIC_ID_BYTES, GroupId, Offset, RaftIndex
from fluxd.storage.errors import is_damage
from fluxd.storage.filesystem import TEMPORARY_SUFFIX, FileSystem

SUFFIX = ".snap"
KEPT = 2
_MAGIC = b"FXP2"
_OLD_MAGIC = b"FXP1"
_OLD_HEADER = struct.Struct("<4sIQQ")
_HEADER = struct.Struct(f"<4sIQQQ{TOPIC_ID_BYTES}sII")
_CHECKSUM = struct.Struct("<I")
_NAME_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a group after an entry.

    Args:
        log_checksum: of that entry.
        log_start_offset: the first offset kept, at most the entry's next offset.
    """

    index: RaftIndex
    log_checksum: int
    log_start_offset: Offset
    payload: bytes


def snapshot_name(index: RaftIndex) -> str:
    """File name of the snapshot after an entry."""
    return f"{index:0{_NAME_DIGITS}d}{SUFFIX}"


def encode_snapshot(group: GroupId, snapshot: Snapshot) -> bytes:
    """The whole file."""
    header = _HEADER.pack(
        _MAGIC, snapshot.log_checksum, snapshot.index, len(snapshot.payload), snapshot.log_start_offset,
        group.topic_id, group.partition, 0,
    )  # fmt: skip
    checksum = crc32c(snapshot.payload, crc32c(header))
    return b"".join((header, snapshot.payload, _CHECKSUM.pack(checksum)))


def decode_snapshot(group: GroupId, data: bytes) -> Snapshot | None:
    """Inverse of `encode_snapshot`; None: damaged, or of another group."""
    end = len(data) - _CHECKSUM.size
    if end < _OLD_HEADER.size or crc32c(memoryview(data)[:end]) != _CHECKSUM.unpack_from(data, end)[0]:
        return None
    magic, log_checksum, index, length = _OLD_HEADER.unpack_from(data)
    if magic == _OLD_MAGIC:
        start, log_start_offset = _OLD_HEADER.size, 0
    elif magic == _MAGIC and end >= _HEADER.size:
        start = _HEADER.size
        *_, log_start_offset, topic_id, partition, _zero = _HEADER.unpack_from(data)
        if (topic_id, partition) != (group.topic_id, group.partition):
            return None
    else:
        return None
    if length != end - start:
        return None
    return Snapshot(RaftIndex(index), log_checksum, Offset(log_start_offset), data[start:end])


def snapshot_steps(fs: FileSystem, directory: str, group: GroupId, snapshot: Snapshot) -> list[Callable[[], None]]:
    """Blocking steps that write a snapshot and then remove all but the last two."""
    path = f"{directory}/{snapshot_name(snapshot.index)}"
    temporary = path + TEMPORARY_SUFFIX

    def write() -> None:
        fs.remove(temporary)
        with closing(fs.open(temporary, create=True)) as file:
            file.append(encode_snapshot(group, snapshot))
            file.sync()

    def rename() -> None:
        fs.rename(temporary, path)

    def sync_name() -> None:
        fs.sync_directory(directory)

    def remove_older() -> None:
        for old in snapshot_indexes(fs, directory)[:-KEPT]:
            fs.remove(f"{directory}/{snapshot_name(old)}")

    return [write, rename, sync_name, remove_older]


def load_snapshot(
    fs: FileSystem,
    directory: str,
    group: GroupId,
    *,
    first_index: RaftIndex,
    last_index: RaftIndex,
    checksum_at: Callable[[RaftIndex], int],
    unreadable: list[OSError],
) -> Snapshot | None:
    """The newest valid snapshot after an entry in first_index..last_index whose checksum is the log's. Blocks.

    Args:
        unreadable: the errors of those that the disk does not give, and that are passed over, are added to it.
    """
    for index in reversed(snapshot_indexes(fs, directory)):
        if not first_index <= index <= last_index:
            continue
        try:
            with closing(fs.open(f"{directory}/{snapshot_name(index)}")) as file:
                snapshot = decode_snapshot(group, file.read(0, file.size()))
        except OSError as error:
            if not is_damage(error):
                raise
            unreadable.append(error)
            continue
        if snapshot is not None and snapshot.index == index and checksum_at(index) == snapshot.log_checksum:
            return snapshot
    return None


def read_snapshot_file(fs: FileSystem, directory: str, group: GroupId, max_index: RaftIndex) -> tuple[RaftIndex, bytes]:
    """The newest sound snapshot at or below an index, as it stands in its file; (0, b""): none. Blocks."""
    for index in reversed(snapshot_indexes(fs, directory)):
        if index <= max_index:
            try:
                with closing(fs.open(f"{directory}/{snapshot_name(index)}")) as file:
                    data = file.read(0, file.size())
            except OSError as error:
                if not is_damage(error):
                    raise
                continue
            snapshot = decode_snapshot(group, data)
            if snapshot is not None and snapshot.index == index:
                return index, data
    return RaftIndex(0), b""


def damaged_snapshots(fs: FileSystem, directory: str, group: GroupId, expected: RaftIndex) -> dict[RaftIndex, str]:
    """Read all snapshots again: of those that are damaged, the index, and path and position. Blocks.

    Args:
        expected: one that must be there, too, or a newer one; 0: none.

    Raises:
        OSError: one cannot be read, for a reason that may pass.
    """
    found: dict[RaftIndex, str] = {}
    indexes = snapshot_indexes(fs, directory)
    for index in indexes:
        path = f"{directory}/{snapshot_name(index)}"
        try:
            with closing(fs.open(path)) as file:
                file.forget_all()
                data = file.read(0, file.size())
        except FileNotFoundError:
            continue  # a newer one has taken its place
        except OSError as error:
            if not is_damage(error):
                raise
            found[index] = f"{path}: position 0: {error.strerror}"
            continue
        snapshot = decode_snapshot(group, data)
        if snapshot is None or snapshot.index != index:
            found[index] = f"{path}: position 0: not the {len(data)} bytes that were written"
    if expected and max(indexes, default=0) < expected:
        found[expected] = f"{directory}/{snapshot_name(expected)} is missing"
    return found


def snapshot_indexes(fs: FileSystem, directory: str) -> list[RaftIndex]:
    """Of the snapshots in a directory, ascending, whether they are sound or not."""
    return [
        RaftIndex(int(name[:_NAME_DIGITS]))
        for name in fs.list(directory)
        if name.endswith(SUFFIX) and len(name) == _NAME_DIGITS + len(SUFFIX) and name[:_NAME_DIGITS].isdecimal()
    ]
