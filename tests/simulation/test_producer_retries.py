"""The four ways to break a producer table: each would write a batch twice, or answer for one that is gone."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.raft.proposal import Committed
from tests.simulation.lab import Lab, outcome

PRODUCER = bytes(range(16))


def test_a_retry_while_the_first_copy_waits_in_the_queue() -> None:
    """Both get the answer of the one copy that is written."""
    lab = Lab()
    lab.elect(1)
    blocker = lab.propose(1, b"blocker")
    lab.run(0.0001)
    first = lab.propose(1, b"value", PRODUCER, 0)
    retry = lab.propose(1, b"value", PRODUCER, 0)
    lab.until(lambda: bool(blocker and first and retry))
    assert isinstance(first[0], Committed) and isinstance(retry[0], Committed)
    assert first[0].base_offset == retry[0].base_offset and retry[0].duplicate
    assert lab.values(1).count(b"value") == 1


def test_survives_a_restart() -> None:
    """After all three processes were killed the retry is recognised by whoever leads."""
    lab = Lab()
    lab.elect(1)
    for n in range(5):
        answers = lab.propose(1, b"%d" % n, PRODUCER, n)
        lab.until(lambda answers=answers: bool(answers))  # type: ignore[misc]
    for node in (1, 2, 3):
        lab.kill(node, power=True)
    for node in (1, 2, 3):
        lab.start(node)
    lab.until(lambda: lab.leader() is not None)
    leader = lab.leader()
    assert leader is not None
    retry = lab.propose(leader, b"4", PRODUCER, 4)
    lab.until(lambda: bool(retry))
    assert isinstance(retry[0], Committed) and retry[0].duplicate and retry[0].base_offset == 4
    assert lab.values(leader).count(b"4") == 1


def test_a_deposed_leader_does_not_answer_from_an_entry_since_truncated() -> None:
    """The first copy was appended by a leader that lost it: the retry is written, and answered with its new place."""
    lab = Lab()
    lab.elect(1)
    lab.cut((1,), (2, 3))
    lost = lab.propose(1, b"value", PRODUCER, 0)
    lab.until(lambda: bool(lost), within=5.0)
    assert outcome(lost) == "UNKNOWN"
    lab.until(lambda: lab.leader() in (2, 3))
    leader = lab.leader()
    assert leader is not None
    other = lab.commit(leader, b"other")
    lab.heal()
    lab.until(lambda: lab[1].log.last.checksum == lab[leader].log.last.checksum)
    lab.elect(1)
    retry = lab.propose(1, b"value", PRODUCER, 0)
    lab.until(lambda: bool(retry))
    assert isinstance(retry[0], Committed)
    assert not retry[0].duplicate and retry[0].base_offset == other.base_offset + 1
    assert lab.values(1).count(b"value") == 1


def test_more_in_flight_than_the_window_is_refused_not_duplicated() -> None:
    """A sequence older than what is remembered is never written again, and never called rejected."""
    lab = Lab()
    lab.elect(1)
    for n in range(limits.PRODUCER_WINDOW_BATCHES + 4):
        answers = lab.propose(1, b"%d" % n, PRODUCER, n)
        lab.until(lambda answers=answers: bool(answers))  # type: ignore[misc]
    retry = lab.propose(1, b"1", PRODUCER, 1)
    lab.until(lambda: bool(retry))
    assert isinstance(retry[0], FluxError)
    assert retry[0].reason is Reason.DUPLICATE_FORGOTTEN
    assert lab.values(1).count(b"1") == 1
