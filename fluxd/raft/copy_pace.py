"""How fast a node copies, all its replicas together: a node whose disk was lost copies many at once, and those who lead
them have producers to serve.
"""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.runtime import Reactor

_SLACK = 0.1
"""Time that was not used up is made good to this extent: so the way of a piece counts as part of its time."""


class CopyPace:
    """limits.COPY_BYTES_PER_SECOND, shared by all who copy."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._free_at = 0.0

    def spend(self, size: int) -> float:
        """A piece of so many bytes has come.

        Returns:
            When the next one may be asked for, by the reactor's clock.
        """
        self._free_at = max(self._free_at, self._reactor.now() - _SLACK) + size / limits.COPY_BYTES_PER_SECOND
        return self._free_at
