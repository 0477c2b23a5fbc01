"""The background scrub: reads again what this node has on its disk, to find what is lost while it can be repaired.

First the files of the node (votes, meta.json), then of each replica the files beside its log (state, snapshots) and the
closed segments, from the beginning of the log. The segment that is being written is left out: its end was written
lately, and is read by everybody. Small files are written anew from what the process knows; a log that is damaged is
copied from the others (`leaving.py`).

One piece at a time, in the thread pool, at a bounded rate in bytes and in time: small entries cost more than their
bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fluxd.core import limits
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId
from fluxd.raft.group import Group
from fluxd.raft.housekeeping import Housekeeping
from fluxd.raft.offline import OfflineGroup
from fluxd.raft.spec import Role
from fluxd.storage.beside import Faults
from fluxd.storage.errors import is_damage
from fluxd.storage.log import PartitionLog
from fluxd.storage.scrub import Piece, Verified

_FIRST_AFTER = 60.0
"""The first pass begins so long after the start at the latest."""
_PASSED_OVER_PER_TURN = 500
"""Replicas without anything to read that are looked at in one turn of the loop."""
_MENDED_AGAIN_AFTER = 60.0
"""A file of the node that could not be written anew is tried again so much later."""
_SMALL_FILE_BYTES = 64 * limits.KIB
"""What the files beside a log, or one of the node's, count for."""


class NodeFile(Protocol):
    """A file of the node of which the process knows what it says."""

    @property
    def why(self) -> str:
        """What is wrong with it, for people, until it is written anew; empty: nothing is known."""

    def begin_check(self) -> Callable[[], str] | None:
        """For another thread: read it again; "", or path, position and what is wrong; raises OSError. None: not
        now."""

    def mend(self, fault: str) -> Sequence[Callable[[], None]]:
        """The last check has found this: have the file written anew; blocking steps, if that takes any."""


class Scrubbed(Protocol):
    """What the scrub needs of a `Host`."""

    housekeeping: Housekeeping
    files: list[NodeFile]

    @property
    def groups(self) -> Mapping[GroupId, Group | OfflineGroup]:
        """All replicas."""


class Scrubber:
    """Of one node.

    Args:
        host: its replicas and files, read live.
        interval_s: a pass begins so long after the one before began, or when that has ended; 0: never.
        bytes_per_second: at most.
    """

    def __init__(
        self,
        reactor: Reactor,
        host: Scrubbed,
        log_event: Callable[..., None],
        *,
        interval_s: float,
        bytes_per_second: int,
    ) -> None:
        self._reactor, self._host, self._log_event = reactor, host, log_event
        self._interval_s, self._bytes_per_second = interval_s, bytes_per_second
        self._timer: Timer | None = None
        self._stopped = False
        self._began_at = 0.0
        self._files: deque[NodeFile] = deque()
        self._mend_timers: dict[NodeFile, Timer] = {}
        self._left: deque[GroupId] = deque()
        self._at: Verified | None = None
        """In the log of the first of `_left`; None: what is beside it comes first."""
        self._log: PartitionLog | None = None
        """The one that `_at` is in. Another one, opened again meanwhile, is begun anew."""
        self._bytes = 0

    def start(self) -> None:
        """Begin."""
        if self._interval_s:
            self._arm(min(self._interval_s, _FIRST_AFTER), self._begin_pass)

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        for timer in filter(None, (self._timer, *self._mend_timers.values())):
            timer.cancel()

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._timer = self._reactor.call_at(self._reactor.now() + seconds, action)

    def _begin_pass(self) -> None:
        self._began_at, self._bytes = self._reactor.now(), 0
        self._files, self._left = deque(self._host.files), deque(self._host.groups)
        self._at = self._log = None
        self._go_on()

    def _go_on(self) -> None:
        while self._files:
            file = self._files.popleft()
            read = file.begin_check()
            if read is not None:
                self._check_file(file, read)
                return
        for _ in range(_PASSED_OVER_PER_TURN):
            if not self._left:
                self._end_pass()
                return
            group = self._host.groups.get(self._left[0])
            if isinstance(group, Group) and group.role is not Role.FAILED and self._read_next(group):
                return
            self._next_group()
        self._arm(0.0, self._go_on)

    def _next_group(self) -> None:
        self._left.popleft()
        self._at = self._log = None

    def _end_pass(self) -> None:
        now = self._reactor.now()
        self._log_event("scrub_finished", bytes=self._bytes, seconds=round(now - self._began_at, 1))
        self._arm(max(0.0, self._began_at + self._interval_s - now), self._begin_pass)

    def _read_next(self, group: Group) -> bool:
        """False: all of it was read."""
        if self._at is None or self._log is not group.log:
            self._at, self._log = Verified(), group.log
            beside = self._host.housekeeping.check(group)
            if beside is not None:
                self._check_beside(group, beside)
                return True
        piece = group.log.scrub.next_piece(
            self._at, end_index=group.commit_index, max_bytes=limits.SCRUB_PIECE_BYTES, closed_only=True
        )
        if piece is not None:
            self._read(group, piece)
        return piece is not None

    def _check_file(self, file: NodeFile, read: Callable[[], str]) -> None:
        found: list[str] = []

        def done(error: BaseException | None) -> int:
            why = found[0] if error is None else str(error) if is_damage(error) else ""
            if why:
                self._log_event("file_damaged", why=why)
                self._mend(file, why)
            return _SMALL_FILE_BYTES

        self._blocking(lambda: found.append(read()), done)

    def _mend(self, file: NodeFile, why: str) -> None:
        """Until it works: it may be the last chance, since a process that ends takes what it knows with it."""

        def done(error: BaseException | None) -> None:
            if error is None:
                self._log_event("file_mended", why=why)
                return
            self._log_event("file_not_mended", why=f"{why}: {error}")
            self._forget_timer(file)
            if not self._stopped:
                at = self._reactor.now() + _MENDED_AGAIN_AFTER
                self._mend_timers[file] = self._reactor.call_at(at, lambda: self._mend(file, why))

        self._forget_timer(file)
        steps = list(file.mend(why))
        if steps:
            self._reactor.run_blocking(steps, done)

    def _forget_timer(self, file: NodeFile) -> None:
        timer = self._mend_timers.pop(file, None)
        if timer is not None:
            timer.cancel()

    def _check_beside(self, group: Group, read: Callable[[], Faults]) -> None:
        found: list[Faults] = []
        log = group.log

        def done(error: BaseException | None) -> int:
            if error is None and found[0] and self._host.groups.get(group.group_id) is group and group.log is log:
                self._host.housekeeping.mend(group, found[0])
            return _SMALL_FILE_BYTES

        self._blocking(lambda: found.append(read()), done)

    def _read(self, group: Group, piece: Piece) -> None:
        found: list[Verified] = []
        log = group.log

        def done(error: BaseException | None) -> int:
            if group.log is not log:
                return limits.SCRUB_PIECE_BYTES
            if error is None:
                self._at = found[0]
                self._bytes += found[0].size
                if found[0].is_end:
                    group.read_again(piece.segment)
                return found[0].size
            if not log.scrub.is_gone(piece.segment):
                group.read_failed(error, log)
                self._next_group()
            return limits.SCRUB_PIECE_BYTES

        self._blocking(lambda: found.append(piece.read()), done)

    def _blocking(self, read: Callable[[], None], done: Callable[[BaseException | None], int]) -> None:
        """One piece; then `done`, which says how many bytes it counts for; then a rest, and the next one."""
        began_at = self._reactor.now()

        def ended(error: BaseException | None) -> None:
            if self._stopped:
                return
            size = done(error)
            busy_s = self._reactor.now() - began_at
            self._arm(max(size / self._bytes_per_second, busy_s * limits.SCRUB_REST_FACTOR), self._go_on)

        self._reactor.run_blocking([read], ended)
