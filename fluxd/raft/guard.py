"""The guard: what stands between pysyncobj and the world, so that a sound core is not undone by an unsound protocol.

To the library it is a Transport. Every message to or from a peer passes here: strangers, other generations and old
terms are fenced off, and what the library gets to see is rewritten so that it can only do what Raft allows. The parts:
`leading` (the leader's side), `following` (the follower's), `elections`, `outbox` (nothing leaves before the vote that
it reflects is durable).

Nothing here may be called from inside `send`: the library is in the middle of a step then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from pysyncobj import SyncObj
from pysyncobj.node import Node
from pysyncobj.transport import Transport as LibraryTransport

from fluxd.core.errors import InvariantViolation
from fluxd.core.runtime import NEVER_DUE, Reactor
from fluxd.core.types import GroupId, NodeId, RaftIndex
from fluxd.raft import library
from fluxd.raft.campaigns import Campaigns
from fluxd.raft.elections import Elections
from fluxd.raft.following import Following
from fluxd.raft.heartbeats import Confirmed, Heartbeats, Row
from fluxd.raft.journal import RaftJournal
from fluxd.raft.leading import DISK_PEER, Leading
from fluxd.raft.outbox import Outbox
from fluxd.raft.transport import Transport
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import peer_pb2


class StateListener(Protocol):
    """Who is told of the library's state changes."""

    def __call__(self, old: int, new: int) -> None:
        """After the guard has acted on it."""


class Guard(LibraryTransport):
    """One replica's guard. `attach` completes it with the library's object."""

    # A node has thousands: with more than 30 attributes a dictionary for each would take 1.6 KB.
    __slots__ = (
        "_exposed", "_nodes", "_on_state", "_reactor", "_votes", "campaigns", "confirmed", "counters", "elections",
        "following", "generation", "group", "heartbeats", "journal", "leading", "library_peers", "log_event", "node_id",
        "on_behind", "on_connected", "on_copy_piece", "on_copy_reply", "on_copy_request", "outbox", "peers", "raft",
        "rouse", "state", "transport", "voters",
    )  # fmt: skip

    def __init__(
        self,
        group: GroupId,
        generation: int,
        node_id: NodeId,
        voters: tuple[NodeId, ...],
        *,
        journal: RaftJournal,
        votes: VoteFile,
        reactor: Reactor,
        transport: Transport,
        heartbeats: Heartbeats,
        campaigns: Campaigns,
        log_event: Callable[..., None],
        on_state: StateListener,
    ) -> None:
        super().__init__(None, None, None)
        self.group, self.generation, self.node_id = group, generation, node_id
        self.voters = voters
        self.peers = tuple(voter for voter in voters if voter != node_id)
        self.library_peers = self.peers or (DISK_PEER,)
        self.journal, self._votes, self._reactor, self.transport = journal, votes, reactor, transport
        self.heartbeats, self.campaigns = heartbeats, campaigns
        self.confirmed: Confirmed | None = None
        """The last list of the leader's node had a row of this replica, which still fits."""
        self.rouse: Callable[[], None] = lambda: None
        """Has the group stepped soon."""
        self.log_event, self._on_state = log_event, on_state
        self.raft: SyncObj
        self.state = library.FOLLOWER
        self._nodes = {peer: Node(peer) for peer in self.library_peers}
        self._exposed: set[NodeId] = set()
        self.counters: Counter[str] = Counter()
        self.on_copy_request: Callable[[NodeId, peer_pb2.GroupMessage], None] = lambda peer, message: None
        self.on_copy_reply: Callable[[NodeId, peer_pb2.GroupMessage], None] = lambda peer, message: None
        self.on_copy_piece: Callable[[NodeId, peer_pb2.GroupMessage], None] = lambda peer, message: None
        self.on_behind: Callable[[int, NodeId], None] = lambda term, leader: None
        """The log of the leader of a term begins behind this replica's."""
        self.on_connected: Callable[[], None] = lambda: None
        """A leader's log goes on from this replica's, which was behind."""
        self.outbox = Outbox(
            group, generation, transport, term=lambda: self.raft.raftCurrentTerm, votes_durable=self.votes_durable
        )
        self.leading, self.following, self.elections = Leading(self), Following(self), Elections(self)

    def attach(self, raft: SyncObj) -> None:
        """Complete the guard."""
        self.raft = raft

    # ------------------------------------------------------------------ what the parts ask
    def now(self) -> float:
        """Monotonic seconds."""
        return self._reactor.now()

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return self._reactor.random()

    @property
    def term(self) -> int:
        """Current term."""
        return self.raft.raftCurrentTerm

    @property
    def election_timeout(self) -> float:
        """Seconds: the least one of this node now."""
        return self.heartbeats.timeouts.election_min

    @property
    def is_leader(self) -> bool:
        """The library says so."""
        return self.state == library.LEADER

    @property
    def is_candidate(self) -> bool:
        """The library says so."""
        return self.state == library.CANDIDATE

    def votes_durable(self) -> bool:
        """This group's last term or vote is on disk."""
        return self._votes.synced_op >= self.journal.vote_op

    @property
    def waits_for_votes(self) -> bool:
        """Something waits for the votes to become durable."""
        return self.outbox.holds or self.elections.disk_vote_due

    def count(self, event: str) -> None:
        """For tests and metrics."""
        self.counters[event] += 1

    # ------------------------------------------------------------------ doors of the library
    def inject(self, peer: NodeId, message: dict[str, Any]) -> None:
        """Deliver a message to the library."""
        self._onMessageReceived(self._nodes[peer], message)

    def inject_neutral(self, peer: NodeId) -> None:
        """This follower is alive; nothing else is said."""
        self.inject(peer, {"type": "next_node_idx", "reset": False, "success": False, "next_node_idx": 0})

    def inject_neutral_of(self, peer: NodeId, heard_at: float) -> None:
        """This follower was alive at a moment that is past: the library dates it then."""
        now, library.CLOCK.now = library.CLOCK.now, heard_at
        self.inject_neutral(peer)
        library.CLOCK.now = now

    def inject_reset(self, peer: NodeId, next_index: int) -> None:
        """Set nextIndex of a follower."""
        self.inject(peer, {"type": "next_node_idx", "reset": True, "success": False, "next_node_idx": next_index})

    def inject_match(self, peer: NodeId, match_index: int) -> None:
        """Set matchIndex of a follower."""
        self.inject(peer, {"type": "next_node_idx", "reset": False, "success": True, "next_node_idx": match_index + 1})

    def adopt_term(self, peer: NodeId, term: int) -> None:
        """A higher term was seen in a reply: step down through the front door. A last term of -1 is behind any log, so
        no vote is granted."""
        self.inject(peer, {"type": "request_vote", "term": term, "last_log_index": 0, "last_log_term": -1})

    def expose(self, peer: NodeId) -> None:
        """Let a leading library see this connection."""
        if self.is_leader and peer not in self._exposed:
            self._exposed.add(peer)
            self._onNodeConnected(self._nodes[peer])

    def hide(self, peer: NodeId) -> None:
        """The library sends nothing to a peer that it does not see."""
        if peer in self._exposed:
            self._exposed.discard(peer)
            self._onNodeDisconnected(self._nodes[peer])

    def is_exposed(self, peer: NodeId) -> bool:
        """The library sees the connection."""
        return peer in self._exposed

    def tick_exposed(self) -> None:
        """One tick in which a follower's library sees its peers: it campaigns."""
        for peer in self.library_peers:
            self._exposed.add(peer)
            self._onNodeConnected(self._nodes[peer])
        self.raft.doTick()
        if not self.is_leader:
            self._hide_all()

    def _hide_all(self) -> None:
        for peer in tuple(self._exposed):
            self.hide(peer)

    # ------------------------------------------------------------------ the library speaks
    def state_changed(self, old: int, new: int) -> None:
        """conf.onStateChanged: called in the middle of the library's step."""
        self.state = new
        self.journal.log.keeps_cached = new == library.LEADER
        if new == library.LEADER:
            self.leading.begin()
            self.elections.end()
            for peer in self.library_peers:
                self.expose(peer)
        elif old == library.LEADER:
            self._hide_all()
            self.leading.end()
            self.elections.stepped_down()
        self._on_state(old, new)

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        """The library's Transport.send. Replies to AppendEntries are the guard's own (`following`); client
        commands never leave the node.
        """
        peer, kind = NodeId(node.id), message["type"]
        if kind == "append_entries":
            self.leading.send_append(peer, message)
        elif kind == "request_vote":
            self.elections.request_votes(peer, message["term"], message["last_log_index"], message["last_log_term"])
        elif kind == "response_vote":
            self.elections.voted(peer)
        elif kind != "next_node_idx":
            raise InvariantViolation(f"the library sends {kind!r}")
        return True

    # ------------------------------------------------------------------ the world speaks
    def receive(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """One message of one peer (as the stream authenticated it)."""
        if peer not in self.peers or message.generation != self.generation:
            self.count("stranger")
            return
        body = message.WhichOneof("body")
        if body == "append_entries":
            self._on_append_entries(peer, message)
        elif body == "append_reply":
            self._on_append_reply(peer, message)
        elif body == "vote_request":
            self.elections.on_vote_request(peer, message)
        elif body == "vote_reply":
            self.elections.on_vote_reply(peer, message)
        elif body == "pre_vote_request":
            self.elections.on_pre_vote_request(peer, message)
        elif body == "pre_vote_reply":
            self.elections.on_pre_vote_reply(peer, message)
        elif body == "higher_term":
            if message.term > self.term:
                self.adopt_term(peer, message.term)
        elif body == "timeout_now":
            self.elections.on_timeout_now(peer, message)
        elif body == "copy_request":
            self.on_copy_request(peer, message)
        elif body == "copy_reply":
            self.on_copy_reply(peer, message)
            self.on_copy_piece(peer, message)
        else:
            self.count("unknown_body")

    def _on_append_entries(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        if message.term < self.term:
            reply = self.outbox.message()
            reply.higher_term.SetInParent()
            self.outbox.send(peer, reply)
        elif message.term == self.term and self.is_leader:
            raise InvariantViolation(f"node {peer} leads term {message.term}, which this replica leads")
        else:
            self.following.on_append(peer, message)

    def _on_append_reply(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        if message.term > self.term:
            self.adopt_term(peer, message.term)
        elif not self.is_leader or message.append_reply.echoed_term != self.term:
            self.count("stale_reply")
        else:
            self.leading.on_reply(peer, message)

    def fits(self, peer: NodeId, row: Row) -> bool:
        """Whether this replica is exactly what a row of a node's heartbeat says, durably."""
        fits = row.generation == self.generation and row.term == self.term and self.votes_durable()
        return fits and self.following.fits(peer, row)

    def confirm(self, peer: NodeId, row: Row, confirmed: Confirmed) -> bool:
        """The same; if so its leader was heard, now and with each list until `stir`."""
        if not self.fits(peer, row):
            return False
        self.elections.leader_heard()
        self.confirmed = confirmed
        return True

    def stir(self) -> None:
        """Something may change here: what was confirmed is to be compared again, and the election timer goes on."""
        if self.confirmed is not None:
            self.confirmed.end()
            self.elections.leader_was_heard(self.confirmed.heard_at)
            self.confirmed = None

    # ------------------------------------------------------------------ the host speaks
    def tick(self) -> None:
        """Timers, before the library's own tick."""
        if self.is_leader:
            self.leading.tick()
        else:
            self.following.tick()
            self.elections.tick()

    @property
    def deadline(self) -> float:
        """When `tick` has something to do without an event."""
        if self.is_leader:
            return self.leading.deadline
        return min(NEVER_DUE if self.confirmed else self.elections.deadline, self.following.reply_by)

    def on_log_synced(self) -> None:
        """The log's durable end moved."""
        if self.is_leader:
            self.leading.on_synced()
        else:
            self.following.on_synced()

    def on_votes_synced(self) -> None:
        """The node's votes are durable up to a new point."""
        self.outbox.release()
        self.elections.on_votes_durable()

    def peer_up(self, peer: NodeId) -> None:
        """A link stands."""
        if peer in self.peers:
            self.elections.peer_connected()

    def peer_down(self, peer: NodeId, *, gone: bool) -> None:
        """A link broke; `gone`: the peer's process has ended."""
        if peer not in self.peers:
            return
        if self.is_leader:
            self.leading.peer_lost(peer)
        elif self.following.leader == peer:
            if gone:
                self.elections.leader_gone(peer)
            else:
                self.elections.leader_cut_off()

    @property
    def commit_index(self) -> RaftIndex:
        """As the library has it."""
        return RaftIndex(self.raft.raftCommitIndex)
