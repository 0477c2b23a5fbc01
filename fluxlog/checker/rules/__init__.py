"""What may never be seen in a history: one function per rule, grouped by what they look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from fluxlog.checker.evidence import Finding
from fluxlog.checker.index import Index
from fluxlog.checker.rules import cluster, conditional, final_read, log, order, readers, writes


class Rule(NamedTuple):
    """A promise, and the function that finds where it was broken."""

    name: str
    promise: str
    find: Callable[[Index], Iterator[Finding]]


RULES = (
    Rule("inconsistent_offset", "an offset carries one value", log.inconsistent_offset),
    Rule("duplicate", "a value is at one offset", log.duplicate),
    Rule("unexpected_value", "what is read was sent, to this partition", log.unexpected_value),
    Rule("hole", "offsets are dense: a reader passes over none that exists nowhere", log.hole),
    Rule("lost_write", "what was acknowledged is read, if anything at or above it is", writes.lost_write),
    Rule("unseen", "what was acknowledged is read in the end", writes.unseen),
    Rule("aborted_read", "what was rejected is never read", writes.aborted_read),
    Rule("acknowledged_value", "the acknowledged offset holds the value that was sent", writes.acknowledged_value),
    Rule("poll_skip", "a reader skips no record", readers.poll_skip),
    Rule("nonmonotonic_poll", "a reader never goes back", readers.nonmonotonic_poll),
    Rule("nonmonotonic_send", "a writer's records keep the order in which they were sent", order.nonmonotonic_send),
    Rule("real_time_order", "what was sent after an acknowledgement lies above it", order.real_time_order),
    Rule("stale_latest", "the latest offset covers all that was acknowledged before the question", order.stale_latest),
    Rule("watermark_back", "a client's high watermark never goes back", cluster.watermark_back),
    Rule("epoch_back", "leader epochs never go back along a partition", cluster.epoch_back),
    Rule("two_leaders", "one node acknowledges in an epoch of a partition", cluster.two_leaders),
    Rule("replicas_differ", "in the end all replicas are equal", cluster.replicas_differ),
    Rule("two_winners", "of appends that expect the same offset one wins at most", conditional.two_winners),
    Rule("wrong_expected_offset", "an append that expects an offset is there or nowhere", conditional.wrong_offset),
    Rule("short_final_read", "in the end every reader reads all that anybody saw", final_read.short_final_read),
)
