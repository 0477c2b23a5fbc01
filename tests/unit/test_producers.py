"""The producer table: a resend gets the first copy's answer or waits for it; what is not certain is refused."""

from __future__ import annotations

import pytest

from fluxd.core import limits
from fluxd.core.batch import batch_from_records
from fluxd.core.committed_producers import SNAPSHOT_BYTES_MAX
from fluxd.core.entry import EntryKind, build_frame, verify_frame
from fluxd.core.errors import CorruptDataError, FluxError, InvariantViolation, Outcome, Reason
from fluxd.core.producers import DuplicateCommitted, DuplicatePending, Fresh, Item, ProducerTable, items_of_frame
from fluxd.core.types import Offset, RaftIndex, Term
from fluxlog.v1 import record_pb2

P, Q = bytes(16), bytes(15) + b"\x01"
EPOCH = Term(5)


def item(producer_id: bytes, base_sequence: int, count: int, offset: int, ticket: object = None) -> Item:
    return producer_id, base_sequence, count, Offset(offset), EPOCH, ticket


def done(table: ProducerTable, index: int, *items: Item, time_ms: int = 0) -> None:
    """One entry, appended and committed."""
    table.append(index, items, time_ms)
    table.commit(index)


def refused(table: ProducerTable, *batch: object) -> FluxError:
    with pytest.raises(FluxError) as caught:
        table.check(*batch)  # type: ignore[arg-type]
    return caught.value


def test_batches_without_a_producer_are_always_fresh() -> None:
    """They leave no trace."""
    table = ProducerTable()
    empty = table.snapshot()
    table.enqueue(b"", 0, 3, object())
    done(table, 2, item(b"", 0, 3, 0))
    assert table.check(b"", 0, 3) == Fresh()
    assert table.snapshot() == empty


def test_the_life_of_a_batch() -> None:
    """Fresh, pending in the queue, pending in the log, committed."""
    table, ticket = ProducerTable(), object()
    assert isinstance(table.check(P, 0, 3), Fresh)
    table.enqueue(P, 0, 3, ticket)
    assert table.check(P, 0, 3) == DuplicatePending(ticket, None, None, None)
    table.append(7, [item(P, 0, 3, 40, ticket)], 0)
    assert table.check(P, 0, 3) == DuplicatePending(ticket, RaftIndex(7), Offset(40), EPOCH)
    table.commit(6)
    assert isinstance(table.check(P, 0, 3), DuplicatePending)
    table.commit(7)
    assert table.check(P, 0, 3) == DuplicateCommitted(Offset(40), EPOCH, RaftIndex(7))


def test_many_batches_on_their_way() -> None:
    """A leader judges by what will be, so that a producer need not wait for one batch before it sends the next."""
    table = ProducerTable()
    for sequence in range(0, 50, 5):
        assert isinstance(table.check(P, sequence, 5), Fresh)
        table.enqueue(P, sequence, 5, sequence)
    table.append(2, [item(P, 0, 5, 0, 0), item(P, 5, 5, 5, 5)], 0)
    assert isinstance(table.check(P, 50, 1), Fresh)
    assert isinstance(table.check(P, 45, 5), DuplicatePending)
    assert refused(table, P, 51, 1).metadata == {"expected_sequence": "50"}


def test_gaps() -> None:
    """Never appended: a known producer learns what is expected, an unknown one that it is not known."""
    table = ProducerTable()
    assert refused(table, P, 1, 1).reason is Reason.UNKNOWN_PRODUCER
    done(table, 2, item(P, 0, 3, 0))
    error = refused(table, P, 4, 1)
    assert (error.reason, error.metadata) == (Reason.OUT_OF_ORDER_SEQUENCE, {"expected_sequence": "3"})
    assert refused(table, Q, 3, 1).reason is Reason.UNKNOWN_PRODUCER


@pytest.mark.parametrize("state", ["queued", "appended", "committed"])
@pytest.mark.parametrize(("sequence", "count"), [(3, 4), (3, 2), (4, 2), (0, 6)])
def test_a_resend_in_other_bounds(state: str, sequence: int, count: int) -> None:
    """A resend must be the same batch; anything else is a mistake of the client."""
    table = ProducerTable()
    done(table, 2, item(P, 0, 3, 0))
    if state == "queued":
        table.enqueue(P, 3, 3, "ticket")
    else:
        table.append(3, [item(P, 3, 3, 3)], 0)
    if state == "committed":
        table.commit(3)
    assert refused(table, P, sequence, count).reason is Reason.INVALID_ARGUMENT


def test_more_in_flight_than_the_window() -> None:
    """An older resend is not taken for new: its outcome is unknown, and it is not written again."""
    table = ProducerTable()
    for sequence in range(limits.PRODUCER_WINDOW_BATCHES + 1):
        done(table, 2 + sequence, item(P, sequence, 1, sequence))
    error = refused(table, P, 0, 1)
    assert (error.reason, error.traits.outcome) == (Reason.DUPLICATE_FORGOTTEN, Outcome.UNKNOWN)
    assert isinstance(table.check(P, 1, 1), DuplicateCommitted)
    assert isinstance(table.check(P, limits.PRODUCER_WINDOW_BATCHES + 1, 1), Fresh)


def test_everything_pending_is_remembered_however_much() -> None:
    """The window bounds the committed part only."""
    table = ProducerTable()
    for sequence in range(3 * limits.PRODUCER_WINDOW_BATCHES):
        table.enqueue(P, sequence, 1, sequence)
    assert table.check(P, 0, 1) == DuplicatePending(0, None, None, None)


def test_a_truncated_entry_is_not_a_duplicate() -> None:
    """A deposed leader that answered from it would confirm what is gone."""
    table = ProducerTable()
    done(table, 2, item(P, 0, 1, 0))
    table.append(3, [item(P, 1, 1, 1), item(Q, 0, 1, 2)], 0)
    table.append(4, [item(P, 2, 1, 3)], 0)
    table.truncate(4)
    assert isinstance(table.check(P, 2, 1), Fresh)
    assert isinstance(table.check(P, 1, 1), DuplicatePending)
    table.truncate(3)
    assert isinstance(table.check(P, 1, 1), Fresh)
    assert isinstance(table.check(Q, 0, 1), Fresh)
    table.append(3, [item(P, 1, 1, 1)], 0)
    table.commit(3)
    assert table.check(P, 1, 1) == DuplicateCommitted(Offset(1), EPOCH, RaftIndex(3))


def test_the_queue_goes_with_the_leadership() -> None:
    """Queued batches were rejected; tickets of appended ones were answered, so a later retry must wait for the log."""
    table = ProducerTable()
    table.enqueue(P, 0, 1, "first")
    table.enqueue(P, 1, 1, "second")
    table.enqueue(Q, 0, 1, "third")
    table.append(2, [item(P, 0, 1, 0, "first")], 0)
    table.drop_queue()
    assert table.check(P, 0, 1) == DuplicatePending(None, RaftIndex(2), Offset(0), EPOCH)
    assert isinstance(table.check(P, 1, 1), Fresh)
    assert isinstance(table.check(Q, 0, 1), Fresh)


def test_another_leaders_entry_does_not_take_over_a_ticket() -> None:
    """Only the entry that carries the ticket is the queued batch."""
    table = ProducerTable()
    table.enqueue(P, 0, 1, "mine")
    table.append(2, [item(P, 0, 2, 0)], 0)
    assert table.check(P, 0, 2) == DuplicatePending(None, RaftIndex(2), Offset(0), EPOCH)
    table.drop_queue()
    table.commit(2)
    assert isinstance(table.check(P, 0, 2), DuplicateCommitted)


def test_entries_come_in_order() -> None:
    """Otherwise the log and this table are not about the same."""
    table = ProducerTable()
    table.append(3, [item(P, 0, 1, 0)], 0)
    with pytest.raises(InvariantViolation):
        table.append(3, [item(P, 1, 1, 1)], 0)


def test_the_oldest_producer_is_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest by its last append in the log."""
    monkeypatch.setattr(limits, "PRODUCERS_PER_PARTITION_MAX", 2)
    table, third = ProducerTable(), bytes(15) + b"\x02"
    done(table, 2, item(P, 0, 1, 0))
    done(table, 3, item(Q, 0, 1, 1))
    done(table, 4, item(P, 1, 1, 2))
    done(table, 5, item(third, 0, 1, 3))
    assert refused(table, Q, 1, 1).reason is Reason.UNKNOWN_PRODUCER
    assert isinstance(table.check(Q, 0, 1), Fresh)
    assert isinstance(table.check(P, 1, 1), DuplicateCommitted)
    assert isinstance(table.check(third, 0, 1), DuplicateCommitted)


def test_producers_expire_by_append_time() -> None:
    """Exactly at the bound a producer is still known."""
    table = ProducerTable()
    done(table, 2, item(P, 0, 1, 0), time_ms=1000)
    done(table, 3, item(Q, 0, 1, 1), time_ms=1000 + limits.PRODUCER_EXPIRY_MS)
    assert isinstance(table.check(P, 0, 1), DuplicateCommitted)
    done(table, 4, item(Q, 1, 1, 2), time_ms=1001 + limits.PRODUCER_EXPIRY_MS)
    assert refused(table, P, 1, 1).reason is Reason.UNKNOWN_PRODUCER


def test_a_batch_accepted_before_its_producer_was_forgotten() -> None:
    """It is in the log, so it counts: the producer is known from there on, and nothing before is written twice."""
    table = ProducerTable()
    done(table, 2, item(P, 0, 1, 0), time_ms=0)
    table.append(3, [item(P, 1, 1, 1)], limits.PRODUCER_EXPIRY_MS + 1)
    table.commit(3)
    assert isinstance(table.check(P, 1, 1), DuplicateCommitted)
    assert refused(table, P, 0, 1).reason is Reason.DUPLICATE_FORGOTTEN


def test_a_full_snapshot_keeps_its_bound() -> None:
    """And comes back as it was."""
    table = ProducerTable()
    index = 1
    for batch in range(limits.PRODUCER_WINDOW_BATCHES + 1):
        for number in range(limits.PRODUCERS_PER_PARTITION_MAX // 32):
            index += 1
            done(table, index, item(number.to_bytes(16, "big"), batch, 1, index))
    data = table.snapshot()
    assert len(data) <= SNAPSHOT_BYTES_MAX < 5 * limits.MIB
    assert ProducerTable.restore(data).snapshot() == data


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 20, -1])
def test_bad_snapshots(cut: int) -> None:
    """One error."""
    table = ProducerTable()
    done(table, 2, item(P, 0, 1, 0), item(Q, 0, 1, 0))
    data = table.snapshot()
    for bad in (data[:cut], data + b"x", b"\x02" + data[1:], b"\x01\xff\xff\xff\xff", data[:1] + b"\x01" + data[2:]):
        with pytest.raises(CorruptDataError):
            ProducerTable.restore(bad)


def batch(producer_id: bytes, base_sequence: int, count: int) -> bytes:
    return batch_from_records([record_pb2.Record(value=b"x")] * count, producer_id, base_sequence, 1)


def test_the_items_of_an_entry() -> None:
    """As a follower or a restart reads them; offsets count batches without a producer too."""
    batches = [batch(P, 4, 3), batch(b"", 0, 2), batch(Q, 0, 1)]
    for record_count in (6, 7):
        frame = build_frame(
            kind=EntryKind.RECORDS, base_offset=100, raft_index=9, leader_epoch=5, append_time_ms=3,
            record_count=record_count, previous_checksum=0, batches=batches,
        )  # fmt: skip
        stamp = verify_frame(frame)
        if record_count == 6:
            assert items_of_frame(frame, stamp) == [item(P, 4, 3, 100), item(Q, 0, 1, 105)]
        else:
            with pytest.raises(CorruptDataError, match="6 records, its stamp says 7"):
                items_of_frame(frame, stamp)
