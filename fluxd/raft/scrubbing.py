"""The background scrub: reads the closed segments of this node's replicas again, to find what the disk has lost while a
majority of the others still has it.

One piece at a time, in the thread pool, at a bounded rate in bytes and in time: small entries cost more than their
bytes. Replicas in turn, from the beginning of the log. The segment that is being written is left out: its end was
written lately, and is read by everybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from fluxd.core import limits
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId
from fluxd.raft.group import Group
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.spec import Role
from fluxd.storage.scrub import Piece, Verified

_FIRST_AFTER = 60.0
"""The first pass begins so long after the start at the latest."""
_PASSED_OVER_PER_TURN = 500
"""Replicas without anything to read that are looked at in one turn of the loop."""


class Scrubber:
    """Of one node.

    Args:
        groups: the host's table, read live.
        interval_s: a pass begins so long after the one before began, or when that has ended; 0: never.
        bytes_per_second: at most.
    """

    def __init__(
        self,
        reactor: Reactor,
        groups: Mapping[GroupId, Group | OfflineGroup],
        log_event: Callable[..., None],
        *,
        interval_s: float,
        bytes_per_second: int,
    ) -> None:
        self._reactor, self._groups, self._log_event = reactor, groups, log_event
        self._interval_s, self._bytes_per_second = interval_s, bytes_per_second
        self._timer: Timer | None = None
        self._stopped = False
        self._began_at = 0.0
        self._left: deque[GroupId] = deque()
        self._at = Verified()
        """In the log of the first of `_left`."""
        self._bytes = 0

    def start(self) -> None:
        """Begin."""
        if self._interval_s:
            self._arm(min(self._interval_s, _FIRST_AFTER), self._begin_pass)

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._timer = self._reactor.call_at(self._reactor.now() + seconds, action)

    def _begin_pass(self) -> None:
        self._began_at, self._bytes = self._reactor.now(), 0
        self._left, self._at = deque(self._groups), Verified()
        self._go_on()

    def _go_on(self) -> None:
        for _ in range(_PASSED_OVER_PER_TURN):
            if not self._left:
                self._end_pass()
                return
            group = self._groups.get(self._left[0])
            if isinstance(group, Group) and group.role is not Role.FAILED:
                piece = group.log.scrub.next_piece(
                    self._at, end_index=group.commit_index, max_bytes=limits.SCRUB_PIECE_BYTES, closed_only=True
                )
                if piece is not None:
                    self._read(group, piece)
                    return
            self._next_group()
        self._arm(0.0, self._go_on)

    def _next_group(self) -> None:
        self._left.popleft()
        self._at = Verified()

    def _end_pass(self) -> None:
        now = self._reactor.now()
        self._log_event("scrub_finished", bytes=self._bytes, seconds=round(now - self._began_at, 1))
        self._arm(max(0.0, self._began_at + self._interval_s - now), self._begin_pass)

    def _read(self, group: Group, piece: Piece) -> None:
        found: list[Verified] = []
        began_at = self._reactor.now()

        def done(error: BaseException | None) -> None:
            if self._stopped:
                return
            size = limits.SCRUB_PIECE_BYTES
            if error is None:
                self._at, size = found[0], found[0].size
                self._bytes += size
            elif not group.log.scrub.is_gone(piece):
                group.read_failed(error)
                self._next_group()
            busy_s = self._reactor.now() - began_at
            self._arm(max(size / self._bytes_per_second, busy_s * limits.SCRUB_REST_FACTOR), self._go_on)

        self._reactor.run_blocking([lambda: found.append(piece.read())], done)
