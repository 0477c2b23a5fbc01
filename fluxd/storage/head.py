"""The head of a log: where it may begin, and what of it may go.

A log begins with the birth entry until its head is trimmed; from then on a snapshot vouches for where it begins: it is
of this group, after an entry that the log still has (the chain of checksums ties it to this log), and its log start is
at or behind the first offset that the log has. Whole closed segments go when the one behind begins below the log start
and at or before the snapshot's entry. (Below, not at: entries without records behind the last record that goes stay, so
that a follower which has the records, but not yet the entries behind them, need not copy the log anew.)

Crash windows of a trim. Steps: snapshot written, synced, its name synced; sync mark written with a sync (an older
durable one might name a segment that goes); segments removed, the oldest first; directory synced.

* Power lost before the snapshot's name is durable: nothing was removed; the log begins where it began.
* Before all removals are durable: any of the segments may be there again. The snapshot says that none of them is
  needed; those that stand before the first one needed are removed at open, with or without a hole between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxd.core.entry import HEADER_BYTES, Stamp, birth_frame
from fluxd.core.limits import GENERATION_TERM_BITS
from fluxd.core.types import GroupId, Offset, RaftIndex
from fluxd.storage.errors import LogCorrupt
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.segment import Segment
from fluxd.storage.segments import Segments
from fluxd.storage.snapshot import Snapshot, load_snapshot


def removable(segments: Sequence[Segment], log_start_offset: Offset, snapshot_index: RaftIndex) -> int:
    """How many segments at the head are not needed; never the last one.

    Args:
        log_start_offset: as the snapshot has it.
        snapshot_index: the log keeps the entry that the snapshot is tied to.
    """
    count = 0
    for following in segments[1:]:
        if following.base_offset >= log_start_offset or following.first_index > snapshot_index:
            break
        count += 1
    return count


def find_snapshot(
    fs: FileSystem, directory: str, group: GroupId, segments: Segments, last_index: RaftIndex
) -> Snapshot | None:
    """The newest snapshot that is tied to the log and can be read. Blocks.

    Raises:
        CorruptDataError: the segment that has its entry is damaged.
        OSError: one that cannot be read may be what vouches for the log's head. That may pass, and is no damage yet.
    """
    first, unreadable = segments.all[0], list[OSError]()
    snapshot = load_snapshot(
        fs, directory, group, first_index=first.first_index, last_index=last_index,
        checksum_at=lambda index: segments.entry(index)[0].checksum, unreadable=unreadable,
    )  # fmt: skip
    segments.forget_window()  # for the sake of one checksum
    if unreadable and not vouches(snapshot, first.first):
        raise unreadable[0]
    return snapshot


def vouches(snapshot: Snapshot | None, first: Stamp) -> bool:
    """A snapshot says why a log begins with an entry; none is needed where that is the first one of all."""
    return first.raft_index == 1 or (snapshot is not None and snapshot.log_start_offset >= first.base_offset)


def check_head(fs: FileSystem, group: GroupId, first: Segment, snapshot: Snapshot | None) -> None:
    """The log begins with the birth entry of this group, or a snapshot vouches for where it begins.

    Raises:
        LogCorrupt: neither.
    """
    if first.first_index == 1:
        file = fs.open(first.path)
        found = file.read(0, HEADER_BYTES)
        file.close()
        if found != birth_frame(group, first.first.leader_epoch >> GENERATION_TERM_BITS):
            raise LogCorrupt(f"{first.path}: position 0: entry 1 is not the birth entry of {group}")
    elif not vouches(snapshot, first.first):
        known = "no snapshot says why" if snapshot is None else f"the log start is {snapshot.log_start_offset}"
        raise LogCorrupt(
            f"{first.path}: the log begins with entry {first.first_index}, offset {first.base_offset}, but {known}"
        )
