"""The cluster behind the log: watermarks, epochs, leaders, replicas."""

from __future__ import annotations

from collections.abc import Iterator

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Finding, ReplicaRef, SendRef, WatermarkRef
from fluxlog.checker.index import Index


def watermark_back(index: Index) -> Iterator[Finding]:
    """A client saw a lower high watermark than before; a client that crashed may start lower."""
    observed = index.history.observations
    latest: dict[tuple[int, int, int], int] = {}
    keys = zip(observed.process, observed.partition, observed.incarnation, strict=True)
    for row, (key, high_watermark) in enumerate(zip(keys, observed.high_watermark, strict=True)):
        before = latest.get(key)
        if before is not None and high_watermark < observed.high_watermark[before]:
            yield Finding(
                f"{index.at(key[1], high_watermark)}: high watermark of {index.process_names[key[0]]} was "
                f"{observed.high_watermark[before]} before",
                (WatermarkRef(before), WatermarkRef(row)),
            )
        else:
            latest[key] = row


def epoch_back(index: Index) -> Iterator[Finding]:
    """A record was appended in a lower epoch than one below it."""
    sends = index.history.sends
    for partition, rows in enumerate(index.acknowledged):
        before = NOTHING
        for row in rows:
            epoch = sends.leader_epoch[row]
            if epoch == NOTHING:
                continue
            if before != NOTHING and epoch < sends.leader_epoch[before]:
                yield Finding(
                    f"{index.at(partition, sends.offset[row])}: epoch {epoch}, but {sends.leader_epoch[before]} at "
                    f"{sends.offset[before]}",
                    (SendRef(before), SendRef(row)),
                )
            else:
                before = row


def two_leaders(index: Index) -> Iterator[Finding]:
    """Two nodes acknowledged in one epoch of a partition."""
    sends = index.history.sends
    leaders: dict[tuple[int, int], int] = {}
    columns = zip(sends.partition, sends.leader_epoch, sends.node, strict=True)
    for row, (partition, epoch, node) in enumerate(columns):
        if NOTHING in (epoch, node) or sends.offset[row] == NOTHING:
            continue
        first = leaders.setdefault((partition, epoch), row)
        if sends.node[first] != node:
            yield Finding(
                f"{index.partition_names[partition]}: nodes {sends.node[first]} and {node} both acknowledged in epoch "
                f"{epoch}",
                (SendRef(first), SendRef(row)),
            )


def replicas_differ(index: Index) -> Iterator[Finding]:
    """Two replicas end in different places or with different bytes. Only the newest end of each replica counts."""
    ends = index.history.replica_ends
    newest: dict[tuple[int, int], int] = {}
    for row, end in enumerate(ends):
        before = newest.get((end.partition, end.node))
        if before is None or end.time >= ends[before].time:
            newest[end.partition, end.node] = row
    firsts: dict[int, int] = {}
    for (partition, node), row in newest.items():
        first = firsts.setdefault(partition, row)
        one, other = ends[first], ends[row]
        if (one.high_watermark, one.checksum) != (other.high_watermark, other.checksum):
            yield Finding(
                f"{index.partition_names[partition]}: node {one.node} ends at {one.high_watermark} with checksum "
                f"{one.checksum:#x}, node {node} at {other.high_watermark} with {other.checksum:#x}",
                (ReplicaRef(first), ReplicaRef(row)),
            )
