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
                may_ask[number] = pace.spend(_PIECE)
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
        clock.advance(max(0.0, pace.spend(_PIECE) - now()))
    assert copied >= 0.95 * 10.0 * limits.COPY_BYTES_PER_SECOND


def test_time_that_nobody_used_is_not_made_good() -> None:
    """After an hour of rest the pace is what it always is."""
    clock = Clock()
    pace, now = CopyPace(clock.reactor), clock.reactor.now
    clock.advance(3600.0)
    pieces = 4 * limits.COPY_BYTES_PER_SECOND // _PIECE
    assert [pace.spend(_PIECE) for _ in range(pieces)][-1] > now() + 3.8
