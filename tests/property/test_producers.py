"""The producer table against a table without any cleverness, and as a function of the committed log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxd.core.producers import DuplicateCommitted, DuplicatePending, Fresh, Item, ProducerTable
from fluxd.core.types import Offset, RaftIndex, Term

WINDOW, PRODUCERS, EXPIRY_MS = 3, 3, 100


@pytest.fixture(autouse=True, scope="module")
def small_limits() -> Iterator[None]:
    """So that a few steps reach every bound."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "PRODUCER_WINDOW_BATCHES", WINDOW)
        patch.setattr(limits, "PRODUCERS_PER_PARTITION_MAX", PRODUCERS)
        patch.setattr(limits, "PRODUCER_EXPIRY_MS", EXPIRY_MS)
        yield


def producer(number: int) -> bytes:
    return number.to_bytes(16, "big")


# ---- the committed part is a function of the log


@dataclass(frozen=True)
class Entry:
    index: int
    time_ms: int
    items: Sequence[Item]


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Entries of several producers, some of which begin anew, with times that let some expire."""
    steps = st.tuples(
        st.integers(0, 60),
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.sampled_from([0, 0, 0, 1, 2])), max_size=3),
        st.integers(1, 2),
    )
    out: list[Entry] = []
    next_sequences = [0] * 6
    index, offset, time_ms = 1, 0, 0
    for delta_ms, batches, skipped in draw(st.lists(steps, max_size=25)):
        index += skipped  # entries of Raft's own stand between
        time_ms += delta_ms
        items: list[Item] = []
        for number, count, special in batches:
            if special == 1:
                next_sequences[number] = 0
            producer_id = b"" if special == 2 else producer(number)
            items.append((producer_id, next_sequences[number], count, Offset(offset), Term(1), None))
            next_sequences[number] += count
            offset += count
        out.append(Entry(index, time_ms, items))
    return out


def replay(table: ProducerTable, log: list[Entry]) -> ProducerTable:
    for entry in log:
        table.append(entry.index, entry.items, entry.time_ms)
        table.commit(entry.index)
    return table


def verdict(table: ProducerTable, producer_id: bytes, sequence: int, count: int) -> object:
    """The verdict, or the reason of the refusal."""
    try:
        return table.check(producer_id, sequence, count)
    except FluxError as error:
        return error.reason


def verdicts(table: ProducerTable) -> list[object]:
    return [verdict(table, producer(number), sequence, 1) for number in range(6) for sequence in range(12)]


@given(logs())
def test_replay_from_any_snapshot_gives_an_equal_table(log: list[Entry]) -> None:
    """A restart forgets and remembers exactly what a replica that never stopped does."""
    table = replay(ProducerTable(), log)
    final, judgements = table.snapshot(), verdicts(table)
    for cut in range(len(log) + 1):
        snapshot = replay(ProducerTable(), log[:cut]).snapshot()
        assert ProducerTable.restore(snapshot).snapshot() == snapshot
        restarted = replay(ProducerTable.restore(snapshot), log[cut:])
        assert restarted.snapshot() == final
        assert verdicts(restarted) == judgements


@given(logs(), st.data())
def test_what_was_truncated_leaves_no_trace(log: list[Entry], data: st.DataObject) -> None:
    """A follower that saw other entries first, commits in other steps and is told less ends with the same table."""
    table, committed = ProducerTable(), 0
    for position, entry in enumerate(log):
        for junk in data.draw(st.sampled_from([[], log[position : position + 3]])):
            table.append(junk.index, [(*item[:1], item[1] + 1, *item[2:]) for item in junk.items], junk.time_ms + 500)
        table.truncate(entry.index)
        if any(item[0] for item in entry.items) or data.draw(st.booleans()):
            table.append(entry.index, [item for item in entry.items if item[0]], entry.time_ms)
        if data.draw(st.booleans()):
            committed = entry.index
            table.commit(committed)
    if log:
        table.commit(log[-1].index)
    assert table.snapshot() == replay(ProducerTable(), log).snapshot()


@given(st.binary(max_size=200), logs(), st.data())
def test_any_bytes_are_a_snapshot_or_the_one_error(noise: bytes, log: list[Entry], data: st.DataObject) -> None:
    """Arbitrary and mutated ones."""
    mutated = bytearray(replay(ProducerTable(), log).snapshot())
    mutated[data.draw(st.integers(0, len(mutated) - 1))] ^= data.draw(st.integers(1, 255))
    for candidate in (noise, bytes(mutated)):
        with suppress(CorruptDataError):
            assert ProducerTable.restore(candidate).snapshot() == candidate


# ---- a leader's verdicts, against plain lists


@dataclass
class Sent:
    producer_id: bytes
    base_sequence: int
    count: int
    ticket: object
    index: int = 0
    offset: int = 0


@dataclass
class Model:
    """The log, the queue, and the answers that follow from looking through them."""

    table: ProducerTable = field(default_factory=ProducerTable)
    committed: list[Sent] = field(default_factory=list)
    appended: list[Sent] = field(default_factory=list)
    queued: list[Sent] = field(default_factory=list)
    index: int = 1
    voided: set[int] = field(default_factory=set)

    def expected(self, producer_id: bytes, sequence: int, count: int) -> object:
        """The verdict, or the reason of the refusal."""
        mine = [s for s in self.committed + self.appended + self.queued if s.producer_id == producer_id]
        if not mine:
            return Fresh() if sequence == 0 else Reason.UNKNOWN_PRODUCER
        end = mine[-1].base_sequence + mine[-1].count
        if sequence >= end:
            return Fresh() if sequence == end else Reason.OUT_OF_ORDER_SEQUENCE
        done = [s for s in self.committed if s.producer_id == producer_id][-WINDOW:]
        for sent in mine:
            if (sent.base_sequence, sent.count) != (sequence, count):
                continue
            if sent in done:
                return DuplicateCommitted(Offset(sent.offset), Term(1), RaftIndex(sent.index))
            if sent in self.queued:
                return DuplicatePending(sent.ticket, None, None, None)
            if sent in self.appended:
                ticket = None if sent.index in self.voided else sent.ticket
                return DuplicatePending(ticket, RaftIndex(sent.index), Offset(sent.offset), Term(1))
        remembered = done or mine
        return Reason.INVALID_ARGUMENT if sequence >= remembered[0].base_sequence else Reason.DUPLICATE_FORGOTTEN

    def send(self, number: int, sequence: int, count: int) -> None:
        producer_id = producer(number)
        judged = verdict(self.table, producer_id, sequence, count)
        assert judged == self.expected(producer_id, sequence, count)
        if isinstance(judged, Fresh):
            sent = Sent(producer_id, sequence, count, object())
            self.table.enqueue(producer_id, sequence, count, sent.ticket)
            self.queued.append(sent)

    def next_sequence(self, number: int) -> int:
        ends = [
            s.base_sequence + s.count
            for s in self.committed + self.appended + self.queued
            if s.producer_id == producer(number)
        ]
        return ends[-1] if ends else 0

    def append(self, batches: int) -> None:
        taken, self.queued = self.queued[:batches], self.queued[batches:]
        self.index += 1
        offset = sum(s.count for s in self.committed + self.appended)
        items: list[Item] = []
        for sent in taken:
            sent.index, sent.offset = self.index, offset
            items.append((sent.producer_id, sent.base_sequence, sent.count, Offset(offset), Term(1), sent.ticket))
            offset += sent.count
        self.appended += taken
        self.table.append(self.index, items, 0)

    def commit(self, entries: int) -> None:
        indexes = sorted({sent.index for sent in self.appended})[:entries]
        if indexes:
            self.table.commit(indexes[-1])
            self.committed += [sent for sent in self.appended if sent.index <= indexes[-1]]
            self.appended = [sent for sent in self.appended if sent.index > indexes[-1]]

    def lose_leadership(self, entries_kept: int) -> None:
        self.queued = []
        self.table.drop_queue()
        self.voided |= {sent.index for sent in self.appended}
        lost = sorted({sent.index for sent in self.appended})[entries_kept:]
        if lost:
            self.table.truncate(lost[0])
            self.appended = [sent for sent in self.appended if sent.index < lost[0]]
            self.index = lost[0] - 1
            self.voided -= set(lost)

    def restart(self) -> None:
        snapshot = self.table.snapshot()
        self.queued = []
        self.voided |= {sent.index for sent in self.appended}
        self.table = ProducerTable.restore(snapshot)
        for index in sorted({sent.index for sent in self.appended}):
            items: list[Item] = [
                (s.producer_id, s.base_sequence, s.count, Offset(s.offset), Term(1), None)
                for s in self.appended
                if s.index == index
            ]
            self.table.append(index, items, 0)


NUMBERS = st.integers(0, PRODUCERS - 1)
COUNTS = st.integers(1, 2)
STEPS = st.one_of(
    st.tuples(st.just("next"), NUMBERS, COUNTS),
    st.tuples(st.just("next"), NUMBERS, COUNTS),
    st.tuples(st.sampled_from(["back", "back2"]), NUMBERS, st.integers(-2, 12)),
    st.tuples(st.just("append"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("commit"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("lose"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


@given(st.lists(STEPS, max_size=60))
def test_every_verdict_is_the_plain_one(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is sent, sent again, appended, committed, truncated and restarted in between."""
    model = Model()
    actions: dict[str, Callable[[int, int], None]] = {
        "next": lambda number, count: model.send(number, model.next_sequence(number), count),
        "back": lambda number, back: model.send(number, max(0, model.next_sequence(number) - back), 1),
        "back2": lambda number, back: model.send(number, max(0, model.next_sequence(number) - back), 2),
        "append": lambda batches, _: model.append(batches),
        "commit": lambda entries, _: model.commit(entries),
        "lose": lambda kept, _: model.lose_leadership(kept),
        "restart": lambda _, __: model.restart(),
    }
    for kind, first, second in steps:
        actions[kind](first, second)
    model.append(len(model.queued))
    model.commit(1000)
    for number in range(PRODUCERS):
        written = [s for s in model.committed if s.producer_id == producer(number)]
        sequences = [s.base_sequence + i for s in written for i in range(s.count)]
        assert sequences == list(range(len(sequences))), "each record once, in order"
