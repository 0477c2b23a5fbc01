"""The small files beside the segments: sync mark and checkpoint, snapshots, votes, whose directory it is."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crc32c import crc32c

_SLOT = struct.Struct("<4sIQQQQQQII")
_SLOTS_AT = (0, 512)
_SNAPSHOT = struct.Struct("<4sIQQQ16sII")
_OLD_SNAPSHOT = struct.Struct("<4sIQQ")
_VOTES_HEAD = struct.Struct("<8sII")
_VOTE = struct.Struct("<16sIIQHHI")


class UnreadableFileError(Exception):
    """The disk cannot read a file."""


def _read(path: Path) -> bytes | None:
    """A file's bytes; None: there is no such file.

    Raises:
        UnreadableFileError: the disk cannot read it.
        PermissionError: this process may not.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except OSError as error:
        raise UnreadableFileError(f"cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class State:
    """What must be there (the sync mark), and what was known to be committed (the checkpoint)."""

    generation: int
    sequence: int
    mark_segment: int
    mark_position: int
    mark_index: int
    commit_index: int
    commit_term: int


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """A snapshot's place in the log.

    Args:
        checksum: of the log's entry at the index.
    """

    path: Path
    index: int
    checksum: int
    log_start_offset: int


@dataclass(frozen=True, slots=True)
class Votes:
    """What the vote file holds.

    Args:
        groups: (topic id, partition, generation) -> (term, voted for; 0: nobody).
        torn_bytes: at the end, cut at the next start.
        why: what is wrong; empty: nothing.
    """

    groups: dict[tuple[bytes, int, int], tuple[int, int]]
    records: int
    torn_bytes: int
    why: str


def read_state(directory: Path) -> State | None:
    """The valid slot with the higher sequence; None: there is no file that can be read, or no valid slot."""
    try:
        data = _read(directory / "state")
    except UnreadableFileError:
        return None
    if data is None:
        return None
    found = []
    for at in _SLOTS_AT:
        slot = data[at : at + _SLOT.size]
        if len(slot) == _SLOT.size and crc32c(slot[:-4]) == int.from_bytes(slot[-4:], "little"):
            magic, generation, *numbers, _, _ = _SLOT.unpack(slot)
            if magic == b"FXS1":
                found.append(State(generation, *numbers))
    return max(found, key=lambda state: state.sequence, default=None)


def read_snapshots(directory: Path, topic_id: bytes, partition: int) -> list[SnapshotHead]:
    """Snapshots of this partition that are whole and can be read, the newest first."""
    found = []
    for path in sorted(directory.glob("*.snap"), reverse=True):
        try:
            data = _read(path) or b""
        except UnreadableFileError:
            continue
        if len(data) < _OLD_SNAPSHOT.size + 4 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
            continue
        if data[:4] == b"FXP1":
            _, checksum, index, _ = _OLD_SNAPSHOT.unpack_from(data)
            found.append(SnapshotHead(path, index, checksum, 0))
        elif data[:4] == b"FXP2" and len(data) >= _SNAPSHOT.size:
            _, checksum, index, _, log_start, topic, number, _ = _SNAPSHOT.unpack_from(data)
            if (topic, number) == (topic_id, partition):
                found.append(SnapshotHead(path, index, checksum, log_start))
    return found


def read_votes(path: Path) -> Votes | None:
    """None: there is no file."""
    groups: dict[tuple[bytes, int, int], tuple[int, int]] = {}
    try:
        data = _read(path)
    except UnreadableFileError as error:
        return Votes(groups, 0, 0, str(error))
    if data is None:
        return None
    head = data[: _VOTES_HEAD.size]
    if (
        len(head) < _VOTES_HEAD.size
        or head[:8] != b"FLUXVOTE"
        or crc32c(head[:12]) != int.from_bytes(head[12:], "little")
    ):
        return Votes(groups, 0, 0, "its header is damaged")
    position, records = len(head), 0
    while position + _VOTE.size <= len(data):
        record = data[position : position + _VOTE.size]
        if not _is_vote(record):
            behind = range(position + _VOTE.size, len(data) - _VOTE.size + 1, _VOTE.size)
            if any(_is_vote(data[at : at + _VOTE.size]) for at in behind):
                return Votes(groups, records, 0, f"position {position}: a damaged record with a sound one behind it")
            break
        topic_id, partition, generation, term, voted_for, _, _ = _VOTE.unpack(record)
        key = (topic_id, partition, generation)
        if term < groups.get(key, (0, 0))[0]:
            return Votes(groups, records, 0, f"position {position}: term {term} after {groups[key][0]}")
        groups[key] = (term, voted_for)
        records += 1
        position += _VOTE.size
    return Votes(groups, records, len(data) - position, "")


def _is_vote(record: bytes) -> bool:
    return crc32c(record[:-4]) == int.from_bytes(record[-4:], "little")


def read_meta(directory: Path) -> dict[str, Any] | None:
    """Content of meta.json; None: there is none, so the directory was never used.

    Raises:
        ValueError: it is damaged.
    """
    try:
        text = _read(directory / "meta.json")
    except UnreadableFileError as error:
        raise ValueError(f"meta.json {error}") from error
    if text is None:
        return None
    content = json.loads(text)
    try:
        return {**content, "node_id": int(content["node_id"])}
    except (TypeError, KeyError) as error:
        raise ValueError("meta.json is damaged") from error


def identity_checksum(topic_id: bytes, partition: int, generation: int) -> int:
    """What the first entry of a partition's log follows."""
    return crc32c(topic_id + struct.pack("<II", partition, generation))
