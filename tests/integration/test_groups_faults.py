"""Consumer groups while members and coordinators are killed, stopped, restarted, or come and go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from fluxlog.checker.groups import GroupHistory, check_group
from fluxlog.v1 import errors_pb2
from tests.integration.cluster import Cluster, NodeProcess, code_of, error_info, produce_request, wait_until
from tests.integration.members import Key, Member, committed, wait_owned

pytestmark = pytest.mark.slow
PARTITIONS = 6


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


class MemberProcess:
    """`tests.integration.member_process`, and what it says."""

    def __init__(self, nodes: list[NodeProcess], history: GroupHistory, topic: str) -> None:
        self._history = history
        addresses = ",".join(node.address for node in nodes)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.member_process", addresses, history.group, topic],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._name = str(self.process.pid)
        self.owned: set[int] = set()
        self.records: list[tuple[int, int, str]] = []
        """(partition, offset, value), in the order in which they were handed out."""
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            match event["event"]:
                case "joined":
                    self.owned = set()
                case "assigned":
                    self.owned = set(event["owned"])
                    for number in event["added"]:
                        self._history.owned(self._name, str(number), event["generation"], event["at"])
                case "released" | "lost":
                    self.owned = self.owned - set(event["partitions"])
                case "records":
                    self.records += [(event["partition"], offset, value) for offset, value in event["values"]]
                    first = event["values"][0][0]
                    self._history.delivered(
                        self._name, str(event["partition"]), first, len(event["values"]), event["at"]
                    )
                case "committed":
                    self._history.committed(str(event["partition"]), event["offset"], event["invoked"], event["at"])
            self.said.append(event["event"])

    def say(self, line: str) -> None:
        """On its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL; what it had said is read."""
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def member_process(nodes: list[NodeProcess], history: GroupHistory, topic: str) -> Iterator[MemberProcess]:
    """One that is killed at the end; what it does goes into the group's history."""
    member = MemberProcess(nodes, history, topic)
    try:
        yield member
    finally:
        if member.process.poll() is None:
            member.kill()


def wait_shared(*members: MemberProcess) -> None:
    """Until each partition has one owner among the members, and each its even share."""

    def shared() -> bool:
        loads = [len(member.owned) for member in members]
        owned = sorted(number for member in members for number in member.owned)
        return owned == list(range(PARTITIONS)) and max(loads) - min(loads) <= 1

    wait_until(shared, f"{PARTITIONS} partitions are shared")


def produce(cluster: Cluster, topic: str, first: int, count: int) -> None:
    """Numbered values, spread over the partitions."""
    for number in range(first, first + count):
        partition = number % PARTITIONS

        def attempt(number: int = number, partition: int = partition) -> bool:
            node = next(node for node in cluster.nodes if node.running)
            request = produce_request(
                topic, b"%d" % number, partition=partition, producer_id=bytes([partition + 1]) * 16,
                base_sequence=number // PARTITIONS,
            )  # fmt: skip
            node.log_stub.Produce(request, timeout=5)
            return True

        wait_until(attempt, f"record {number} is acknowledged")


def check_history(history: GroupHistory, records: int) -> None:
    """No promise was broken, and every record was delivered."""
    verdict = check_group(history)
    assert verdict.valid, verdict.errors
    assert verdict.delivered == records


def test_a_killed_member_is_replaced_and_nothing_is_skipped(cluster: Cluster) -> None:
    """The other one gets all, from the committed offsets; what came again was not committed yet."""
    cluster.create_topic("kill", partitions=PARTITIONS)
    group = GroupHistory("kill")
    with (
        member_process(cluster.nodes, group, "kill") as first,
        member_process(cluster.nodes[1:], group, "kill") as second,
    ):
        wait_shared(first, second)
        produce(cluster, "kill", 0, 60)
        wait_until(lambda: bool(second.records), "the second consumes")
        second.kill()
        wait_shared(first)
        produce(cluster, "kill", 60, 60)
        wait_until(lambda: len({*first.records, *second.records}) == 120, "all is consumed")
        check_history(group, 120)


def test_a_stopped_member_loses_its_place_and_a_busy_one_does_not(cluster: Cluster) -> None:
    """SIGSTOP: no pings are answered, so the stream ends. A blocked interpreter: gRPC's own threads answer."""
    cluster.create_topic("still", partitions=PARTITIONS)
    group = GroupHistory("s")
    with (
        member_process(cluster.nodes, group, "still") as first,
        member_process(cluster.nodes[1:], group, "still") as second,
    ):
        wait_shared(first, second)
        before = set(second.owned)
        second.say("block 8")
        wait_until(lambda: "unblocked" in second.said, "it was blocked for longer than pings and a session last")
        assert second.owned == before
        assert first.owned == set(range(PARTITIONS)) - before
        second.process.send_signal(signal.SIGSTOP)
        wait_shared(first)
        second.process.send_signal(signal.SIGCONT)
        wait_shared(first, second)  # fenced, it has joined as a new member
        produce(cluster, "still", 0, 30)
        wait_until(lambda: len({*first.records, *second.records}) == 30, "all is consumed")
        check_history(group, 30)


def test_members_outlive_their_coordinator(cluster: Cluster) -> None:
    """SIGKILL of the coordinator's node: members come back with their ids and keep what they have; offsets survive."""
    cluster.create_topic("outlive", partitions=PARTITIONS)
    probe = Member(cluster.node(1), "out", "outlive")
    wait_until(lambda: probe.coordinator > 0, "joined")
    victim = probe.coordinator
    others = cluster.others(victim)
    first, second = (Member(node, "out", "outlive") for node in others)
    probe.leave()
    wait_owned("outlive", PARTITIONS, first, second)
    for number, key in enumerate(sorted(first.owned)):
        assert first.commit(key, number + 1).committed_offset == number + 1
    offsets, kept = committed(others[0], "out"), {member.member_id: set(member.owned) for member in (first, second)}
    cluster.node(victim).kill()
    for member in (first, second):
        assert member.ended.wait(20)
        assert member.error is not None
        assert code_of(member.error) is grpc.StatusCode.UNAVAILABLE
        assert error_info(member.error).metadata["retriable"] == "true"
    again = [come_back(cluster, member) for member in (first, second)]
    wait_owned("outlive", PARTITIONS, *again)
    assert {member.member_id: set(member.owned) for member in again} == kept
    assert committed(others[1], "out") == offsets
    late: Key = next(iter(again[0].owned))
    assert again[1].commit(late, 99).error.reason == errors_pb2.ERROR_REASON_FENCED_MEMBER
    for member in again:
        member.leave()


def come_back(cluster: Cluster, member: Member) -> Member:
    """Over whichever node takes it, until it is a member again."""
    tries: list[Member] = []

    def back() -> bool:
        if not tries or tries[-1].ended.is_set():
            nodes = [node for node in cluster.nodes if node.running]
            node = nodes[len(tries) % len(nodes)]
            tries.append(Member(node, member.group, "outlive", member_id=member.member_id))
        return tries[-1].epoch > 0

    wait_until(back, "it is back")
    assert tries[-1].resumed
    return tries[-1]


def test_a_rolling_restart_skips_nothing(cluster: Cluster) -> None:
    """Each node in turn is stopped in good order and started again while two members consume."""
    cluster.create_topic("roll", partitions=PARTITIONS)
    group = GroupHistory("r")
    with (
        member_process(cluster.nodes, group, "roll") as first,
        member_process(cluster.nodes[1:], group, "roll") as second,
    ):
        wait_shared(first, second)
        for turn, node in enumerate(cluster.nodes):
            produce(cluster, "roll", 30 * turn, 30)
            assert node.stop() == 0
            node.start()
            cluster.wait_ready()
            wait_shared(first, second)
        wait_until(lambda: len({*first.records, *second.records}) == 90, "all is consumed")
        check_history(group, 90)


def test_members_that_come_and_go(cluster: Cluster) -> None:
    """One joins and leaves over and over: the other never loses more than what it was asked for, and ends with all."""
    cluster.create_topic("churn", partitions=PARTITIONS)
    constant = Member(cluster.node(1), "churn", "churn")
    wait_owned("churn", PARTITIONS, constant)
    for turn in range(8):
        guest = Member(cluster.node(turn % 3 + 1), "churn", "churn")
        wait_owned("churn", PARTITIONS, constant, guest)
        assert not constant.lost
        guest.leave()
        wait_owned("churn", PARTITIONS, constant)
    assert len(constant.revoked) == 8 * PARTITIONS // 2, "each time half moves, and nothing else"
    constant.leave()
