"""What a thin consumer has delivered of one partition, and what was acknowledged of it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from fluxd.core import limits
from fluxlog.v1 import groups_pb2


class ThinPartition:
    """See the module.

    Args:
        position: first offset to be delivered; what is below is committed, or was never asked for.
    """

    def __init__(self, partition: groups_pb2.TopicPartition, position: int) -> None:
        self.partition = partition
        self.position = position
        """Next offset to be delivered."""
        self.committed = position
        """What the group has, as far as this consumer knows."""
        self.revoking = False
        self._unfinished: OrderedDict[int, bool] = OrderedDict()
        """Delivered, in order, from the first that is not acknowledged; and whether each is."""

    @property
    def done_up_to(self) -> int:
        """Everything delivered below is acknowledged: exclusive, the offset to commit."""
        return next(iter(self._unfinished), self.position)

    @property
    def drained(self) -> bool:
        """Everything that was delivered is acknowledged."""
        return not self._unfinished

    @property
    def may_go(self) -> bool:
        """It is to be given up, and everything that was delivered is acknowledged and committed."""
        return self.revoking and not self._unfinished and self.committed >= self.done_up_to

    @property
    def outstanding(self) -> int:
        """Records that were delivered and are not acknowledged."""
        return sum(1 for acknowledged in self._unfinished.values() if not acknowledged)

    @property
    def may_deliver(self) -> bool:
        """Not too much is remembered because of one record that is not acknowledged."""
        return len(self._unfinished) < limits.THIN_SPREAD_MAX

    def is_acknowledged(self, offset: int) -> bool:
        """Of an offset that was delivered."""
        return self._unfinished.get(offset, True)

    def delivered(self, offsets: Iterable[int], next_offset: int) -> None:
        """These go out, in ascending order; the next ones begin at `next_offset`."""
        self._unfinished.update((offset, False) for offset in offsets)
        self.position = next_offset

    def acknowledge(self, first: int, last: int) -> int:
        """Records first..last (inclusive) are done; returns how many of them had not been before."""
        if last - first < len(self._unfinished):
            named = [offset for offset in range(first, last + 1) if self._unfinished.get(offset) is False]
        else:
            named = [offset for offset, done in self._unfinished.items() if first <= offset <= last and not done]
        for offset in named:
            self._unfinished[offset] = True
        while self._unfinished and self._unfinished[next(iter(self._unfinished))]:
            self._unfinished.popitem(last=False)
        return len(named)
