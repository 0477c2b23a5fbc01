"""Partitions that a reader finds served by nobody, and what each does when it is told a leader.

Any replica serves reads, so a reader whose node fails first asks the others. Only when all have failed does it wait to
be told (fluxlog/leader_search.py), for no longer than its pause.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WAIT_MS = 500
"""Of one call that asks for leaders: the longest pause of a reader."""


@dataclass(slots=True, eq=False)
class LostLeader:
    """One partition; see `leader_search.Lost`."""

    topic: str
    number: int
    on_told: Callable[[str], None] = lambda _: None
    """Called with the leader's address, once at most each time that it was added."""
    leader_epoch: int = 0
    """The newest one that was told, by whatever answer: what is told once and turns out to be wrong is not told
    again."""
    avoid: str = ""

    def note(self, epoch: int) -> None:
        """An answer named a leader."""
        self.leader_epoch = max(self.leader_epoch, epoch)


class LostLeaders:
    """Those that wait now: a `leader_search.Waiting`. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], LostLeader] = {}

    def add(self, lost: LostLeader) -> None:
        """It waits from now on."""
        self._waiting[lost.topic, lost.number] = lost

    def discard(self, lost: LostLeader) -> None:
        """It waits no longer."""
        if self._waiting.get((lost.topic, lost.number)) is lost:
            del self._waiting[lost.topic, lost.number]

    def leaderless(self, count_max: int) -> Sequence[LostLeader]:
        """See Waiting."""
        return list(itertools.islice(self._waiting.values(), count_max))

    def leader_told(self, topic: str, number: int, *, address: str, epoch: int) -> None:
        """See Waiting."""
        lost = self._waiting.get((topic, number))
        if lost is not None and address and epoch > lost.leader_epoch:
            lost.leader_epoch = epoch
            self.discard(lost)
            lost.on_told(address)

    def somebody_tells(self) -> None:
        """Readers keep their pauses, whether they are told or not."""

    def nobody_tells(self) -> None:
        """The same."""
