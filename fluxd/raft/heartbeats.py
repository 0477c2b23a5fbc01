"""One heartbeat for each pair of nodes, instead of one for each group that one of them leads.

A group *rests* towards a follower when nothing is under way between the two and the follower has acknowledged all of
the log, which is committed. Such groups are rows of one list, sent every HEARTBEAT_INTERVAL; neither side steps them.
The receiver compares each row with its replica and answers with the rows that do not fit exactly; those get
heartbeats of their own again, which can do what a row cannot: tell a term, a commit index, send again. So do all when
the link breaks, until the node there has answered a list again.

A row that fits is *confirmed*, and the receiver remembers that until anything is done with its replica (`Group._enter`,
through which all that goes) or the row is listed no more. While it does, the row fits in the next list as well: of a
list that is the last one again only rows that are not confirmed are compared, and of all the others it is noted once
that they were heard. Their election timers stand still meanwhile; they go on, from the last list, when none has come.

Why that is safe: **a row changes nothing in a group but the follower's election timer, and its answer nothing but the
leader's belief that the follower is there.** Neither moves a term, a vote, a match or a commit index, and a read that
must be current never counts an answer to a list. For both beliefs the same is asked as of an ordinary heartbeat: the
leader of exactly this term was heard; a replica was heard that is open, in exactly this term, durably, with the log on
its disk. A row is no claim about the past: it holds when its list arrives, and an answer counts for the rows of exactly
the list that it names, in the process that sent it.

The library hears of the answers when it is next stepped, dated when they came (`Leading.tick`): a leader that rested
would else find itself alone, and step down.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from fluxd.core import limits
from fluxd.core.runtime import NEVER, Reactor
from fluxd.core.types import GroupId, NodeId
from fluxd.raft.timeouts import Timeouts
from fluxd.raft.transport import Transport
from fluxlog.v1 import peer_pb2

_SILENT_EARLIER = 0.5 * limits.HEARTBEAT_INTERVAL
_OUTSTANDING_MAX = 32
_PAST_PROCESSES = 16
_NONCE_BITS = 53


class Row(NamedTuple):
    """What a list says of one group."""

    group: GroupId
    generation: int
    term: int
    last_index: int


class Rest:
    """That a group rests towards one follower.

    Args:
        roused: called when it cannot rest any more for a reason of the pair's.
        silent: called in each round in which lists are not answered.
    """

    __slots__ = ("_pair", "_since", "roused", "row", "silent")

    def __init__(self, pair: _Pair, row: Row, roused: Callable[[], None], silent: Callable[[], None]) -> None:
        self._pair, self.row, self.roused, self.silent = pair, row, roused, silent
        self._since = pair.round + 1

    @property
    def heard_at(self) -> float:
        """When the follower last confirmed this row."""
        return self._pair.heard_at if self._pair.confirmed_round >= self._since else NEVER

    def end(self) -> None:
        """The row goes. Harmless when it has gone."""
        if self._pair.rows.get(self.row.group) is self:
            del self._pair.rows[self.row.group]
            self._pair.listed = None


class _Pair:
    """This node as a leader, and one follower node."""

    def __init__(self) -> None:
        self.rows: dict[GroupId, Rest] = {}
        self.listed: tuple[Rest, ...] | None = None
        """The rows as `message` has them; None: they have changed."""
        self.message = peer_pb2.GroupMessage()
        self.round = self.confirmed_round = 0
        self.outstanding: deque[tuple[int, float, tuple[Rest, ...]]] = deque(maxlen=_OUTSTANDING_MAX)
        """Lists sent and not answered: (round, when, rows)."""
        self.heard_at = NEVER
        self.answers = False
        """The other node is there and answers lists."""

    def build(self, process_nonce: int) -> tuple[Rest, ...]:
        """Bring `message` up to date, but for the round."""
        if self.listed is None:
            self.listed = tuple(self.rows.values())
            heartbeat = peer_pb2.HeartbeatList(process_nonce=process_nonce)
            rows = [rest.row for rest in self.listed]
            topic_ids = dict.fromkeys(row.group.topic_id for row in rows)
            topics = {topic_id: number for number, topic_id in enumerate(topic_ids)}
            heartbeat.topic_ids.extend(topics)
            heartbeat.topics.extend([topics[row.group.topic_id] for row in rows])
            heartbeat.partitions.extend([row.group.partition for row in rows])
            heartbeat.generations.extend([row.generation for row in rows])
            heartbeat.terms.extend([row.term for row in rows])
            heartbeat.last_indexes.extend([row.last_index for row in rows])
            self.message.heartbeat_list.CopyFrom(heartbeat)
        return self.listed


class Confirmed:
    """That a replica here is what a row of its leader's node says, as long as nothing is done with it."""

    __slots__ = ("_leader", "row")

    def __init__(self, leader: _Leader, row: Row) -> None:
        self._leader, self.row = leader, row

    @property
    def heard_at(self) -> float:
        """When its last list came."""
        return self._leader.heard_at

    def end(self) -> None:
        """Something is done with the replica: the row is compared again. Harmless when it has ended."""
        if self._leader.confirmed.get(self.row) is self:
            del self._leader.confirmed[self.row]


class _Leader:
    """Another node, as one that leads groups of which there are followers here."""

    def __init__(self) -> None:
        self.process_nonce = self.round = 0
        """Of its last list."""
        self.past: deque[int] = deque(maxlen=_PAST_PROCESSES)
        """Its earlier processes: what they sent is stale."""
        self.rows: dict[Row, int] = {}
        """Those of its last list, with their numbers."""
        self._listed = peer_pb2.HeartbeatList()
        self.confirmed: dict[Row, Confirmed] = {}
        self.heard_at = NEVER
        """When its last list came. Invariant: at this moment what is in `confirmed` fitted."""

    def is_new(self, heartbeat: peer_pb2.HeartbeatList) -> bool:
        """A list of its present process, later than any other."""
        if heartbeat.process_nonce == self.process_nonce:
            if heartbeat.round <= self.round:
                return False
        else:
            if heartbeat.process_nonce in self.past:
                return False
            self.past.append(self.process_nonce)
        self.process_nonce, self.round = heartbeat.process_nonce, heartbeat.round
        return True

    def read(self, heartbeat: peer_pb2.HeartbeatList) -> list[Row]:
        """Bring `rows` up to date.

        Returns:
            Those that are confirmed, but not listed any more.

        Raises:
            ValueError, IndexError: the list cannot be read; nothing has changed.
        """
        self._listed.round = heartbeat.round
        if self._listed == heartbeat:
            return []
        topic_ids = heartbeat.topic_ids
        columns = zip(
            heartbeat.topics, heartbeat.partitions, heartbeat.generations, heartbeat.terms, heartbeat.last_indexes,
            strict=True,
        )  # fmt: skip
        rows = [Row(GroupId(topic_ids[topic], partition), *rest) for topic, partition, *rest in columns]
        numbers = {row: number for number, row in enumerate(rows)}
        if len(numbers) < len(rows):
            raise ValueError("a row stands twice in a list")
        self.rows = numbers
        self._listed.CopyFrom(heartbeat)
        return [row for row in self.confirmed if row not in numbers]


class Check(Protocol):
    """Whether this node's replica is exactly what a row says; it is heard of as `Confirmed` has it then."""

    def __call__(self, peer: NodeId, row: Row, confirmed: Confirmed) -> bool: ...


class Heartbeats:
    """Of one node, in both roles.

    Args:
        check: see there.
        lapsed: called when a row that is confirmed is listed no more, or no list comes: it ends, and its replica looks
            for itself.
    """

    def __init__(self, reactor: Reactor, transport: Transport, check: Check, lapsed: Callable[[GroupId], None]) -> None:
        self._reactor, self._transport, self._check, self._lapsed = reactor, transport, check, lapsed
        self._nonce = int(reactor.random() * (1 << _NONCE_BITS)) + 1
        self._pairs: dict[NodeId, _Pair] = {}
        self._leaders: dict[NodeId, _Leader] = {}
        self.counters: Counter[str] = Counter()
        self.timeouts = Timeouts()

    @property
    def _silent_after(self) -> float:
        """Seconds. A list that was not answered for so long: groups for which no majority is left are stepped, so that
        they notice. The others go on resting: a node that is slow to answer must not be sent many messages instead of
        one. A list that did not come for so long: the followers' election timers go on."""
        return self.timeouts.election_min - _SILENT_EARLIER

    # ------------------------------------------------------------------ the leader's side
    def rest(self, peer: NodeId, row: Row, *, roused: Callable[[], None], silent: Callable[[], None]) -> Rest | None:
        """List a group from the next round on; None: that node does not answer lists (now)."""
        pair = self._pairs.setdefault(peer, _Pair())
        if not pair.answers:
            return None
        rest = pair.rows[row.group] = Rest(pair, row, roused, silent)
        pair.listed = None
        return rest

    def beat(self) -> None:
        """Every HEARTBEAT_INTERVAL: one list for each node that groups here wanted to rest towards."""
        now = self._reactor.now()
        for peer, pair in self._pairs.items():
            if pair.outstanding and now - pair.outstanding[0][1] >= self._silent_after:
                self.counters["silent_rounds"] += 1
                for rest in tuple(pair.rows.values()):
                    rest.silent()
            listed = pair.build(self._nonce)
            pair.round += 1
            pair.message.heartbeat_list.round = pair.round
            self._transport.send(peer, pair.message)
            pair.outstanding.append((pair.round, now, listed))

    def answered(self) -> dict[NodeId, float]:
        """When each node that has answered lists did so the last time."""
        return {peer: pair.heard_at for peer, pair in self._pairs.items() if pair.heard_at != NEVER}

    def peer_up(self, peer: NodeId) -> None:
        """A link stands: lists go there from now on, be they empty, since their round trips are measured."""
        self._pairs.setdefault(peer, _Pair())

    def peer_lost(self, peer: NodeId) -> None:
        """Nothing rests towards that node until it has answered again."""
        self.timeouts.lost(peer)
        pair = self._pairs.get(peer)
        if pair is not None:
            pair.answers = False
            pair.outstanding.clear()
            for rest in tuple(pair.rows.values()):
                rest.roused()

    def on_reply(self, peer: NodeId, reply: peer_pb2.HeartbeatListReply) -> None:
        """An answer: counts for the rows of the list that it names."""
        pair = self._pairs.get(peer)
        if pair is None or reply.process_nonce != self._nonce:
            self.counters["foreign_list_reply"] += 1
            return
        while pair.outstanding and pair.outstanding[0][0] < reply.round:
            pair.outstanding.popleft()
        if not pair.outstanding or pair.outstanding[0][0] != reply.round:
            self.counters["stale_list_reply"] += 1
            return
        _, sent_at, listed = pair.outstanding.popleft()
        pair.answers = True
        if reply.timeouts_follow:
            self.timeouts.answered(peer, self._reactor.now() - sent_at)
        # first, so that what is named does not count as confirmed
        for number in reply.exceptions:
            if number < len(listed) and pair.rows.get(listed[number].row.group) is listed[number]:
                listed[number].roused()
        pair.confirmed_round, pair.heard_at = reply.round, self._reactor.now()

    # ------------------------------------------------------------------ the follower's side
    def on_list(self, peer: NodeId, heartbeat: peer_pb2.HeartbeatList) -> None:
        """A list: every row that is not confirmed is compared, and those that do not fit are named."""
        leader = self._leaders.setdefault(peer, _Leader())
        if not leader.is_new(heartbeat):
            self.counters["stale_list"] += 1
            return
        try:
            gone = leader.read(heartbeat)
        except (ValueError, IndexError):  # columns of different length, or a topic that is not there
            self.counters["bad_list"] += 1
            return
        for row in gone:
            self._lapsed(row.group)
        leader.heard_at = self._reactor.now()
        reply = peer_pb2.HeartbeatListReply(
            process_nonce=heartbeat.process_nonce, round=heartbeat.round, timeouts_follow=True
        )
        if len(leader.confirmed) < len(leader.rows):
            reply.exceptions.extend(self._compare(peer, leader))
        self._transport.send(peer, peer_pb2.GroupMessage(heartbeat_list_reply=reply))

    def _compare(self, peer: NodeId, leader: _Leader) -> list[int]:
        """Numbers of the rows that do not fit."""
        refused, known = [], len(leader.confirmed)
        for row, number in leader.rows.items():
            if row not in leader.confirmed:
                confirmed = Confirmed(leader, row)
                if self._check(peer, row, confirmed):
                    leader.confirmed[row] = confirmed
                else:
                    refused.append(number)
        self.counters["rows_checked"] += len(leader.rows) - known
        self.counters["rows_refused"] += len(refused)
        return refused

    def expire(self) -> None:
        """Now and then: followers of nodes from which no list comes look for themselves."""
        for leader in self._leaders.values():
            if leader.confirmed and self._reactor.now() - leader.heard_at >= self._silent_after:
                for row in tuple(leader.confirmed):
                    self._lapsed(row.group)
