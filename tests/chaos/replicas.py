"""What the nodes' files say after the run: the same log, up to the same checksum."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from fluxd.core.entry import Stamp
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import GroupId
from fluxd.storage.directory import PARTITIONS
from fluxd.storage.frames import walk_frames
from fluxd.storage.real import RealFileSystem
from fluxd.storage.segment import parse_segment_name, segment_name
from fluxlog.checker.jsonl import Writer


def read_log(fs: RealFileSystem, directory: str) -> dict[int, Stamp]:
    """The headers of a stopped replica's log by Raft index; every checksum is verified.

    Raises:
        CorruptDataError: a frame is not sound.
    """
    firsts = sorted(first for name in fs.list(directory) if (first := parse_segment_name(name)) is not None)
    stamps: dict[int, Stamp] = {}
    for first in firsts:
        file = fs.open(f"{directory}/{segment_name(first)}")
        stamps |= {stamp.raft_index: stamp for _, stamp, _ in walk_frames(file, 0, file.size())}
        file.close()
    return stamps


def compare(
    data: Mapping[int, Path], topic: str, topic_id: bytes, ends: Mapping[int, int], history: Writer
) -> list[str]:
    """Enter the replicas' ends into a history, at the last entry that all of them have.

    Args:
        data: stopped nodes' directories, by node id.
        ends: what each replica must hold at least, exclusive offsets by partition.

    Returns:
        Replicas that hold less, or are damaged.
    """
    short = []
    for partition, end in ends.items():
        directory = f"{PARTITIONS}/{GroupId(topic_id, partition).directory_name}"
        logs: dict[int, dict[int, Stamp]] = {}
        for node, root in data.items():
            try:
                logs[node] = read_log(RealFileSystem(root), directory)
            except CorruptDataError as error:
                short.append(f"node {node}: {topic}-{partition}: {error}")
                logs[node] = {}
        common = min(max(log, default=0) for log in logs.values())
        for node, log in logs.items():
            stamp = log.get(common)
            if stamp is None or stamp.next_offset < end:
                reached = max((stamp.next_offset for stamp in log.values()), default=0)
                short.append(f"node {node}: {topic}-{partition} ends at {reached} in its files, not at {end}")
            if stamp is not None:
                history.replica(f"{topic}-{partition}", node, stamp.next_offset, stamp.checksum, time.monotonic())
    return short
