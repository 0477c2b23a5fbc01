"""The rules by which a client that has lost leaders is told the new ones (`Admin.AwaitLeaders`).

One call at a time asks for all that wait, of one node after the other until one answers: those that did not answer
lately, or knew nothing, come last. What is told is a hint that comes early, no more: what waits tries again all the
same, after its pause. Where no node can tell, that is all there is; a cluster that does not know the call (an older
version) is left alone for a while.

No I/O, no threads and no event loop: shared by what waits on an event loop and what waits on threads. Whoever makes the
calls asks `next` whenever something may wait, and hands back what became of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fluxlog.errors import FluxlogError
from fluxlog.v1 import admin_pb2

ASK_TIMEOUT = 2.0
"""Seconds for one call: longer than it may wait."""
WAIT_MS_DEFAULT = 200
_ASKED_MAX = 10_000
_AGAIN = 1.0
"""Seconds until another attempt when no node could tell."""
_AGAIN_UNKNOWN = 60.0
"""The same when that is because they do not know the call."""

_WITHOUT_LEADER = frozenset({"NOT_LEADER", "NO_LEADER", "REPLICA_OFFLINE", "STOPPING", "OUTCOME_UNKNOWN"})


def has_lost_leader(failure: FluxlogError) -> bool:
    """Whether a failed attempt means that the partition's leader is to be found anew."""
    return not failure.from_server or failure.reason in _WITHOUT_LEADER


class Lost(Protocol):
    """A partition whose leader nobody knows."""

    @property
    def topic(self) -> str:
        """Its name."""

    @property
    def number(self) -> int:
        """The partition, from 0."""

    @property
    def leader_epoch(self) -> int:
        """Of the leader that was lost: only a later one is news; 0: any is."""

    @property
    def avoid(self) -> str:
        """Address that did not answer last; empty: none."""


class Waiting(Protocol):
    """What waits for leaders."""

    def leaderless(self, count_max: int) -> Sequence[Lost]:
        """For which partitions."""

    def leader_told(self, topic: str, number: int, *, address: str, epoch: int) -> None:
        """A node said who leads one of them."""

    def somebody_tells(self) -> None:
        """Leaders are told: there is no need to try often."""

    def nobody_tells(self) -> None:
        """No node can tell at the moment."""


@dataclass(frozen=True, slots=True)
class Question:
    """One call to be made, on one node, for ASK_TIMEOUT at most."""

    address: str
    request: admin_pb2.AwaitLeadersRequest


class LeaderSearch:
    """See the module. Belongs to one thread.

    Args:
        addresses: of all nodes known, the one to ask first in front.
        clock: seconds, monotonic.
        wait_ms: of one call: what loses its leader meanwhile is asked for with the next one.
    """

    def __init__(
        self,
        waiting: Waiting,
        addresses: Callable[[], list[str]],
        clock: Callable[[], float],
        *,
        wait_ms: int = WAIT_MS_DEFAULT,
    ) -> None:
        self._waiting, self._addresses, self._clock, self._wait_ms = waiting, addresses, clock, wait_ms
        self._asked: Question | None = None
        self._others: list[str] = []
        """To be asked the same when the one that is asked does not answer."""
        self._knew_nothing = ""
        """Address of the node that answered last, if it knew of no leader."""
        self._unimplemented = False
        """By one of those that were asked since something answered."""
        self._began = self._not_before = 0.0
        waiting.somebody_tells()

    def next(self) -> Question | None:
        """The call to make now; None: nothing waits, or a call is under way already. Hand its end to `take_answer` or
        `take_failure`, and ask again then.
        """
        if self._asked is not None or self._clock() < self._not_before:
            return None
        lost = self._waiting.leaderless(_ASKED_MAX)
        if not lost:
            self._others = []
            return None
        if not self._others:
            avoided = {self._knew_nothing, *(each.avoid for each in lost)}
            self._others = sorted(self._addresses(), key=lambda address: address in avoided)
            self._unimplemented = False
        request = admin_pb2.AwaitLeadersRequest(max_wait_ms=self._wait_ms)
        for each in lost:
            request.partitions.add(topic=each.topic, partition=each.number, after_epoch=each.leader_epoch)
        self._began = self._clock()
        self._asked = Question(self._others.pop(0), request)
        return self._asked

    def take_answer(self, answer: admin_pb2.AwaitLeadersResponse) -> None:
        """A node has told what it knows."""
        asked, self._asked, self._others = self._asked, None, []
        self._waiting.somebody_tells()
        told = [leader for leader in answer.leaders if leader.address]
        for leader in told:
            self._waiting.leader_told(leader.topic, leader.partition, address=leader.address, epoch=leader.leader_epoch)
        self._knew_nothing = asked.address if asked is not None and not told else ""
        if not told:  # a node that knows none of the topics answers at once: nobody is asked again so soon
            self._not_before = self._began + self._wait_ms / 2000

    def take_failure(self, failure: FluxlogError) -> None:
        """A node did not answer, or does not know the call."""
        self._asked = None
        self._unimplemented |= failure.reason == "UNIMPLEMENTED"
        if not self._others:
            self._not_before = self._clock() + (_AGAIN_UNKNOWN if self._unimplemented else _AGAIN)
            self._waiting.nobody_tells()
