"""The files of a new log: a segment with its first entry, then the state file, which makes it a log.

Power lost before the state file's name is durable: there is no log yet, and creation begins again.
"""

from __future__ import annotations

from fluxd.core.entry import read_stamp
from fluxd.core.errors import InvariantViolation
from fluxd.storage.checkpoint import STATE_NAME, Checkpoint, Mark, State, StateFile
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.index import SegmentIndex
from fluxd.storage.recovery import Recovered
from fluxd.storage.segment import Segment, segment_name


def prepare_directory(fs: FileSystem, directory: str) -> None:
    """An empty directory, its name durable; what is left of a creation that was cut off goes. Blocks.

    Raises:
        InvariantViolation: a log is there; nothing was written.
    """
    found = StateFile.open(fs, f"{directory}/{STATE_NAME}")
    if found is not None:
        found.close()
        raise InvariantViolation(f"{directory}: a log is there; it is not replaced by a new one")
    fs.remove_tree(directory)
    fs.make_directory(directory)
    parent = directory
    while parent:
        parent = parent.rpartition("/")[0]
        fs.sync_directory(parent)


def create_files(fs: FileSystem, directory: str, generation: int, frame: bytes) -> Recovered:
    """A log of one entry, in a directory that is there; durable when this returns. Blocks."""
    stamp = read_stamp(frame)
    path = f"{directory}/{segment_name(stamp.raft_index)}"
    segment = Segment(path, stamp, 0, index=SegmentIndex(), file=fs.open(path, create=True, rests=True))
    assert segment.file is not None
    files: list[Segment | StateFile] = [segment]
    try:
        segment.append(frame, stamp)
        segment.file.sync()
        fs.sync_directory(directory)
        mark = Mark(segment.first_index, segment.size, stamp.raft_index)
        checkpoint = Checkpoint(stamp.raft_index, stamp.leader_epoch, generation)
        state = StateFile.create(fs, f"{directory}/{STATE_NAME}", State(mark, checkpoint))
        files.append(state)
        fs.sync_directory(directory)
    except OSError:
        for file in files:
            file.close()
        raise
    return Recovered([segment], stamp, state)
