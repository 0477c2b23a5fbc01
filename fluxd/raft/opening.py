"""What must be read from disk before a replica can take part: its log, and the state that the log says.

Blocking, and free of the loop's state: it may run in another thread. The state (producer table, log start) is restored
from its last snapshot, and only the frames behind that are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxd.core.entry import EntryKind, read_trim
from fluxd.core.errors import CorruptDataError
from fluxd.core.log_start import LogStart
from fluxd.core.producers import ProducerTable, items_of_frame
from fluxd.core.types import RaftIndex
from fluxd.raft.spec import GroupSpec
from fluxd.storage import copies
from fluxd.storage.errors import LogCorrupt, LogMissing
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.log import PartitionLog
from fluxd.storage.sync import Synced


@dataclass(frozen=True, slots=True)
class Opened:
    """A replica's state as the disk has it."""

    log: PartitionLog
    producers: ProducerTable
    log_start: LogStart
    snapshot_index: RaftIndex
    """What the last snapshot covers."""
    copy_begun: bool = False
    """There is something of a copy beside the log."""


class Damaged(str):
    """Why a replica must be copied anew. A reason that is a plain str may pass: what is on the disk is left alone."""


def open_replica(fs: FileSystem, spec: GroupSpec, *, has_voted: bool, after: Synced | None = None) -> Opened | str:
    """Open a replica's log, or create it if the replica is new. Blocks.

    Args:
        has_voted: the node's votes know this replica. Every message of a replica waits until its term is recorded
            durably, also a term that it knows from its log (`RaftJournal`), so one without a vote has never said
            anything: its log may be made anew.
        after: how far this process had the log synced when a file of it had an error.

    Returns:
        Or why the replica must stay out.
    """
    directory = f"partitions/{spec.group_id.directory_name}"
    log: PartitionLog | None = None
    why: str
    try:
        copies.finish_replacing(fs, spec.group_id)
        if copies.is_being_copied(fs, spec.group_id):
            return Damaged("its copy is not finished")
        try:
            log = PartitionLog.open(
                fs, directory, spec.group_id, spec.generation, segment_bytes=spec.segment_bytes, after=after
            )
        except LogMissing as error:
            if has_voted:
                return Damaged(f"its log is missing although it has voted: {error}")
            log = PartitionLog.create(fs, directory, spec.group_id, spec.generation, segment_bytes=spec.segment_bytes)
        return Opened(log, *_replay(log), copies.is_beside(fs, spec.group_id))
    except (LogCorrupt, CorruptDataError) as error:
        why = Damaged(error)
    except OSError as error:
        why = f"its files cannot be opened: {error}"
    if log is not None:
        log.close()
    return why


def _replay(log: PartitionLog) -> tuple[ProducerTable, LogStart, RaftIndex]:
    """What the last snapshot and the entries behind it say."""
    snapshot = log.load_snapshot()
    if snapshot is None:
        producers, log_start, covered = ProducerTable(), LogStart(), log.first_index
    else:
        producers, covered = ProducerTable.restore(snapshot.payload), snapshot.index
        log_start = LogStart(snapshot.log_start_offset)
    if covered < log.last_index:
        for stamp, frame in log.walk(RaftIndex(covered + 1)):
            if stamp.record_count:
                producers.append(stamp.raft_index, items_of_frame(frame, stamp), stamp.append_time_ms)
            elif stamp.kind is EntryKind.TRIM:
                log_start.append(stamp.raft_index, read_trim(frame))
    return producers, log_start, covered
