"""How many messages one round of replication costs: each is a turn of the loop on both sides."""

from __future__ import annotations

from fluxd.core.types import NodeId
from tests.simulation.lab import Lab, is_append, is_heartbeat, is_reply


def test_a_round_costs_one_entry_one_reply_and_the_news_of_its_commit() -> None:
    """A follower whose disk is quick replies once, when the entry is durable."""
    lab = Lab()
    lab.elect(1)
    lab.run(0.02)
    before = len(lab.network.sent)
    lab.commit(1, b"x")
    lab.run(0.05)
    sent = [(source, target, message) for source, target, message in lab.network.sent[before:]]
    last = lab[1].log.last_index
    for follower in (2, 3):
        appends = [m for _, target, m in sent if target == follower and is_append(m)]
        acknowledged = [m for source, _, m in sent if source == follower and is_reply(m)]
        news = [m for _, target, m in sent if target == follower and is_heartbeat(m)]
        assert len(appends) == len(news) == 1
        assert news[0].append_entries.commit_index == last
        assert [m.append_reply.durable_index for m in acknowledged] == [last] * 2


def test_a_follower_with_a_slow_disk_says_soon_what_has_arrived() -> None:
    """Liveness does not wait for the disk."""
    lab = Lab()
    lab.elect(1)
    lab.nodes[NodeId(2)].speed.hung_until = lab.simulator.now + 4.0
    index = lab[1].log.last_index + 1
    lab.propose(1, b"x")
    lab.until(lambda: lab[1].guard.leading.progress[NodeId(2)].received == index, within=0.2)
    assert lab[1].guard.leading.progress[NodeId(2)].match < index
