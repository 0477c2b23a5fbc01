"""Damage to the files of a replica: bits that flip, and ends that are gone.

Left out is what cannot be told from a torn tail, since that loses a promise by design (docs/storage-format.md): damage
behind the sync mark of a log (the last group commit), and at the end of the vote file.
"""

from __future__ import annotations

import random

from fluxd.storage.checkpoint import STATE_NAME, Mark, StateFile
from fluxd.storage.segment import parse_segment_name
from fluxd.storage.votes import HEADER_BYTES, RECORD_BYTES
from tests.simulation.disk import SimDisk

EXCLUDED = "excluded"


def damage_replica(disk: SimDisk, directory: str, rng: random.Random) -> str:
    """Damage one file of a replica whose process is down; returns what kind of file, EXCLUDED, or "": there is none."""
    mark = mark_of(disk, directory)
    if mark is None:
        return ""
    kinds = [[name for name in disk.names(directory) if name.endswith(end)] for end in (".seg", ".snap", STATE_NAME)]
    name = rng.choice(rng.choice([names for names in kinds if names]))
    path = f"{directory}/{name}"
    size = len(disk.current_bytes(path))
    first_index = parse_segment_name(name)
    position = rng.randrange(size) if size else 0
    if first_index is not None and (first_index, position) >= (mark.segment, mark.position):
        return EXCLUDED
    if not size:
        return EXCLUDED
    if rng.random() < 0.3:
        disk.cut_off(path, position)
    else:
        disk.flip_bit(path, position, rng.randrange(8))
    return name.rpartition(".")[2]


def _closed_segments(disk: SimDisk, directory: str) -> list[str]:
    """Those that a running process does not write any more."""
    mark = mark_of(disk, directory)
    segments = [name for name in disk.names(directory) if name.endswith(".seg")][:-1]
    return [name for name in segments if mark is not None and (parse_segment_name(name) or 0) < mark.segment]


def damage_closed_segment(disk: SimDisk, directory: str, rng: random.Random) -> str:
    """A bit flips under a running process; "": there is no such segment."""
    segments = _closed_segments(disk, directory)
    if not segments:
        return ""
    path = f"{directory}/{rng.choice(segments)}"
    disk.flip_bit(path, rng.randrange(len(disk.current_bytes(path))), rng.randrange(8))
    return "seg"


def damage_running_replica(disk: SimDisk, directory: str, rng: random.Random) -> str:
    """A bit flips under a running process: in a closed segment, or in what stands beside the log; "": there is none."""
    names = disk.names(directory)
    if STATE_NAME not in names:
        return ""
    closed = _closed_segments(disk, directory)
    kinds = [closed, [name for name in names if name.endswith(".snap")], [STATE_NAME]]
    name = rng.choice(rng.choice([names for names in kinds if names]))
    path = f"{directory}/{name}"
    size = len(disk.current_bytes(path))
    if not size:
        return EXCLUDED
    disk.flip_bit(path, rng.randrange(size), rng.randrange(8))
    return f"running_{name.rpartition('.')[2]}"


def damage_votes(disk: SimDisk, path: str, rng: random.Random) -> str:
    """Damage the vote file of a node that is down: not its last record."""
    size = len(disk.current_bytes(path))
    if rng.random() < 0.3:
        disk.cut_off(path, rng.randrange(HEADER_BYTES))
        return "votes"
    end = max(HEADER_BYTES, size - RECORD_BYTES - (size - HEADER_BYTES) % RECORD_BYTES)
    position = rng.randrange(size)
    if position >= end:
        return EXCLUDED
    disk.flip_bit(path, position, rng.randrange(8))
    return "votes"


def mark_of(disk: SimDisk, directory: str) -> Mark | None:
    """The sync mark as the next process would read it."""
    path = f"{directory}/{STATE_NAME}"
    if STATE_NAME not in disk.names(directory):
        return None
    copy = SimDisk(random.Random(0))
    copy.set_bytes(STATE_NAME, disk.current_bytes(path))
    opened = StateFile.open(copy, STATE_NAME)
    return opened.state.mark if opened is not None and opened.state is not None else None
