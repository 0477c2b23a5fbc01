"""What a leader knows of one follower, in one leadership."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from fluxd.core import limits
from fluxd.core.runtime import NEVER
from fluxd.raft.heartbeats import Rest

_PATIENCE_MAX = 60.0
_NOT_YET = 1 << 63


class InFlight(NamedTuple):
    """One AppendEntries with entries that is not answered yet."""

    first_index: int
    last_index: int
    size: int


@dataclass(slots=True)
class Progress:
    """Replication progress of one follower.

    Invariant: given <= match <= received. All three are verified against this leader's log; only `match` is on
    the follower's disk, only `given` was handed to the library.
    """

    next_index: int
    """The library's nextIndex, mirrored: index of the next entry it will send."""
    sequence: int = 0
    """Of the last AppendEntries sent."""
    fence: int = 0
    """A failure reply to an older sequence is not honoured: its rewind has happened."""
    admitted_at: int = 0
    """Sequence at which this replica was admitted with a new disk: replies to older ones are its predecessor's."""
    is_copying: bool = False
    """It asked for a copy in this leadership and was not admitted since: it takes no part."""
    leaving_until: float = NEVER
    """It may leave, to have its damaged log copied: until then what it acknowledges does not count, since it may be
    gone the next moment; after that it has left, and is out of sync, or it has stayed."""
    is_behind: bool = False
    """The log begins behind what it has: it copies."""
    match: int = 0
    received: int = 0
    given: int = 0
    acked_sequence: int = 0
    replied_at: float = NEVER
    told_at: float = NEVER
    """When the library was last told that this follower is there."""
    rest: Rest | None = None
    """The group rests towards this follower: it is a row of its node's heartbeat."""
    caught_up_at: float = NEVER
    """Last time when everything that the leader had was on this follower's disk."""
    heartbeat_at: float = NEVER
    """When the next heartbeat is due, unless something else is sent before."""
    commit_sent: int = 0
    probe: bool = False
    """A heartbeat is wanted now, whether due or not."""
    rewind_to: int = 0
    """Above 0: entries from here on were lost on the way and must be sent again."""
    in_flight: list[InFlight] = field(default_factory=list)
    in_flight_bytes: int = 0
    moved_at: float = NEVER
    """Last time when in_flight began, or shrank."""
    patience: float = limits.ELECTION_TIMEOUT_MIN
    """After so many seconds without an answer what is in flight counts as lost. Doubled each time until the
    follower has everything: on a slow link it was not lost, and each copy makes the next answer later."""
    _end_at_last_reply: int = 0
    _last_reply_at: float = NEVER

    @property
    def window_full(self) -> bool:
        """Enough is on the way."""
        return self.in_flight_bytes >= limits.REPLICATION_WINDOW_BYTES

    def sent(self, entry: InFlight, now: float) -> None:
        """Entries were handed to the transport."""
        if not self.in_flight:
            self.moved_at = now
        self.in_flight.append(entry)
        self.in_flight_bytes += entry.size

    def acknowledged(self, received: int, durable: int, *, log_end_index: int, now: float) -> None:
        """A success reply of this leadership."""
        self.received = max(self.received, received)
        self.match = max(self.match, durable)
        while self.in_flight and self.in_flight[0].last_index <= self.received:
            self.in_flight_bytes -= self.in_flight.pop(0).size
            self.moved_at = now
        if self.received >= log_end_index:
            self.patience = limits.ELECTION_TIMEOUT_MIN
        if self.match >= log_end_index:
            self.caught_up_at = now
        elif self.match >= self._end_at_last_reply:  # had all of the log as it was then (Kafka's replica.lag.time rule)
            self.caught_up_at = max(self.caught_up_at, self._last_reply_at)
        self._end_at_last_reply, self._last_reply_at = log_end_index, now

    def gone(self) -> None:
        """Its process, or the way to it, is gone: not in sync before it has acknowledged everything again."""
        self.caught_up_at = NEVER
        self._end_at_last_reply = _NOT_YET
        self.lost()

    def lose_what_is_overdue(self, now: float, patience_min: float) -> None:
        """Entries in flight that were not answered in time are lost."""
        patience = max(self.patience, patience_min)
        if self.in_flight and now - self.moved_at >= patience:
            self.patience = min(2 * patience, _PATIENCE_MAX)
            self.lost()

    def lost(self) -> None:
        """What is in flight will not be answered: have it sent again."""
        if self.in_flight:
            self.lost_from(self.in_flight[0].first_index)

    def lost_from(self, first_index: int) -> None:
        """Entries from here on did not leave, or will not be answered."""
        self.rewind_to = min(self.rewind_to, first_index) if self.rewind_to else first_index
        self.forget_in_flight()

    def rewind(self, next_index: int) -> None:
        """The library will send from `next_index` on. What was received but not durable may be gone (the
        follower restarted).
        """
        self.fence = self.sequence + 1
        self.next_index = next_index
        self.rewind_to = 0
        self.received = self.match
        self.forget_in_flight()

    def forget_in_flight(self) -> None:
        """Nothing is on the way."""
        self.in_flight.clear()
        self.in_flight_bytes = 0

    @property
    def heard_at(self) -> float:
        """When this follower was last heard, by a reply of its own or by the answer to a list."""
        return max(self.replied_at, self.rest.heard_at) if self.rest else self.replied_at

    def is_under_way(self, last_index: int, now: float) -> bool:
        """Something is on the way, was lost, wanted or not answered; or this follower lacks entries, or leaves."""
        return (
            self.acked_sequence != self.sequence
            or self.match != last_index
            or self.next_index != last_index + 1
            or self.commit_sent != last_index
            or now < self.leaving_until
            or bool(self.in_flight or self.rewind_to or self.probe or self.is_copying or self.is_behind)
        )

    def roused(self) -> None:
        """The group rests no more towards this follower; a heartbeat is due."""
        if self.rest is not None:
            heard_at = self.heard_at
            if self.rest.heard_at == heard_at:  # it had everything then
                self.caught_up_at = max(self.caught_up_at, heard_at)
                self._end_at_last_reply, self._last_reply_at = self.rest.row.last_index, heard_at
            self.replied_at = heard_at
            self.rest.end()
            self.rest = None
            self.heartbeat_at = NEVER

    def in_sync_until(self, allowed: float) -> float:
        """When it is no longer a member of the ISR, unless it is heard until then.

        Args:
            allowed: for so many seconds it is one without an answer (`Timeouts.in_sync`).
        """
        caught_up_at = max(self.caught_up_at, self.rest.heard_at) if self.rest else self.caught_up_at
        return caught_up_at + allowed
