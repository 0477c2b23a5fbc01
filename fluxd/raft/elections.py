"""When to campaign, and for whom to vote. The library's own timers never decide: it campaigns only when the guard
lets it (C6 in docs/raft.md).

A campaign begins with a pre-vote round that changes nothing anywhere. Stickiness: while a leader was heard within the
minimum election timeout, or while leading in contact with a majority, a replica grants neither pre-vote nor vote; a
requested transfer bypasses that. So a node that was cut off, or that hears nobody, does not disturb a working group,
and terms do not grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxd.core import limits
from fluxd.core.runtime import NEVER
from fluxd.core.types import NodeId
from fluxd.raft.leading import DISK_PEER
from fluxlog.v1 import peer_pb2

if TYPE_CHECKING:
    from fluxd.raft.guard import Guard

_RETRY = (0.2, 0.6)
"""Seconds until the next pre-vote round when no leader was heard lately. Short is harmless: stickiness protects a
leader, not this timer.
"""
_TIMEOUT_RANGE = limits.ELECTION_TIMEOUT_MAX / limits.ELECTION_TIMEOUT_MIN - 1
"""Of the random part, in least timeouts."""
_GONE_AFTER, _GONE_STEP = 0.05, 0.14
"""The leader's process is gone (its connection was refused): no need to wait for the timeout. Seconds until the next
voter campaigns (the others have to know it, too, or they refuse), and between each of those behind it. No chance in it:
groups that lost their leader together campaign together, so that what they say shares frames, and their votes a sync.
"""
_CONNECTED = (0.01, 0.15)


class Elections:
    """Election state of one replica."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._heard_at = NEVER
        self._pre_vote: tuple[int, set[NodeId]] | None = None
        self._asks = False
        """It campaigns, or waits for a place to."""
        self._votes: set[NodeId] = set()
        self._nonce = 0
        """Of this replica's campaign: a vote for an earlier one, perhaps of a disk that is lost, does not count."""
        self._asked_nonce = 0
        """Of the vote request that the library is looking at."""
        self._yielded_term = 0
        """The last one in which this replica let another one go first."""
        self.disk_vote_due = False
        self._transfer = False
        self.by_transfer = False
        """The last campaign was asked for by the leader before."""
        self._retired = False
        self.deadline = NEVER

    # ------------------------------------------------------------------ timer
    def arm(self, low: float, high: float) -> None:
        """Campaign after a random time in [low, high) seconds, unless something intervenes."""
        self.deadline = self._guard.now() + low + (high - low) * self._guard.random()

    def arm_first(self) -> None:
        """The log was opened. In a new group the preferred leader need not wait for others, nor does a lone replica."""
        is_new = self._guard.journal.log.last_index == 1
        if (is_new and self._guard.voters[0] == self._guard.node_id) or not self._guard.peers:
            self.arm(0.0, 0.05)
        elif is_new:
            self.arm(limits.ELECTION_TIMEOUT_MIN, limits.ELECTION_TIMEOUT_MAX)
        else:
            self.arm(limits.HEARTBEAT_INTERVAL, limits.ELECTION_TIMEOUT_MIN)

    def _arm_timeout(self, since: float | None = None) -> None:
        """A leader may be silent for so long, from now or from a moment that is past."""
        guard = self._guard
        timeout = guard.election_timeout * (1 + _TIMEOUT_RANGE * guard.random())
        self.deadline = (guard.now() if since is None else since) + timeout

    def _arm_retry(self) -> None:
        """Whoever is asked gets so long to answer."""
        slowness = self._guard.heartbeats.timeouts.slowness
        self.arm(slowness * _RETRY[0], slowness * _RETRY[1])

    def leader_heard(self) -> None:
        """An AppendEntries of the current leader arrived."""
        self._heard_at = self._guard.now()
        self._arm_timeout()
        if self._asks:
            self.end()

    def leader_was_heard(self, at: float) -> None:
        """Since then again, the last time at a moment that is past: the timer goes on from there."""
        self._heard_at = at
        self._arm_timeout(at)

    def leader_gone(self, leader: NodeId) -> None:
        """The leader's process has ended. The next voter after it campaigns at once, the one after that a little
        later: two at the same time would keep each other from a majority."""
        self._heard_at = NEVER
        voters = self._guard.voters
        rank = (voters.index(self._guard.node_id) - voters.index(leader) - 1) % len(voters)
        self.deadline = self._guard.now() + _GONE_AFTER + rank * _GONE_STEP

    def leader_cut_off(self) -> None:
        """The link to the leader broke: a timeout that was drawn when answers were slow is longer than need be."""
        drawn = self.deadline
        self._arm_timeout(self._heard_at)
        self.deadline = min(drawn, self.deadline)

    def end(self) -> None:
        """No campaign is wanted any more."""
        self._asks, self._pre_vote = False, None
        self._guard.campaigns.leave(self._guard.group)

    def _campaign_again(self) -> None:
        """There is a place."""
        if self._asks and not self._guard.is_leader:
            self.deadline = self._guard.now()
            self._guard.rouse()

    def retire(self) -> None:
        """The node is stopping: never campaign again."""
        self._retired = True
        self.end()

    def stepped_down(self) -> None:
        """This replica no longer leads."""
        self._arm_timeout()

    def peer_connected(self) -> None:
        """With one more voter a campaign may succeed: do not wait out a long timer."""
        if self._leader_is_fresh() or self._guard.is_leader:
            return
        if self.deadline > self._guard.now() + _CONNECTED[1]:
            self.arm(*_CONNECTED)

    def tick(self) -> None:
        """Start a pre-vote round when the time has come."""
        guard = self._guard
        if guard.is_leader or guard.now() < self.deadline:
            return
        self._arm_retry()
        if self._retired or not guard.votes_durable():
            return  # the last vote is still being written: one campaign at a time
        self._asks = True
        if not guard.campaigns.enter(guard.group, self._campaign_again):
            self._arm_timeout()
            return
        self._pre_vote = (guard.term + 1, {guard.node_id})
        log = guard.journal.log
        for peer in guard.peers:
            message = guard.outbox.message()
            message.pre_vote_request.proposed_term = guard.term + 1
            message.pre_vote_request.last_index = log.last_index
            message.pre_vote_request.last_term = log.last.leader_epoch
            guard.outbox.send(peer, message)
        self._campaign_if_granted()

    # ------------------------------------------------------------------ pre-vote
    def _leader_is_fresh(self) -> bool:
        guard = self._guard
        if guard.is_leader:
            return guard.leading.in_contact()
        return guard.now() - self._heard_at < guard.election_timeout

    def on_pre_vote_request(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """Would this replica vote for that one? Nothing is recorded."""
        guard, request = self._guard, message.pre_vote_request
        log = guard.journal.log
        reply = guard.outbox.message()
        reply.pre_vote_reply.proposed_term = request.proposed_term
        reply.pre_vote_reply.granted = (
            request.proposed_term > guard.term
            and not self._leader_is_fresh()
            and (request.last_term, request.last_index) >= (log.last.leader_epoch, log.last_index)
        )
        guard.outbox.send(peer, reply)
        if reply.pre_vote_reply.granted:
            self._let_go_first(peer, request.proposed_term)

    def _let_go_first(self, peer: NodeId, proposed_term: int) -> None:
        """Two that campaign at the same time would keep each other from a majority: the one that asked first goes on,
        of two that ask at once the first voter. Once in a term, since the other one may be unable to win.
        """
        voters = self._guard.voters
        if proposed_term == self._yielded_term:
            return
        if self._pre_vote is not None and voters.index(self._guard.node_id) < voters.index(peer):
            return
        self._yielded_term = proposed_term
        self.end()
        deadline = self.deadline
        self._arm_retry()
        self.deadline = max(deadline, self.deadline)

    def on_pre_vote_reply(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """A majority of grants starts the campaign."""
        guard, reply = self._guard, message.pre_vote_reply
        if message.term > guard.term:
            if not guard.is_leader:
                guard.adopt_term(peer, message.term)
            return
        if self._pre_vote is None or guard.is_leader or not reply.granted:
            return
        proposed_term, granted = self._pre_vote
        if reply.proposed_term == proposed_term == guard.term + 1:
            granted.add(peer)
            self._campaign_if_granted()

    def _campaign_if_granted(self) -> None:
        if self._pre_vote and len(self._pre_vote[1]) > (len(self._guard.peers) + 1) / 2:
            self._pre_vote = None
            self._campaign()

    # ------------------------------------------------------------------ vote
    def _campaign(self) -> None:
        """Let the library campaign: it does so in a tick in which it sees a connection."""
        self._votes, self.by_transfer = set(), self._transfer
        self._nonce = int(self._guard.random() * (1 << 53)) + 1
        self._arm_retry()
        self._guard.tick_exposed()

    def request_votes(self, peer: NodeId, term: int, last_index: int, last_term: int) -> None:
        """The library campaigns."""
        guard = self._guard
        if peer == DISK_PEER:
            self.disk_vote_due = True
            return
        message = guard.outbox.message()
        assert message.term == term
        message.vote_request.last_index = last_index
        message.vote_request.last_term = last_term
        message.vote_request.transfer = self._transfer
        message.vote_request.nonce = self._nonce
        guard.outbox.send(peer, message)

    def on_vote_request(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """The library decides, unless a leader is known to be well."""
        request = message.vote_request
        if not request.transfer and self._leader_is_fresh():
            self._guard.count("sticky_vote")
            return
        self._asked_nonce = request.nonce
        self._guard.inject(
            peer,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": request.last_index,
                "last_log_term": request.last_term,
            },
        )

    def voted(self, peer: NodeId) -> None:
        """The library grants its vote; the message leaves when the vote is durable."""
        self.end()
        self._arm_timeout()
        message = self._guard.outbox.message()
        message.vote_reply.nonce = self._asked_nonce
        self._guard.outbox.send(peer, message)

    def on_vote_reply(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """Each member's vote counts once."""
        guard = self._guard
        if message.vote_reply.nonce != self._nonce:
            guard.count("foreign_vote")
            return
        if guard.is_candidate and message.term == guard.term and peer not in self._votes:
            self._votes.add(peer)
            guard.inject(peer, {"type": "response_vote", "term": message.term})

    def on_votes_durable(self) -> None:
        """A group of one: its disk votes when it has the vote."""
        if self.disk_vote_due and self._guard.votes_durable():
            self.disk_vote_due = False
            if self._guard.is_candidate:
                self._guard.inject(DISK_PEER, {"type": "response_vote", "term": self._guard.term})

    def on_timeout_now(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """The leader asks this replica to take over at once."""
        guard = self._guard
        if guard.is_leader or guard.following.leader != peer or message.term != guard.term:
            return
        if self._retired or not guard.votes_durable():
            return
        guard.inject(peer, {"type": "timeout_now", "term": message.term})
        self._transfer = True
        self._campaign()
        self._transfer = False
