"""A node copies no faster than it may, however many replicas it copies."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.raft.copy_pace import CopyPace
from tests.unit.broker_fakes import Clock

_PIECE = limits.COPY_CHUNK_BYTES


def test_all_replicas_together_keep_the_pace() -> None:
    """Ten replicas that ask again as soon as they may get no more than one would."""
    clock = Clock()
    pace, now = CopyPace(clock.reactor), clock.reactor.now
    began, may_ask, copied = now(), [now()] * 10, 0
    while now() < began + 10.0:
        for number, when in enumerate(may_ask):
            if when <= now():
                copied += _PIECE
                may_ask[number] = pace.spend(number, _PIECE, missing=10_000 - copied // _PIECE)
        clock.advance(0.005)
    allowed = 10.0 * limits.COPY_BYTES_PER_SECOND
    assert 0.9 * allowed <= copied <= 1.1 * allowed


def test_the_way_of_a_piece_is_part_of_its_time() -> None:
    """One replica whose pieces take half of their time to come is as fast as it may be."""
    clock = Clock()
    pace, now = CopyPace(clock.reactor), clock.reactor.now
    began, copied, way = now(), 0, _PIECE / limits.COPY_BYTES_PER_SECOND / 2
    while now() < began + 10.0:
        clock.advance(way)
        copied += _PIECE
        clock.advance(max(0.0, pace.spend("one", _PIECE, missing=10_000 - copied // _PIECE) - now()))
    assert copied >= 0.95 * 10.0 * limits.COPY_BYTES_PER_SECOND


def test_time_that_nobody_used_is_not_made_good() -> None:
    """After an hour of rest the pace is what it always is."""
    clock = Clock()
    pace, now = CopyPace(clock.reactor), clock.reactor.now
    clock.advance(3600.0)
    pieces = 4 * limits.COPY_BYTES_PER_SECOND // _PIECE
    assert [pace.spend("one", _PIECE, missing=pieces - n) for n in range(pieces)][-1] > now() + 3.8


def _copy(clock: Clock, pace: CopyPace, missing: float, written_per_second: float, way: float = 0.0) -> float:
    """Copy pieces of one entry each while entries are written; seconds until none is missing, at most 1,000."""
    now = clock.reactor.now
    began = last = now()
    while missing > 0 and now() < began + 1_000.0:
        clock.advance(way)
        free_at = pace.spend("one", _PIECE, missing=int(missing))
        clock.advance(max(0.0, free_at - now()))
        missing += written_per_second * (now() - last) - 1
        last = now()
    pace.ended("one")
    return now() - began


def test_who_writes_faster_than_the_pace_does_not_keep_a_copy_from_its_end() -> None:
    """At four times the pace: it is raised until the copy ends, and is then what it was."""
    clock, raised = Clock(), list[int]()
    pace, pieces = CopyPace(clock.reactor, raised.append), limits.COPY_BYTES_PER_SECOND // _PIECE
    assert _copy(clock, pace, missing=20 * pieces, written_per_second=4 * pieces) < 100.0
    assert raised == [
        2 * limits.COPY_BYTES_PER_SECOND,
        4 * limits.COPY_BYTES_PER_SECOND,
        8 * limits.COPY_BYTES_PER_SECOND,
    ]
    assert 19.0 < _copy(clock, pace, missing=20 * pieces, written_per_second=0) < 21.0
    assert len(raised) == 3


def test_the_pace_stays_while_something_is_gained() -> None:
    """Slowly, for minutes; that others begin to copy meanwhile is no loss."""
    clock, raised = Clock(), list[int]()
    pace, pieces = CopyPace(clock.reactor, raised.append), limits.COPY_BYTES_PER_SECOND // _PIECE
    assert _copy(clock, pace, missing=20 * pieces, written_per_second=0.9 * pieces) > 190.0
    for number in range(40):
        pace.spend(number, _PIECE, missing=1_000 - number)
        clock.advance(limits.COPY_PATIENCE / 20)
        pace.spend("first", _PIECE, missing=1_000 - number)
    assert raised == []


def test_the_pace_is_not_raised_where_it_is_not_what_is_slow() -> None:
    """Pieces that take longer on their way than they have to wait: a higher pace would change nothing."""
    clock, raised = Clock(), list[int]()
    pace, pieces = CopyPace(clock.reactor, raised.append), limits.COPY_BYTES_PER_SECOND // _PIECE
    assert _copy(clock, pace, missing=20 * pieces, written_per_second=pieces, way=3.0 / pieces) > 999.0
    assert raised == []


def test_more_is_asked_for_at_once_where_the_way_is_what_is_slow() -> None:
    """Up to a bound; and as little as before when the copy has ended."""
    clock = Clock()
    pace, pieces = CopyPace(clock.reactor), limits.COPY_BYTES_PER_SECOND // _PIECE
    asked = {pace.piece_bytes}
    for _ in range(200):
        clock.advance(limits.COPY_PATIENCE / 10)
        pace.spend("one", _PIECE, missing=20 * pieces)
        asked.add(pace.piece_bytes)
    assert asked == {_PIECE, 2 * _PIECE, limits.COPY_CHUNK_BYTES_MAX}
    pace.ended("one")
    assert pace.piece_bytes == _PIECE


def test_who_was_overtaken_is_faster_at_once() -> None:
    """Whatever the bytes say that are missing; until no copy is under way."""
    clock, raised = Clock(), list[int]()
    pace = CopyPace(clock.reactor, raised.append)
    pace.spend("one", _PIECE, missing=1_000)
    pace.overtaken("one")
    pace.overtaken("one")
    assert raised == [2 * limits.COPY_BYTES_PER_SECOND, 4 * limits.COPY_BYTES_PER_SECOND]
    assert pace.piece_bytes == 4 * _PIECE == limits.COPY_CHUNK_BYTES_MAX
    pace.ended("one")
    began = clock.reactor.now()
    assert pace.spend("one", limits.COPY_BYTES_PER_SECOND, missing=1) > began + 0.8
    assert pace.piece_bytes == _PIECE
