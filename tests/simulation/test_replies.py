"""How many messages one round of replication costs: each is a turn of the loop on both sides."""

from __future__ import annotations

from fluxd.core.errors import FluxError
from fluxd.core.types import NodeId
from fluxd.raft.following import REPLY_DELAY_MAX
from tests.simulation.lab import Lab, is_append, is_heartbeat, is_reply


def test_a_round_costs_one_entry_one_reply_and_the_news_of_its_commit() -> None:
    """A follower whose disk is quick replies once, when the entry is durable; the news is answered with what comes
    next, or soon after."""
    lab = Lab()
    lab.elect(1)
    lab.run(0.2)
    before = len(lab.network.sent)
    first = lab[1].log.last_index + 1
    for value in (b"x", b"y"):
        lab.commit(1, value)
        lab.run(0.01)
    sent = lab.network.sent[before:]
    for follower in (2, 3):
        appends = [m for _, target, m in sent if target == follower and is_append(m)]
        acknowledged = [m for source, _, m in sent if source == follower and is_reply(m)]
        news = [m for _, target, m in sent if target == follower and is_heartbeat(m)]
        assert len(appends) == 2
        assert [m.append_entries.commit_index for m in news] == [first, first + 1]
        assert [m.append_reply.durable_index for m in acknowledged] == [first, first + 1]
    lab.until(
        lambda: all(p.acked_sequence == p.sequence for p in lab[1].guard.leading.progress.values()),
        within=REPLY_DELAY_MAX + 0.02,
    )


def test_news_of_a_commit_that_asks_for_a_sign_of_life_is_answered_at_once() -> None:
    """A read that must be current, asked for when the commit is told to those who wait for it, goes with the news."""
    lab = Lab()
    lab.elect(1)
    lab.run(0.2)
    lab.kill(3)
    leader, confirmed = lab[1], list[FluxError | None]()
    leader.on_commit.append(lambda: leader.read_index(confirmed.append))
    lab.commit(1, b"x")
    leader.on_commit.clear()
    assert not confirmed
    lab.until(lambda: confirmed == [None], within=REPLY_DELAY_MAX / 2)


def test_a_follower_with_a_slow_disk_says_soon_what_has_arrived() -> None:
    """Liveness does not wait for the disk."""
    lab = Lab()
    lab.elect(1)
    lab.nodes[NodeId(2)].speed.hung_until = lab.simulator.now + 4.0
    index = lab[1].log.last_index + 1
    lab.propose(1, b"x")
    lab.until(lambda: lab[1].guard.leading.progress[NodeId(2)].received == index, within=0.2)
    assert lab[1].guard.leading.progress[NodeId(2)].match < index
