"""How fast a node copies, all its replicas together: a node whose disk was lost copies many at once, and those who lead
them have producers to serve.

But who writes faster than is copied would keep those replicas out of sync for ever. So the pace is doubled each time
that nothing was gained for a while, and is what it was when no copy is under way any more. It is not lowered before:
with what was gained at the higher pace lost again at the lower one no copy might ever end. Where it is not the pace
that is slow but the way of each piece, more is asked for at once.

A copy that was overtaken, since its leader let go of what was to be copied next, has gained nothing, whatever the bytes
say: what is missing shrinks each time that the leader trims. Both are doubled at once then. So after a few times a copy
is as fast as disk and network allow; and one that is faster than those who write is not overtaken again: it begins
where the leader's log begins.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxd.core import limits
from fluxd.core.runtime import Reactor

_SLACK = 0.1
"""Time that was not used up is made good to this extent: so the way of a piece counts as part of its time."""


class CopyPace:
    """Shared by all who copy: limits.COPY_BYTES_PER_SECOND, more when that does not do.

    Args:
        raised: told of each new pace, bytes a second.
    """

    def __init__(self, reactor: Reactor, raised: Callable[[int], None] = lambda bytes_per_second: None) -> None:
        self._reactor, self._raised = reactor, raised
        self._free_at = 0.0
        self._bytes_per_second = limits.COPY_BYTES_PER_SECOND
        self.piece_bytes = limits.COPY_CHUNK_BYTES
        """To be asked for at once."""
        self._missing: dict[object, int] = {}
        """Bytes, by who copies."""
        self._judged_at, self._judged_missing = 0.0, 0

    def spend(self, who: object, size: int, missing: int) -> float:
        """A piece has come.

        Args:
            who: copies; until it says `ended`.
            size: of the piece, bytes.
            missing: bytes that are still to come, as far as is known: not entries, since those that are written
                meanwhile may be many and small. 0: not known.

        Returns:
            When the next one may be asked for, by the reactor's clock.
        """
        now = self._reactor.now()
        if not self._missing:
            self._judged_at, self._judged_missing = now, 0
        if who not in self._missing:
            self._judged_missing += missing  # another one is no loss
        self._missing[who] = missing
        self._free_at = max(self._free_at, now - _SLACK) + size / self._bytes_per_second
        if now - self._judged_at >= limits.COPY_PATIENCE:
            self._judge(now)
        return self._free_at

    def overtaken(self, who: object) -> None:
        """A copy has to begin anew: what would have come next is gone at its leader. What it misses then is news."""
        self._missing.pop(who, None)
        self._raise()
        self._ask_for_more()
        self._judged_at, self._judged_missing = self._reactor.now(), sum(self._missing.values())

    def ended(self, who: object) -> None:
        """It copies no more, for now. Harmless when that is known."""
        self._missing.pop(who, None)
        if not self._missing:
            self._bytes_per_second = limits.COPY_BYTES_PER_SECOND
            self.piece_bytes = limits.COPY_CHUNK_BYTES

    def _judge(self, now: float) -> None:
        missing = sum(self._missing.values())
        if 0 < self._judged_missing <= missing:
            if self._free_at > now:
                self._raise()
            else:  # nobody has to wait: it is not the pace that is too slow
                self._ask_for_more()
        self._judged_at, self._judged_missing = now, missing

    def _raise(self) -> None:
        if self._bytes_per_second < limits.COPY_BYTES_PER_SECOND_MAX:
            self._bytes_per_second *= 2
            self._raised(self._bytes_per_second)

    def _ask_for_more(self) -> None:
        self.piece_bytes = min(2 * self.piece_bytes, limits.COPY_CHUNK_BYTES_MAX)
