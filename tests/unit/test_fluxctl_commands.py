"""Commands as a user types them, on the fake cluster: results, one clear line for an error, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fluxctl import consume as consuming
from fluxctl.routes import TopicRoute, route_of
from fluxlog.admin import Admin
from fluxlog.v1 import record_pb2
from tests.unit.fluxctl_run import run
from tests.unit.fluxlog_fake import FakeCluster, Fault
from tests.unit.fluxlog_fake_groups import partition_of


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster(3)
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def no_local_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLUXCTL_DATA_DIR", str(tmp_path / "none"))


def lines_file(tmp_path: Path, lines: list[bytes]) -> str:
    path = tmp_path / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def test_topics_are_created_listed_described_and_deleted(cluster: FakeCluster) -> None:
    assert run(cluster, "topics", "create", "t", "-p", "2").exit_code == 0
    listed = json.loads(run(cluster, "topics", "list", "--output", "json").stdout)
    assert [(topic["name"], topic["partition_count"]) for topic in listed] == [("t", 2)]
    described = yaml.safe_load(run(cluster, "topics", "describe", "t", "-o", "yaml").stdout)
    assert described[0]["partitions"][1]["leader_node"] == 1
    table = run(cluster, "topics", "describe", "t", "--why").stdout
    assert "PartitionCount: 2" in table
    assert "all is well" in table
    assert run(cluster, "topics", "delete", "t", "--yes").exit_code == 0
    assert run(cluster, "topics", "delete", "t", "--yes").exit_code == 1
    assert run(cluster, "topics", "delete", "t", "--yes", "--if-exists").exit_code == 0


def test_a_topic_that_was_created_anew_is_not_consumed(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its partitions were looked up it was the one that the user meant; what comes is another one's."""

    def look_up(admin: Admin, name: str) -> TopicRoute:
        route = route_of(admin, name)
        cluster.create(name)
        return route

    cluster.create("t")
    monkeypatch.setattr(consuming, "route_of", look_up)
    result = run(cluster, "consume", "t", "--from-beginning")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "(TOPIC_ID_MISMATCH)" in result.stderr
    assert "begin anew" in result.stderr


def test_an_error_is_one_line_with_reason_and_advice(cluster: FakeCluster) -> None:
    result = run(cluster, "topics", "describe", "nope")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "(UNKNOWN_TOPIC)" in line
    assert "fluxctl topics list" in line
    assert "Traceback" in run(cluster, "topics", "describe", "nope", "--verbose").stderr


def test_wrong_usage_is_2(cluster: FakeCluster) -> None:
    for arguments in (
        ("topics", "create", "t", "--config", "x"),
        ("consume", "t", "--offset", "soon"),
        ("consume", "t", "--format", "%x"),
        ("produce", "t", "--codec", "rar"),
        ("nodes", "kill", "1", "--signal", "NONE"),
        ("nothing",),
    ):
        assert run(cluster, *arguments).exit_code == 2, arguments


def test_nobody_there_is_an_error_that_says_where_was_asked(cluster: FakeCluster) -> None:
    for node_id in (1, 2, 3):
        cluster.kill(node_id)
    result = run(cluster, "topics", "list")
    assert result.exit_code == 1
    assert "no node answers at" in result.stderr
    assert "(UNREACHABLE)" in result.stderr


def test_lines_go_round_robin_and_come_back(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.create("t", 3)
    lines = [b"line %d" % number for number in range(1_000)]
    result = run(cluster, "produce", "t", lines_file(tmp_path, lines), "--batch-lines", "7", "-o", "json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["lines"], report["acknowledged"], report["failures"]) == (1_000, 1_000, [])
    assert [len(partition.values) for partition in cluster.topics["t"]] == [334, 333, 333]
    consumed = run(cluster, "consume", "t", "--from-beginning", "--exit-at-end")
    assert consumed.exit_code == 0
    assert sorted(consumed.stdout_bytes.splitlines()) == sorted(lines)
    last = run(cluster, "consume", "t", "-p", "1", "-O", "-2", "-e", "-f", r"%p-%o %v\n")
    assert last.stdout.splitlines() == ["1-331 line 994", "1-332 line 997"]
    assert len(run(cluster, "consume", "t", "-b", "-n", "5").stdout.splitlines()) == 5


def test_lines_of_one_key_go_to_one_partition(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.create("t", 3)
    lines = [b"k%d:%d" % (number % 5, number) for number in range(100)] + [b"no key"]
    assert run(cluster, "produce", "t", lines_file(tmp_path, lines), "--key-separator", ":").exit_code == 0
    shown = run(cluster, "consume", "t", "-b", "-e", "-f", r"%k|%p|%v\n").stdout.splitlines()
    partitions: dict[str, set[str]] = {}
    for line in shown:
        key, partition, _ = line.split("|")
        partitions.setdefault(key, set()).add(partition)
    assert len(partitions) == 6
    assert all(len(numbers) == 1 for numbers in partitions.values())


def test_rejected_lines_are_named_kept_and_3(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.create("t")
    cluster.faults[0].extend([Fault.INVALID_ARGUMENT])
    lines = [b"line %d" % number for number in range(10)]
    failed = tmp_path / "failed"
    result = run(
        cluster, "produce", "t", lines_file(tmp_path, lines), "--batch-lines", "4", "--failed-file", str(failed)
    )
    assert result.exit_code == 3
    assert "6 acknowledged, 4 rejected, 0 unknown" in result.stdout
    assert "(INVALID_ARGUMENT): 1-4" in result.stderr
    assert failed.read_bytes().splitlines() == lines[:4]
    assert cluster.topics["t"][0].values == lines[4:]


@pytest.mark.parametrize("suffix", ["", ".unknown"])
def test_the_input_is_not_emptied_as_the_file_of_failed_lines(
    cluster: FakeCluster, tmp_path: Path, suffix: str
) -> None:
    cluster.create("t")
    cluster.faults[0].extend([Fault.INVALID_ARGUMENT])
    source = Path(lines_file(tmp_path, [b"a", b"b"]))
    (tmp_path / f"other{suffix}").hardlink_to(source)
    result = run(cluster, "produce", "t", str(source), "--failed-file", str(tmp_path / "other"))
    assert result.exit_code == 1
    assert "is the input" in result.stderr
    assert source.read_bytes() == b"a\nb\n"
    assert cluster.topics["t"][0].values == []


def test_a_file_of_failed_lines_that_cannot_be_made_is_refused_before_anything_is_sent(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    cluster.create("t")
    result = run(cluster, "produce", "t", lines_file(tmp_path, [b"a"]), "--failed-file", str(tmp_path / "none" / "f"))
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert cluster.topics["t"][0].values == []


def test_an_earlier_file_of_failed_lines_stays_while_nothing_fails(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.create("t")
    (tmp_path / "failed").write_bytes(b"before\n")
    arguments = ("produce", "t", lines_file(tmp_path, [b"a"]), "--failed-file", str(tmp_path / "failed"))
    assert run(cluster, *arguments).exit_code == 0
    assert (tmp_path / "failed").read_bytes() == b"before\n"
    assert not (tmp_path / "failed.unknown").exists()


def test_unknown_lines_are_4_and_retries_are_seen(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.create("t")
    cluster.faults[0].extend([Fault.OUTCOME_UNKNOWN_NOT_WRITTEN, *[Fault.NO_QUORUM] * 100_000])
    result = run(cluster, "produce", "t", lines_file(tmp_path, [b"a"]), "--timeout", "0.2")
    assert result.exit_code == 4
    assert "1 line unknown, may have been written" in result.stderr
    assert "again to" in result.stderr


def test_health_is_0_or_10(cluster: FakeCluster) -> None:
    assert run(cluster, "cluster", "health").exit_code == 0
    cluster.kill(2)
    result = run(cluster, "cluster", "health", "-o", "json")
    assert result.exit_code == 10
    assert "node 2" in json.loads(result.stdout)["problems"][0]
    assert run(cluster, "cluster", "wait", "--timeout", "0.1").exit_code == 10


def test_a_dry_run_says_what_a_kill_would_cost(cluster: FakeCluster) -> None:
    cluster.create("t", 2)
    result = run(cluster, "nodes", "kill", "1", "--dry-run")
    assert result.exit_code == 0
    assert "2 would lose the leader, 2 the quorum" in result.stdout
    assert cluster.up() == {1, 2, 3}


def test_the_clusters_own_topics_are_not_forgotten(cluster: FakeCluster) -> None:
    """Where it is about what is not well, or about a node that is to go; elsewhere only on demand."""
    cluster.create("__consumer_offsets", 2)
    result = run(cluster, "nodes", "kill", "1", "--dry-run")
    assert "of 2 partitions 2 would lose the leader, 2 the quorum" in result.stdout
    assert result.stdout.count("__consumer_offsets") == 2
    for arguments, shown in (
        (("topics", "describe", "--under-replicated"), True),
        (("topics", "list", "--under-replicated"), True),
        (("topics", "list", "--internal"), True),
        (("topics", "describe"), False),
        (("topics", "list"), False),
    ):
        assert ("__consumer_offsets" in run(cluster, *arguments).stdout) is shown, arguments


def test_leaders_that_are_missing_are_told_to_programs_too(cluster: FakeCluster) -> None:
    assert json.loads(run(cluster, "topics", "create", "a", "-o", "json").stdout)["all_leaders_elected"] is True
    cluster.elected.clear()
    result = run(cluster, "topics", "create", "b", "-o", "json")
    assert json.loads(result.stdout)["all_leaders_elected"] is False
    assert "not every partition had a leader" in result.stderr
    assert (
        json.loads(run(cluster, "topics", "create", "c", "--no-wait", "-o", "json").stdout)["all_leaders_elected"]
        is None
    )


def test_what_was_deleted_before_a_failure_is_told(cluster: FakeCluster, tmp_path: Path) -> None:
    """It is gone for good. The partition that fails keeps none of the others from it."""
    cluster.create("t", 3)
    lines = lines_file(tmp_path, [b"line %d" % number for number in range(9)])
    assert run(cluster, "produce", "t", lines, "--batch-lines", "1").exit_code == 0
    cluster.undeletable.add(1)
    for output, done in ((("-o", "json"), None), ((), "2 records deleted")):
        before = "2" if done is None else "3"
        result = run(cluster, "topics", "delete-records", "t", "--before", before, "--execute", *output)
        assert result.exit_code == 1
        assert "t-1: fake PERMISSION_DENIED (PERMISSION_DENIED)" in result.stderr
        if done is None:
            rows = json.loads(result.stdout)
            assert [(row["partition"], row["log_start_offset"], row["deleted"]) for row in rows] == [
                (0, 2, 2),
                (2, 2, 2),
            ]
        else:
            assert done in result.stdout
    assert [partition.log_start for partition in cluster.topics["t"]] == [3, 0, 3]


def test_groups_that_may_be_missing_are_1(cluster: FakeCluster) -> None:
    """Beside what is known."""
    cluster.coordinator.groups.append("billing")
    for arguments in (("groups", "list"), ("groups", "describe")):
        assert run(cluster, *arguments).exit_code == 0, arguments
    cluster.coordinator.missing_partitions.append(3)
    for command in ("list", "describe", "list -o json"):
        result = run(cluster, "groups", *command.split())
        assert result.exit_code == 1, command
        assert "billing" in result.stdout
        assert "partitions 3 of __consumer_offsets have no leader to ask" in result.stderr
    assert run(cluster, "groups", "describe", "billing").exit_code == 0


def test_a_members_name_is_no_markup(cluster: FakeCluster) -> None:
    """One with brackets in it must not keep all groups from being shown."""
    cluster.coordinator.groups.append("billing")
    cluster.coordinator.client_name = "[/x] :smile:"
    for arguments in (("groups", "describe"), ("groups", "describe", "--members")):
        result = run(cluster, *arguments)
        assert result.exit_code == 0, arguments
        assert "[/x] :smile:" in result.stdout


def test_a_group_of_no_topic_or_of_no_cluster_is_an_error(cluster: FakeCluster) -> None:
    """Instead of a member that waits for ever without a word."""
    result = run(cluster, "consume", "tpyo", "--group", "g")
    assert result.exit_code == 1
    assert "(UNKNOWN_TOPIC)" in result.stderr
    for node_id in (1, 2, 3):
        cluster.kill(node_id)
    result = run(cluster, "consume", "t", "--group", "g")
    assert result.exit_code == 1
    assert "(UNREACHABLE)" in result.stderr


def test_a_batch_that_a_member_cannot_decode_is_one_clear_error(cluster: FakeCluster) -> None:
    """What stands before it is printed; where to go on is said."""
    (partition,) = cluster.create("t")
    partition.append(record_pb2.RecordBatch(record_count=1, value_lengths=[6], columns=b"before"), [b"before"])
    partition.append(record_pb2.RecordBatch(record_count=2, value_lengths=[9], columns=b"cut"), [None, None])
    cluster.coordinator.assign(partition_of("t"), committed=0)
    result = run(cluster, "consume", "t", "--group", "g")
    assert result.exit_code == 1
    assert result.stdout == "before\n"
    assert "error: t-0: the batch at offsets 1..2 cannot be decoded" in result.stderr
    assert "groups reset-offsets g --topic t:0 --offset 3 --execute" in result.stderr


@pytest.mark.parametrize("command", ["", "topics", "cluster", "nodes", "demo", "produce", "consume", "topics create"])
def test_every_command_has_help(cluster: FakeCluster, command: str) -> None:
    result = run(cluster, *command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
