"""The simulated cluster under the checker: the same seeds, nodes and faults, judged by what clients saw alone.

Readers follow the committed log at whatever replica they meet, also in the middle of faults; in the end each replica is
read whole. What the simulation knows of the inside (`invariants.py`) is not asked.
"""

from __future__ import annotations

from fluxd.core.entry import split_batches
from fluxd.core.errors import CorruptDataError, FluxError
from fluxd.core.types import NodeId, Offset, RaftIndex
from fluxd.raft.group import Group
from fluxd.raft.proposal import AppendResult, Committed
from fluxd.raft.spec import Role
from fluxlog.checker import History, Outcome, Phase, Verdict, check
from fluxlog.v1 import record_pb2
from tests.simulation.clients import Client, Sent
from tests.simulation.node import SimNode
from tests.simulation.world import Plan, World

PARTITION = "t-0"
_ENTRIES_PER_POLL = 20


def value_name(value: bytes) -> str:
    """The part of a value that is unique: what precedes the filler."""
    return value.split(b".", 1)[0].decode()


def read_values(group: Group, offset: int, entries: int) -> list[str]:
    """Committed values of a replica from an offset on, of at most so many entries."""
    values: list[str] = []
    if offset >= group.high_watermark:
        return values
    first = group.log.index_at_offset(Offset(offset))
    skipped = offset - int(group.log.stamp_at(first).base_offset)
    for index in range(first, min(first + entries, group.commit_index + 1)):
        if not group.log.stamp_at(RaftIndex(index)).record_count:
            continue
        for data in split_batches(group.log.frame_at(RaftIndex(index))):
            batch, position = record_pb2.RecordBatch.FromString(bytes(data)), 0
            for length in batch.value_lengths:
                values.append(value_name(batch.columns[position : position + length]))
                position += length
    return values[skipped:]


class RecordingClient(Client):
    """A client that enters each batch when it first sends it, and what it hears of it in the end."""

    recorder: RecordedWorld

    def _attempt(self, sent: Sent) -> None:
        if sent.attempts == 0:
            self.recorder.began(self._name, sent)
        super()._attempt(sent)

    def _answer(self, sent: Sent, number: int, result: AppendResult, by: NodeId | None = None) -> None:
        super()._answer(sent, number, result, by)
        if sent.over and number == sent.attempts:
            self.recorder.heard(sent, result, by)

    def _timeout(self, sent: Sent, number: int) -> None:
        super()._timeout(sent, number)
        if sent.over and number == sent.attempts:
            self.recorder.heard(sent, None, None)


class RecordedWorld(World):
    """A run that writes its history.

    Args:
        seed: decides everything; the run is another one than `World` makes of it, since readers draw from it too.
    """

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.recorded = History()
        self.verdict: Verdict | None = None
        self._rows: dict[int, int] = {}
        self._positions: dict[str, int] = {}
        self._questions = 0
        super().__init__(seed, plan)
        self.recorded.declare_unordered("once")
        for reader in ("r0", "r1"):
            self._positions[reader] = 0
            self.recorded.assign(reader, {PARTITION: 0}, 0.0)
        self.recorded.phase(Phase.FAULTS, 0.0)

    def _client(self, name: str, *, idempotent: bool) -> Client:
        client = RecordingClient(
            name, self.nodes, self.simulator, self.rng, self.history, self.counts, idempotent=idempotent
        )
        client.recorder = self
        return client

    # ------------------------------------------------------------------ writers
    def began(self, process: str, sent: Sent) -> None:
        """A batch leaves for the first time."""
        values = [value_name(value) for value in sent.values]
        self._rows[id(sent)] = self.recorded.send(
            process, PARTITION, values, self.simulator.now, expected_offset=sent.expected_offset
        )

    def heard(self, sent: Sent, result: AppendResult | None, by: NodeId | None) -> None:
        """A client is done with a batch. One answer per batch: what comes later is not heard any more."""
        row = self._rows.pop(id(sent), None)
        if row is None:
            return
        if isinstance(result, Committed):
            # a duplicate is recognised by whoever leads now, not by the leader of the epoch
            node = None if result.duplicate or by is None else int(by)
            self.recorded.sent(
                row, self.simulator.now, Outcome.OK, offset=int(result.base_offset),
                leader_epoch=int(result.leader_epoch), node=node,
            )  # fmt: skip
        else:
            outcome = Outcome.UNKNOWN if sent.may_be_written else Outcome.FAIL
            self.recorded.sent(row, self.simulator.now, outcome)

    # ------------------------------------------------------------------ readers
    def _read(self) -> None:
        super()._read()
        node = self.rng.choice(list(self.nodes.values()))
        if node.group is not None and node.group.role is not Role.FAILED:
            self._poll(self.rng.choice(("r0", "r1")), node.group)
            self._ask(node, node.group)

    def _poll(self, reader: str, group: Group) -> None:
        offset, now = self._positions[reader], self.simulator.now
        if offset < group.log_start_offset:  # retention was faster
            offset = self._positions[reader] = int(group.log_start_offset)
            self.recorded.assign(reader, {PARTITION: offset}, now)
        try:
            values = read_values(group, offset, _ENTRIES_PER_POLL)
        except (OSError, CorruptDataError) as error:
            group.read_failed(error)
            return
        self._positions[reader] = offset + len(values)
        self.recorded.poll_runs(reader, now, now, [(PARTITION, offset, values)])

    def _ask(self, node: SimNode, group: Group) -> None:
        """For the latest offset. Questions overlap, so each is a client of its own."""
        self._questions += 1
        process, asked, incarnation = f"q{self._questions}", self.simulator.now, node.incarnation

        def done(error: FluxError | None) -> None:
            if error is None and node.alive and node.incarnation == incarnation:
                self.recorded.watermark(
                    process, PARTITION, int(group.high_watermark), asked, self.simulator.now, latest=True,
                    log_start_offset=int(group.log_start_offset),
                )  # fmt: skip

        group.read_index(done)

    # ------------------------------------------------------------------ the end
    def _heal_everything(self) -> None:
        self.recorded.phase(Phase.HEAL, self.simulator.now)
        super()._heal_everything()

    def _reckon(self) -> None:
        super()._reckon()
        now = self.simulator.now
        self.recorded.phase(Phase.FINAL_READ, now)
        for node in self.nodes.values():
            group = node.group
            if group is None:
                continue
            self.recorded.watermark(
                f"end{int(node.node_id)}", PARTITION, int(group.high_watermark), now, now, latest=True,
                log_start_offset=int(group.log_start_offset),
            )  # fmt: skip
            reader = f"final{int(node.node_id)}"
            self.recorded.assign(reader, {PARTITION: int(group.log_start_offset)}, now)
            self._positions[reader] = int(group.log_start_offset)
            while self._positions[reader] < group.high_watermark:
                self._poll(reader, group)
            self.recorded.replica(
                PARTITION, int(node.node_id), int(group.high_watermark), int(group.log.last.checksum), now
            )
        self.verdict = check(self.recorded)
