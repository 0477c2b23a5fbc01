"""Order in a partition against order in time."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from fluxlog.checker.columns import NOTHING
from fluxlog.checker.evidence import Finding, SendRef, WatermarkRef
from fluxlog.checker.history import Outcome
from fluxlog.checker.index import Index


def nonmonotonic_send(index: Index) -> Iterator[Finding]:
    """A later send of one process was acknowledged at a lower offset.

    Where sends overlap, this holds for a writer that numbers them; others are declared unordered and left to
    `real_time_order`. Unknown outcomes are left out: a client may give up on a request that is still on its way.
    """
    sends = index.history.sends
    latest: dict[tuple[int, int], int] = {}
    for row, (process, partition, offset) in enumerate(zip(sends.process, sends.partition, sends.offset, strict=True)):
        if offset == NOTHING or process in index.history.unordered:
            continue
        before = latest.get((process, partition))
        if before is not None and offset < sends.offset[before]:
            yield Finding(
                f"{index.at(partition, offset)}: sent by {index.process_names[process]} after what is at "
                f"{sends.offset[before]}",
                (SendRef(before), SendRef(row)),
            )
        else:
            latest[process, partition] = row


def real_time_order(index: Index) -> Iterator[Finding]:
    """A send began after one at a higher offset had been acknowledged.

    Offsets are walked downwards with the earliest acknowledgement of the higher ones.
    """
    sends = index.history.sends
    for rows in index.by_offset:
        earliest, above = math.inf, NOTHING
        for row in reversed(rows):
            if sends.invoked[row] > earliest + index.clock_error:
                yield Finding(
                    f"{index.at(sends.partition[row], index.offset_of_send[row])}: sent "
                    f"{sends.invoked[row] - earliest:.3g} s after {sends.offset[above]} was acknowledged",
                    (SendRef(above), SendRef(row)),
                )
            if sends.outcome[row] == Outcome.OK and sends.completed[row] < earliest:
                earliest, above = sends.completed[row], row


def stale_latest(index: Index) -> Iterator[Finding]:
    """A question for the latest offset missed what was acknowledged before it was asked."""
    observed, sends = index.history.observations, index.history.sends
    questions = defaultdict(list)
    for row, (partition, latest) in enumerate(zip(observed.partition, observed.latest, strict=True)):
        if latest:
            questions[partition].append(row)
    for partition, asked in questions.items():
        acknowledged = sorted(index.acknowledged[partition], key=sends.completed.__getitem__)
        times = [sends.completed[row] for row in acknowledged]
        highest: list[int] = []
        for row in acknowledged:
            highest.append(row if not highest or sends.offset[row] > sends.offset[highest[-1]] else highest[-1])
        for row in asked:
            before = bisect_left(times, observed.invoked[row] - index.clock_error)
            if before and sends.offset[highest[before - 1]] >= observed.high_watermark[row]:
                send = highest[before - 1]
                yield Finding(
                    f"{index.at(partition, observed.high_watermark[row])}: said to be the end after "
                    f"{sends.offset[send]} was acknowledged",
                    (SendRef(send), WatermarkRef(row)),
                )
