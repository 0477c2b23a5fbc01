"""What must be read from disk before a replica can take part: its log, and the producer table that the log says.

Blocking, and free of the loop's state: it may run in another thread. The table is restored from its last snapshot, and
only the frames behind that are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.entry import HEADER_BYTES, read_stamp
from fluxd.core.errors import CorruptDataError
from fluxd.core.producers import ProducerTable, items_of_frame
from fluxd.core.types import Offset, RaftIndex
from fluxd.raft.spec import GroupSpec
from fluxd.storage.errors import LogCorrupt, LogMissing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.log import PartitionLog

_REPLAY_CHUNK = limits.FETCH_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Opened:
    """A replica's state as the disk has it."""

    log: PartitionLog
    producers: ProducerTable
    snapshot_index: RaftIndex
    """What the last snapshot of the producer table covers."""


def open_replica(fs: FileSystem, spec: GroupSpec, *, has_voted: bool) -> Opened | str:
    """Open a replica's log, or create it if the replica is new. Blocks.

    Args:
        has_voted: the node's votes know this replica. Every message of a replica waits until its term is
        durable, so one without a
            vote has never said anything: its log may be made anew.

    Returns:
        Or why the replica must stay out.
    """
    directory = f"partitions/{spec.group_id.directory_name}"
    log: PartitionLog | None = None
    try:
        try:
            log = PartitionLog.open(fs, directory, spec.group_id, spec.generation, segment_bytes=spec.segment_bytes)
        except LogMissing as error:
            if has_voted:
                return f"its log is missing although it has voted: {error}"
            log = PartitionLog.create(fs, directory, spec.group_id, spec.generation, segment_bytes=spec.segment_bytes)
        producers, index = _recover_producers(log)
        return Opened(log, producers, index)
    except (LogCorrupt, CorruptDataError) as error:
        why = str(error)
    except OSError as error:
        why = f"its files cannot be opened: {error}"
    if log is not None:
        log.close()
    return why


def _recover_producers(log: PartitionLog) -> tuple[ProducerTable, RaftIndex]:
    snapshot = log.load_snapshot(log.last_index)
    if snapshot is None:
        producers, covered = ProducerTable(), log.first_index
    else:
        covered, payload = snapshot
        producers = ProducerTable.restore(payload)
    offset = log.next_offset_at(covered)
    while offset < log.log_end_offset:
        plan = log.plan_read(offset, max_bytes=_REPLAY_CHUNK, end_index=log.last_index)
        offset = _replay(plan if isinstance(plan, bytes) else plan(), producers, covered, offset)
    return producers, covered


def _replay(data: bytes, producers: ProducerTable, covered: RaftIndex, offset: Offset) -> Offset:
    frames, position = memoryview(data), 0
    while len(frames) - position >= HEADER_BYTES:
        stamp = read_stamp(frames, position)
        if stamp.raft_index > covered and stamp.record_count:
            items = items_of_frame(frames[position : position + stamp.frame_bytes], stamp)
            producers.append(stamp.raft_index, items, stamp.append_time_ms)
        position += stamp.frame_bytes
        offset = max(offset, stamp.next_offset)
    return offset
