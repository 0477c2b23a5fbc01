"""Clients of the simulated group: they send, lose answers, time out, retry with producer ids, and remember
everything.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from fluxd.core.errors import CorruptDataError, FluxError, Outcome, Reason
from fluxd.core.types import NodeId, Offset
from fluxd.raft.proposal import Append, AppendResult, Committed
from fluxlog.v1 import record_pb2
from tests.simulation.clock import Simulator
from tests.simulation.invariants import Violation
from tests.simulation.node import SimNode

_TIMEOUT = 3.0
_RETRY_AFTER = 0.05


def encode(values: list[bytes], producer_id: bytes = b"", base_sequence: int = 0) -> bytes:
    """A RecordBatch of values."""
    return record_pb2.RecordBatch(
        record_count=len(values), producer_id=producer_id, base_sequence=base_sequence,
        value_lengths=[len(value) for value in values], columns=b"".join(values),
    ).SerializeToString()  # fmt: skip


@dataclass(slots=True)
class Sent:
    """One batch of one client, over all its attempts."""

    number: int
    """Among its client's batches."""
    values: list[bytes]
    data: bytes
    producer_id: bytes
    base_sequence: int
    expected_offset: Offset | None = None
    attempts: int = 0
    may_be_written: bool = False
    """Some attempt was not answered REJECTED."""
    offset: int | None = None
    retry: bool = False
    """The answer to the last attempt was a failure that can be retried."""
    over: bool = False


@dataclass(slots=True)
class Attempt:
    """One submit to one process."""

    node: SimNode
    incarnation: int
    answers: int = 0


@dataclass
class History:
    """What all clients saw."""

    batches: list[Sent] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    acknowledged: dict[int, Sent] = field(default_factory=dict)
    """base offset -> batch"""
    end_offset: int = 0
    """Highest acknowledged offset, exclusive."""
    indexes: list[int] = field(default_factory=list)
    """Raft indexes of acknowledged entries."""


class Client:
    """Sends batches, several in flight, in order, each until it is committed or surely not.

    Args:
        idempotent: with a producer id, retried; otherwise each batch is sent once.
    """

    def __init__(
        self,
        name: str,
        nodes: dict[NodeId, SimNode],
        simulator: Simulator,
        rng: random.Random,
        history: History,
        counts: Counter[str],
        *,
        idempotent: bool,
    ) -> None:
        self._name, self._nodes, self._simulator, self._rng = name, nodes, simulator, rng
        self._history, self._counts, self._idempotent = history, counts, idempotent
        self._producer_id = rng.randbytes(16) if idempotent else b""
        self._sequence = self._number = self._batches = 0
        self._window = rng.choice((1, 1, 3, 8))
        self._outstanding: list[Sent] = []
        self._target: NodeId | None = None
        self._resend_pending = False
        self._acknowledged = False
        self.stopped = False

    @property
    def idle(self) -> bool:
        """Nothing is outstanding."""
        return not self._outstanding

    def send(self) -> None:
        """Send one more batch, if the window allows it."""
        # the window counts from the oldest batch without an answer: what is remembered is bounded in the same way
        oldest = self._outstanding[0].number if self._outstanding else self._batches
        if self.stopped or self._batches - oldest >= self._window:
            return
        count = self._rng.choice((1, 1, 2, 5))
        filler = b"." * self._rng.choice((0, 10, 200, 3000))
        values = [b"%s-%d" % (self._name.encode(), self._number + k) + filler for k in range(count)]
        self._number += count
        data = encode(values, self._producer_id, self._sequence)
        sent = Sent(self._batches, values, data, self._producer_id, self._sequence)
        self._batches += 1
        if self._idempotent:
            self._sequence += count
        elif self._rng.random() < 0.3:
            sent.expected_offset = self._guess_end()
        self._history.batches.append(sent)
        self._outstanding.append(sent)
        self._attempt(sent)

    def _guess_end(self) -> Offset | None:
        groups = [node.group for node in self._nodes.values() if node.group is not None]
        return self._rng.choice(groups).log_end_offset if groups else None

    # ------------------------------------------------------------------ one attempt
    def _attempt(self, sent: Sent) -> None:
        node = self._nodes[self._target] if self._target else self._rng.choice(list(self._nodes.values()))
        sent.attempts += 1
        sent.retry = False
        number = sent.attempts
        delay = 0.0005 + 0.002 * self._rng.random()
        self._simulator.at(self._simulator.now + delay, lambda: self._arrive(sent, node, number))
        self._simulator.at(self._simulator.now + _TIMEOUT, lambda: self._timeout(sent, number))

    def _arrive(self, sent: Sent, node: SimNode, number: int) -> None:
        replica = node.replica
        if replica is None or node.reactor is None or self._simulator.now < node.reactor.paused_until:
            sent.may_be_written = sent.may_be_written or replica is not None
            self._answer(sent, number, FluxError(Reason.NO_LEADER, "connection refused"))
            return
        attempt = Attempt(node, node.incarnation)
        self._history.attempts.append(attempt)
        self._counts["proposals"] += 1

        def done(result: AppendResult) -> None:
            attempt.answers += 1
            if attempt.answers > 1:
                raise Violation(f"a proposal of {self._name} was answered twice")
            self._decided(sent, node, result)
            if self._rng.random() < 0.03:
                self._counts["answers_lost"] += 1
                return
            self._simulator.at(self._simulator.now + 0.001, lambda: self._answer(sent, number, result, node.node_id))

        replica.submit(
            Append(sent.data, len(sent.values), done, sent.producer_id, sent.base_sequence, sent.expected_offset)
        )

    def _decided(self, sent: Sent, node: SimNode, result: AppendResult) -> None:
        """What the server says is binding, whether the client hears it or not."""
        if isinstance(result, FluxError):
            self._counts["answer_disk_full"] += result.reason is Reason.DISK_FULL
            self._counts[f"answer_{result.traits.outcome.name.lower()}"] += 1
            if result.traits.outcome is not Outcome.REJECTED:
                sent.may_be_written = True
            return
        self._counts["answer_committed"] += 1
        self._counts["duplicates_recognised"] += result.duplicate
        sent.may_be_written = True
        self._acknowledge(sent, node, result)

    def _acknowledge(self, sent: Sent, node: SimNode, result: Committed) -> None:
        if sent.offset is not None and sent.offset != result.base_offset:
            raise Violation(f"{sent.values[0]!r} was acknowledged at {sent.offset} and at {result.base_offset}")
        if sent.expected_offset is not None and result.base_offset != sent.expected_offset:
            raise Violation(f"expected offset {sent.expected_offset}, got {result.base_offset}")
        if result.copies_on_disk < len(self._nodes) // 2 + 1:
            raise Violation(f"acknowledged with {result.copies_on_disk} copies on disk")
        other = self._history.acknowledged.setdefault(result.base_offset, sent)
        if other is not sent:
            raise Violation(
                f"{other.values[0]!r} and {sent.values[0]!r} were both acknowledged at {result.base_offset}"
            )
        sent.offset = result.base_offset
        self._history.end_offset = max(self._history.end_offset, result.base_offset + len(sent.values))
        group = node.group
        assert group is not None
        if result.base_offset < group.log_start_offset:
            return  # a duplicate of what is trimmed by now
        with node.disk.calm(), suppress(CorruptDataError):  # only to look it up
            self._history.indexes.append(group.log.index_at_offset(result.base_offset))

    # ------------------------------------------------------------------ what the client hears
    def _answer(self, sent: Sent, number: int, result: AppendResult, by: NodeId | None = None) -> None:
        if sent.over or number != sent.attempts:
            return
        if isinstance(result, Committed):
            self._target = by
            self._acknowledged = True
            self._finish(sent)
            return
        leader = result.metadata.get("leader_node")
        self._target = NodeId(int(leader)) if leader else None
        if not self._idempotent:
            self._finish(sent)
            return
        # a later batch may overtake the first one; once something was acknowledged the producer must be known
        forgotten = result.reason is Reason.UNKNOWN_PRODUCER and self._acknowledged
        if forgotten or result.reason is Reason.DUPLICATE_FORGOTTEN:
            raise Violation(f"{self._name}: {result}")
        sent.retry = True
        self._resend_soon()

    def _timeout(self, sent: Sent, number: int) -> None:
        if sent.over or number != sent.attempts:
            return
        self._counts["client_timeouts"] += 1
        self._target = None
        sent.may_be_written = True
        if not self._idempotent:
            self._finish(sent)
        else:
            sent.retry = True
            self._resend_soon()

    def _finish(self, sent: Sent) -> None:
        sent.over = True
        self._outstanding.remove(sent)

    def _resend_soon(self) -> None:
        if not self._resend_pending:
            self._resend_pending = True
            self._simulator.at(self._simulator.now + _RETRY_AFTER * (0.5 + self._rng.random()), self._resend)

    def _resend(self) -> None:
        """In order of sequence; what is still under way stays under way."""
        self._resend_pending = False
        for sent in list(self._outstanding):
            if sent.retry:
                self._counts["retries"] += 1
                self._attempt(sent)
