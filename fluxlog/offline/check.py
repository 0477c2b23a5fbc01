"""Whether what a stopped node has on its disk is sound: all of it, by the rules by which the node opens it.

Where the node reads headers only, all bytes are read here. Below the sync mark everything must be there. Behind it bad
bytes are a torn tail, which the node cuts, unless something sound stands behind them. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fluxlog.offline.frames import (
    Entry,
    NoEntryError,
    SegmentBytes,
    UnreadableError,
    breach,
    entry_at,
    find_sound,
    opened,
    segments,
)
from fluxlog.offline.metadata_state import METADATA_TOPIC_ID, MetadataState, MetadataStates, chunks_in
from fluxlog.offline.state import (
    SnapshotHead,
    State,
    Votes,
    identity_checksum,
    read_meta,
    read_snapshots,
    read_state,
    read_votes,
)
from fluxlog.v1 import record_pb2

PARTITIONS = "partitions"
_GENERATION_TERM_BITS = 32


class Condition(StrEnum):
    """Of one partition's files."""

    SOUND = "sound"
    TORN = "torn tail"
    """Bytes at the end that no finished sync covers are cut at the next start: they were never acknowledged."""
    DAMAGED = "damaged"
    """The replica must be copied anew, from the others."""
    MISSING = "missing"
    """There is no log: its creation did not finish."""
    COPYING = "being copied"
    """It is no replica yet; the copy goes on at the next start."""


@dataclass(slots=True)
class PartitionCheck:
    """What was found of one partition. Counts are of what is sound.

    Args:
        name: of its directory: topic id, partition.
        why: in words, with file and position, when it is not sound.
        end_offset: behind the last record (exclusive).
        torn_bytes: to be cut.
        commit_index: known to be committed, at least; None: not known.
        state: of the metadata, the last whole one in their log.
    """

    name: str
    condition: Condition = Condition.SOUND
    why: str = ""
    files: int = 0
    entries: int = 0
    records: int = 0
    size: int = 0
    first_index: int = 0
    last_index: int = 0
    first_offset: int = 0
    end_offset: int = 0
    torn_bytes: int = 0
    synced_index: int = 0
    commit_index: int | None = None
    state: MetadataState | None = None


@dataclass(slots=True)
class DirectoryCheck:
    """What was found in a data directory.

    Args:
        why: what is wrong with the directory itself.
    """

    node_id: int = 0
    cluster_id: str = ""
    why: str = ""
    votes: Votes | None = None
    partitions: list[PartitionCheck] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """The node will start, and all its replicas can take part as they are."""
        ill = (Condition.DAMAGED,)
        votes_ill = self.votes is None or bool(self.votes.why)
        return not self.why and not votes_ill and all(one.condition not in ill for one in self.partitions)


def parse_name(name: str) -> tuple[bytes, int] | None:
    """Topic id and partition of a partition's directory; None: not the name of one."""
    topic, _, number = name.rpartition("-")
    try:
        topic_id = bytes.fromhex(topic)
    except ValueError:
        return None
    return (topic_id, int(number)) if len(topic_id) == 16 and number.isdecimal() else None


def check_directory(root: Path, on_partition: Callable[[PartitionCheck], None] = lambda _: None) -> DirectoryCheck:
    """Check a node's data directory.

    Args:
        on_partition: called after each.
    """
    out = DirectoryCheck(votes=read_votes(root / "votes"))
    try:
        meta = read_meta(root)
    except ValueError as error:
        meta, out.why = None, str(error)
    if meta is None:
        out.why = out.why or "there is no meta.json: not the data directory of a node, or never used"
    else:
        out.node_id, out.cluster_id = meta["node_id"], str(meta.get("cluster_id", ""))
    voted = {(topic_id, partition) for topic_id, partition, _ in out.votes.groups} if out.votes else set()
    for path in sorted((root / PARTITIONS).glob("*")):
        identity = parse_name(path.name)
        if identity is None or not path.is_dir():
            continue
        found = check_partition(path)
        if found.condition is Condition.MISSING and identity in voted:
            found.condition, found.why = Condition.DAMAGED, f"its log is missing although it has voted: {found.why}"
        out.partitions.append(found)
        on_partition(found)
    return out


def check_partition(directory: Path) -> PartitionCheck:
    """Check one partition's directory.

    Raises:
        ValueError: its name is not that of one.
    """
    identity = parse_name(directory.name)
    if identity is None:
        raise ValueError(f"{directory.name} is not the directory of a partition: <topic id>-<number>")
    return _Check(directory, *identity).run()


class _Damage(Exception):
    pass


class _Check:
    def __init__(self, directory: Path, topic_id: bytes, partition: int) -> None:
        self._directory, self._topic_id, self._partition = directory, topic_id, partition
        self._out = PartitionCheck(directory.name)
        self._previous: Entry | None = None
        self._snapshots = read_snapshots(directory, topic_id, partition)
        self._tied: SnapshotHead | None = None
        self._states = MetadataStates()

    def run(self) -> PartitionCheck:
        out, state = self._out, read_state(self._directory)
        found = segments(self._directory)
        if (self._directory / "copying").exists():
            out.condition, out.why = Condition.COPYING, "its copy is not finished"
            return out
        try:
            if state is None:
                self._without_state(found)
            else:
                out.synced_index, out.commit_index = state.mark_index, state.commit_index
                self._walk(found, state)
                self._check_head()
        except _Damage as damage:
            out.condition, out.why = Condition.DAMAGED, str(damage)
        return out

    def _without_state(self, found: list[tuple[int, Path]]) -> None:
        if found and (found[0][0] != 1 or len(found) > 1 or found[0][1].stat().st_size > 60):
            raise _Damage("state: missing or unreadable, but a log is there")
        self._out.condition, self._out.why = Condition.MISSING, "its creation did not finish"

    # ---- entries

    def _walk(self, found: list[tuple[int, Path]], state: State) -> None:
        found = self._without_trimmed(found)
        if state.mark_segment not in [first_index for first_index, _ in found]:
            raise _Damage(
                f"{state.mark_segment:020d}.seg: missing; it was synced up to position {state.mark_position}, "
                f"index {state.mark_index}"
            )
        for number, (first_index, path) in enumerate(found):
            if first_index > state.mark_segment and first_index != self._out.last_index + 1:
                self._torn(sum(path.stat().st_size for _, path in found[number:]), f"{path.name}: does not follow")
                return
            size = path.stat().st_size
            must = size if first_index < state.mark_segment else 0
            if first_index == state.mark_segment:
                must = state.mark_position
                if size < must:
                    raise _Damage(f"{path.name}: {size} bytes, but it was synced up to {must}")
            with opened(path) as data:
                torn_at = self._segment(path.name, data, first_index, must)
            if first_index == state.mark_segment:
                self._check_mark(path.name, state)
            if torn_at is not None:
                rest = sum(path.stat().st_size for _, path in found[number + 1 :])
                self._torn(size - torn_at + rest, f"{path.name}: position {torn_at}")
                return

    def _without_trimmed(self, found: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
        """Without what a trim had let go of and power brought back: the node removes it at the next start."""
        if not self._snapshots:
            return found
        snapshot = self._snapshots[0]
        for number in range(len(found) - 1, 0, -1):
            first_index, path = found[number]
            if first_index > snapshot.index:
                continue
            with opened(path) as data:
                try:
                    entry = entry_at(data, 0)
                except NoEntryError:
                    return found
                if entry.is_sound and entry.stamp.base_offset < snapshot.log_start_offset:
                    return found[number:]
        return found

    def _torn(self, size: int, why: str) -> None:
        self._out.condition, self._out.torn_bytes = Condition.TORN, size
        self._out.why = f"{why}: {size} bytes behind the last sync are cut at the next start"

    def _segment(self, name: str, data: SegmentBytes, first_index: int, must: int) -> int | None:
        """Take entries over; returns where a torn tail begins, None without one."""
        position = 0
        while position < len(data):
            try:
                entry = entry_at(data, position)
                why = "" if entry.is_sound else f"checksum of entry {entry.stamp.raft_index} does not match its bytes"
            except UnreadableError as error:  # a torn tail can be read
                raise _Damage(f"{name}: {error}") from error
            except NoEntryError as error:
                entry, why = None, str(error).partition(": ")[2]
            if entry is not None and not why:
                self._take(name, entry, first_index)
                for chunk in chunks_in(data, entry) if self._topic_id == METADATA_TOPIC_ID else ():
                    self._states.take(chunk)
                position = entry.end
                continue
            if position < must:
                raise _Damage(f"{name}: position {position}: {why}; it was synced up to {must}")
            behind = find_sound(data, position + 1)
            if behind is not None and self._could_stand(behind):
                raise _Damage(
                    f"{name}: position {position}: {why}; not a torn tail: entry {behind.stamp.raft_index} stands "
                    f"behind it at {behind.position}"
                )
            return position
        self._out.files += 1
        return None

    def _could_stand(self, entry: Entry) -> bool:
        last = self._previous
        return last is None or (
            entry.stamp.raft_index > last.stamp.raft_index
            and entry.stamp.leader_epoch >= last.stamp.leader_epoch
            and entry.stamp.base_offset >= last.next_offset
            and entry.stamp.append_time_ms >= last.stamp.append_time_ms
        )

    def _take(self, name: str, entry: Entry, first_index: int) -> None:
        out, stamp = self._out, entry.stamp
        if entry.position == 0 and stamp.raft_index != first_index:
            raise _Damage(f"{name}: begins with entry {stamp.raft_index}")
        if self._previous is not None:
            why = breach(self._previous, entry)
            if why:
                raise _Damage(f"{name}: position {entry.position}: {why}")
        else:
            out.first_index, out.first_offset = stamp.raft_index, stamp.base_offset
            self._check_birth(name, entry)
        self._previous = entry
        out.entries += 1
        out.records += stamp.record_count
        out.size += entry.size
        out.last_index, out.end_offset = stamp.raft_index, entry.next_offset
        for snapshot in self._snapshots:
            if (snapshot.index, snapshot.checksum) == (stamp.raft_index, stamp.checksum):
                self._tied = snapshot

    # ---- where it begins, what must be there

    def _check_birth(self, name: str, entry: Entry) -> None:
        stamp = entry.stamp
        generation = stamp.leader_epoch >> _GENERATION_TERM_BITS
        expected = identity_checksum(self._topic_id, self._partition, generation)
        if stamp.raft_index == 1 and (stamp.kind != record_pb2.ENTRY_KIND_BIRTH or stamp.previous_checksum != expected):
            raise _Damage(f"{name}: position 0: entry 1 is not the birth entry of this partition")

    def _check_mark(self, name: str, state: State) -> None:
        if self._out.last_index < state.mark_index:
            raise _Damage(f"{name}: position {state.mark_position} is not behind entry {state.mark_index}")

    def _check_head(self) -> None:
        out = self._out
        if out.first_index > 1 and (self._tied is None or self._tied.log_start_offset < out.first_offset):
            raise _Damage(f"the log begins with entry {out.first_index}, and no snapshot says why")
        out.state = self._states.last
        if self._topic_id == METADATA_TOPIC_ID and out.first_offset > (out.state.applied_offset if out.state else 0):
            raise _Damage(f"the log begins at offset {out.first_offset}, and no state in it says what was before")
