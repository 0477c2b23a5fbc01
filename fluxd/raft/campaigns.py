"""How many groups of a node may campaign at the same time: a node that dies takes the leaders of hundreds of groups.

A campaign costs some messages and a sync of the votes, which many share. A thousand at once would keep the node from
hearing the heartbeats of those that have a leader already; these would campaign, too, and so on for ever. So few do at
a time, the others wait in the order in which they came: a place is free as soon as its group has a leader.

Waiting is always safe, and never for long: a place is lost after PLACE_SECONDS (longer where answers are slow) whatever
became of its campaign.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxd.core import limits
from fluxd.core.types import METADATA_GROUP, GroupId
from fluxd.raft.timeouts import Timeouts

PLACE_SECONDS = 0.25


class Campaigns:
    """Places of one node.

    Args:
        now: monotonic seconds.
        timeouts: how slow answers are.
    """

    def __init__(self, now: Callable[[], float], timeouts: Timeouts) -> None:
        self._now, self._timeouts = now, timeouts
        self._places: dict[GroupId, float] = {}
        """Until when, in the order in which they were taken."""
        self._waiting: dict[GroupId, Callable[[], None]] = {}

    def enter(self, group: GroupId, again: Callable[[], None]) -> bool:
        """Whether a group may campaign now. If not, it is called when it may ask again."""
        if group != METADATA_GROUP and group not in self._places and len(self._places) >= limits.CAMPAIGNS_MAX:
            self._waiting[group] = again
            return False
        self._waiting.pop(group, None)
        self._places.pop(group, None)
        self._places[group] = self._now() + PLACE_SECONDS * self._timeouts.slowness
        return True

    def leave(self, group: GroupId) -> None:
        """It has a leader, or will not campaign any more. Harmless when it has no place."""
        self._waiting.pop(group, None)
        if self._places.pop(group, None) is not None:
            self._admit()

    def expire(self) -> None:
        """Now and then: places whose time is over."""
        now = self._now()
        for group in [group for group, until in self._places.items() if until <= now]:
            del self._places[group]
        self._admit()

    def _admit(self) -> None:
        free = limits.CAMPAIGNS_MAX - len(self._places)
        for group in list(self._waiting)[: max(free, 0)]:
            self._waiting.pop(group)()
