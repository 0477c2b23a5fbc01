"""Snapshots of a group's state beside its log: `{index:020d}.snap`.

    position  bytes  content (little-endian)
    0         4      "FXP1"
    4         4      checksum of the log's entry at the index: the chain makes it stand for all entries up to there
    8         8      index: the state after this entry
    16        8      payload's length
    24        …      payload
    24+n      4      CRC-32C of everything before

Written under a temporary name, synced, renamed; the name is synced before older ones are removed. So at every moment
the last snapshot that was finished, or its predecessor, is there. A snapshot whose checksum is not the log's belongs
to entries that are no more and is not loaded. It only saves replaying: losing all of them loses nothing while the log
is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing

from crc32c import crc32c

from fluxd.core.types import RaftIndex
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.recovery import TEMPORARY_SUFFIX

SUFFIX = ".snap"
KEPT = 2
_MAGIC = b"FXP1"
_HEADER = struct.Struct("<4sIQQ")
_CHECKSUM = struct.Struct("<I")
_NAME_DIGITS = 20


def snapshot_steps(
    fs: FileSystem, directory: str, index: RaftIndex, log_checksum: int, payload: bytes
) -> list[Callable[[], None]]:
    """Blocking steps that write a snapshot and then remove all but the last two."""
    path = f"{directory}/{index:0{_NAME_DIGITS}d}{SUFFIX}"
    temporary = path + TEMPORARY_SUFFIX
    header = _HEADER.pack(_MAGIC, log_checksum, index, len(payload))

    def write() -> None:
        fs.remove(temporary)
        with closing(fs.open(temporary, create=True)) as file:
            file.append(header, payload, _CHECKSUM.pack(crc32c(payload, crc32c(header))))
            file.sync()

    def rename() -> None:
        fs.rename(temporary, path)

    def sync_name() -> None:
        fs.sync_directory(directory)

    def remove_older() -> None:
        for old in _snapshots(fs, directory)[:-KEPT]:
            fs.remove(f"{directory}/{old}")

    return [write, rename, sync_name, remove_older]


def load_snapshot(
    fs: FileSystem, directory: str, max_index: RaftIndex, checksum_at: Callable[[RaftIndex], int]
) -> tuple[RaftIndex, bytes] | None:
    """The newest valid snapshot at or below an index whose checksum is the log's: (index, payload). Blocks."""
    for name in reversed(_snapshots(fs, directory)):
        index = RaftIndex(int(name.removesuffix(SUFFIX)))
        if not 1 <= index <= max_index:
            continue
        with closing(fs.open(f"{directory}/{name}")) as file:
            data = file.read(0, file.size())
        payload = _parse(data, index, checksum_at)
        if payload is not None:
            return index, payload
    return None


def _parse(data: bytes, index: RaftIndex, checksum_at: Callable[[RaftIndex], int]) -> bytes | None:
    if len(data) < _HEADER.size + _CHECKSUM.size:
        return None
    magic, log_checksum, stored_index, length = _HEADER.unpack_from(data)
    end = len(data) - _CHECKSUM.size
    if magic != _MAGIC or stored_index != index or length != end - _HEADER.size:
        return None
    if crc32c(memoryview(data)[:end]) != _CHECKSUM.unpack_from(data, end)[0] or checksum_at(index) != log_checksum:
        return None
    return data[_HEADER.size : end]


def _snapshots(fs: FileSystem, directory: str) -> list[str]:
    return [
        name
        for name in fs.list(directory)
        if name.endswith(SUFFIX) and len(name) == _NAME_DIGITS + len(SUFFIX) and name[:_NAME_DIGITS].isdecimal()
    ]
