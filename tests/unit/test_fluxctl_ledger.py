"""The demo's comparison finds what it is there to find; the tally counts every line."""

from __future__ import annotations

from pathlib import Path

from fluxctl.demo_ledger import Ledger
from fluxctl.exits import ExitCode
from fluxctl.failed_lines import FailedLines
from fluxctl.impact import impact_of
from fluxctl.tally import SentLines, Tally
from fluxlog.delivery import BatchResult
from fluxlog.errors import FluxlogError, Outcome
from fluxlog.v1 import admin_pb2


def _result(outcome: Outcome, values: list[bytes], base: int = -1, partition: int = 0) -> BatchResult:
    error = None if outcome is Outcome.COMMITTED else FluxlogError("NO_QUORUM", "nobody there", outcome=outcome)
    return BatchResult(partition, outcome, len(values), context=values, base_offset=base, copies_on_disk=2, error=error)


def _ledger(*batches: tuple[int, list[bytes]]) -> Ledger:
    ledger = Ledger()
    for base, values in batches:
        ledger.note(_result(Outcome.COMMITTED, values, base))
    return ledger


def test_a_log_that_holds_what_was_acknowledged_is_clean() -> None:
    """Also with another producer's records in between."""
    probe = _ledger((2, [b"p"]))
    verdict = _ledger((0, [b"a", b"b"]), (3, [b"c"])).compare({0: [b"a", b"b", b"p", b"c"]}, order_of=[probe])
    assert verdict.clean
    assert (verdict.records, verdict.acknowledged) == (4, 4)


def test_a_missing_record_is_lost() -> None:
    assert _ledger((0, [b"a", b"b"])).compare({0: [b"a"]}).lost == 1
    assert _ledger((0, [b"a", b"b"])).compare({}).lost == 2


def test_a_record_changed_at_its_offset_is_lost() -> None:
    assert _ledger((0, [b"a", b"b"])).compare({0: [b"a", b"x"]}).lost == 1


def test_a_record_that_nobody_was_told_of_is_a_duplicate() -> None:
    assert _ledger((0, [b"a"])).compare({0: [b"a", b"a"]}).duplicated == 1


def test_two_acknowledgements_of_one_offset_are_a_loss() -> None:
    assert not _ledger((0, [b"a"]), (0, [b"a"])).compare({0: [b"a"]}).clean


def test_batches_in_another_order_than_sent_are_found() -> None:
    verdict = _ledger((1, [b"b"]), (0, [b"a"])).compare({0: [b"a", b"b"]})
    assert (verdict.lost, verdict.out_of_order) == (0, 1)


def test_an_unknown_write_that_turns_up_is_no_duplicate() -> None:
    ledger = _ledger((0, [b"a"]))
    ledger.note(_result(Outcome.UNKNOWN, [b"u"]))
    verdict = ledger.compare({0: [b"a", b"u"]})
    assert verdict.clean
    assert verdict.unknown == 1
    assert not ledger.compare({0: [b"a", b"u", b"x"]}).clean


def test_the_tally_names_what_failed_and_keeps_its_lines(tmp_path: Path) -> None:
    """Rejected lines can be sent again; unknown ones are apart, since they may be there already."""
    failed_lines = FailedLines(tmp_path / "failed")
    tally = Tally(failed_lines)
    for outcome, number in ((Outcome.COMMITTED, 1), (Outcome.REJECTED, 2), (Outcome.UNKNOWN, 3)):
        context = SentLines([number], [b"line %d" % number])
        error = FluxlogError("NO_QUORUM", "nobody there", outcome=outcome)
        tally.note(BatchResult(0, outcome, 1, context=context, base_offset=5, error=error))
    assert [tally.count(outcome) for outcome in Outcome] == [1, 1, 1]
    assert tally.exit_code is ExitCode.UNKNOWN
    assert failed_lines.close() == ([tmp_path / "failed", tmp_path / "failed.unknown"], [])
    assert (tmp_path / "failed").read_bytes() == b"line 2\n"
    assert (tmp_path / "failed.unknown").read_bytes() == b"line 3\n"


def test_lines_are_counted_although_their_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "failed").mkdir()
    failed_lines = FailedLines(tmp_path / "failed")
    tally = Tally(failed_lines)
    for number in (1, 2):
        tally.refuse("BATCH_TOO_LARGE", "too long", [number], [b"line"])
    assert tally.count(Outcome.REJECTED) == 2
    written, (problem,) = failed_lines.close()
    assert written == []
    assert problem.startswith(f"{tmp_path / 'failed'} could not be written")


def test_a_file_of_failed_lines_on_a_full_disk_is_told_when_it_is_closed() -> None:
    failed_lines = FailedLines(Path("/dev/full"))
    failed_lines.keep(Outcome.REJECTED, [b"line"])
    written, (problem,) = failed_lines.close()
    assert written == []
    assert "No space left" in problem


def _topic(
    replicas: list[int], leader: int, states: dict[int, admin_pb2.ReplicaState.ValueType]
) -> admin_pb2.TopicDescription:
    topic = admin_pb2.TopicDescription(name="t", replication_factor=len(replicas))
    partition = topic.partitions.add(partition=0, leader_node=leader, replicas=replicas)
    for node_id in replicas:
        partition.replica_states.add(node_id=node_id, state=states.get(node_id, admin_pb2.REPLICA_STATE_FOLLOWER))
    return topic


def test_the_loss_of_a_leader_with_a_majority_left_costs_an_election() -> None:
    (impact,) = impact_of(1, [_topic([1, 2, 3], 1, {})], frozenset({1, 2, 3}))
    assert (impact.loses_leader, impact.loses_quorum) == (True, False)


def test_the_loss_of_a_follower_can_cost_the_quorum() -> None:
    """When another one is down, or takes no part."""
    (impact,) = impact_of(2, [_topic([1, 2, 3], 1, {})], frozenset({1, 2}))
    assert (impact.loses_leader, impact.loses_quorum) == (False, True)
    states: dict[int, admin_pb2.ReplicaState.ValueType] = {3: admin_pb2.REPLICA_STATE_UNADMITTED}
    (impact,) = impact_of(2, [_topic([1, 2, 3], 1, states)], frozenset({1, 2, 3}))
    assert impact.loses_quorum


def test_a_node_without_a_part_in_it_is_no_loss() -> None:
    assert impact_of(4, [_topic([1, 2, 3], 1, {})], frozenset({1, 2, 3, 4})) == []
    assert impact_of(2, [_topic([1, 2, 3], 1, {})], frozenset({1, 2, 3})) == []
