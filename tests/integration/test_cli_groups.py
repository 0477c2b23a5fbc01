"""fluxctl groups, on a real cluster with real members."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from fluxctl.__main__ import app, hoist
from tests.integration.cluster import Cluster, produce_request, wait_until
from tests.integration.members import Member, wait_owned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cli-groups")) as running:
        yield running


def run(cluster: Cluster, *arguments: str, code: int = 0) -> Result:
    bootstrap = ",".join(node.address for node in cluster.nodes)
    result = CliRunner().invoke(app, hoist([*arguments, "--bootstrap", bootstrap]))
    assert result.exit_code == code, result.output
    return result


def offsets(cluster: Cluster, group: str) -> list[int | None]:
    described = json.loads(run(cluster, "groups", "describe", group, "-o", "json").stdout)
    return [partition["current_offset"] for partition in described[0]["partitions"]]


def test_groups_as_a_user_sees_them(cluster: Cluster) -> None:
    """Listed, described with lag and owners, members with the idle one said, deleted when nobody is there."""
    cluster.create_topic("orders", partitions=2)
    for number in range(6):
        cluster.node(1).log_stub.Produce(produce_request("orders", b"v", partition=number % 2), timeout=10)
    members = [Member(cluster.node(number), "billing", "orders", name=f"worker-{number}") for number in (1, 2, 3)]
    wait_owned("orders", 2, *members)
    owner = next(member for member in members if ("orders", 0) in member.owned)
    owner.commit(("orders", 0), 1)

    def stable() -> bool:
        listed = json.loads(run(cluster, "groups", "list", "-o", "json").stdout)
        return [(group["group"], group["state"], group["members"]) for group in listed] == [("billing", "Stable", 3)]

    wait_until(stable, "the group is stable")
    table = run(cluster, "groups", "describe", "billing").stdout.splitlines()
    assert table[0].split() == [
        "GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG", "LAG-SECONDS", "CONSUMER-ID", "HOST",
        "CLIENT",
    ]  # fmt: skip
    first = table[1].split()
    assert first[:6] == ["billing", "orders", "0", "1", "3", "2"]
    assert float(first[6]) > 0
    assert first[7] == owner.member_id.hex()[:8]
    assert "3 members (1 idle)" in table[3]
    shown = run(cluster, "groups", "describe", "billing", "--members").stdout
    assert shown.count(" idle ") == 1
    refused = run(cluster, "groups", "delete", "billing", "--yes", code=1)
    assert "GROUP_NOT_EMPTY" in refused.stderr
    refused = run(cluster, "groups", "reset-offsets", "billing", "--latest", "--execute", code=1)
    assert "GROUP_NOT_EMPTY" in refused.stderr
    for member in members:
        member.leave()
    run(cluster, "groups", "delete", "billing", "--yes")
    assert "UNKNOWN_GROUP" in run(cluster, "groups", "describe", "billing", code=1).stderr


def test_offsets_are_reset(cluster: Cluster) -> None:
    """To an end, an offset, a time, by a shift; shown first and done with --execute; kept within the partition."""
    cluster.create_topic("events", partitions=2)
    for number in range(20):
        cluster.node(1).log_stub.Produce(produce_request("events", b"v", partition=number % 2), timeout=10)
    reset = ("groups", "reset-offsets", "audit")
    dry = run(cluster, *reset, "--topic", "events", "--offset", "4")
    assert "--execute" in dry.stderr
    assert "UNKNOWN_GROUP" in run(cluster, "groups", "describe", "audit", code=1).stderr
    run(cluster, *reset, "--topic", "events", "--offset", "4", "--execute")
    assert offsets(cluster, "audit") == [4, 4]
    run(cluster, *reset, "--topic", "events:1", "--shift", "-2", "--execute")
    assert offsets(cluster, "audit") == [4, 2]
    run(cluster, *reset, "--shift-by", "100", "--execute")
    assert offsets(cluster, "audit") == [10, 10]
    run(cluster, *reset, "--to-earliest", "--execute")
    assert offsets(cluster, "audit") == [0, 0]
    run(cluster, *reset, "--by-duration", "1h", "--execute")
    assert offsets(cluster, "audit") == [0, 0]
    done = json.loads(run(cluster, *reset, "--time", "2100-01-01", "--execute", "-o", "json").stdout)
    assert [(each["current_offset"], each["new_offset"]) for each in done["offsets"]] == [(0, 10), (0, 10)]
    for wrong in (["--topic", "events"], ["--latest", "--shift", "1"], ["--topic", "events:7", "--latest"]):
        run(cluster, *reset, *wrong, code=2)
