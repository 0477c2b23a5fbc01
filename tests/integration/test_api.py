"""The public API of a running cluster: any node serves any request, and bad input gets its own clear error."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from crc32c import crc32c
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fluxd.core.batch import batch_from_records
from fluxd.core.types import NodeId
from fluxd.peer.proof import Caller, new_nonce, prove
from fluxlog.v1 import admin_pb2, log_pb2, record_pb2
from tests.integration.cluster import (
    SECRET,
    Cluster,
    code_of,
    error_info,
    fetch_values,
    produce_request,
    raw_call,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes for all tests of this file."""
    with Cluster(Path(tmp_path_factory.mktemp("api"))) as running:
        yield running
        assert all(node.running for node in running.nodes), "no input may end a node"
        for node in running.nodes:
            assert "rpc_failed" not in node.log_text, "no input may show a defect"


def batch(*values: bytes, producer_id: bytes = b"", base_sequence: int = 0) -> bytes:
    """An encoded RecordBatch."""
    return batch_from_records(
        [record_pb2.Record(value=v, timestamp_ms=1) for v in values], producer_id, base_sequence, 1
    )


def refused(call: object, request: object, *, timeout: float = 10) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """The status, reason and metadata of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=timeout)  # type: ignore[operator]
    info = error_info(caught.value)
    return code_of(caught.value), info.reason, dict(info.metadata)


# ---- any node serves any request


def test_write_and_read_through_any_node(cluster: Cluster) -> None:
    """Created on one node, written through another, read from the third: at once."""
    cluster.create_topic("any", via=1)
    response = cluster.node(2).log_stub.Produce(produce_request("any", b"a", b"b"), timeout=10)
    assert (response.base_offset, response.record_count) == (0, 2)
    assert response.copies_on_disk >= 2
    assert response.leader.node_id == cluster.leader_of("any")
    assert response.leader.address == cluster.node(response.leader.node_id).address
    assert wait_until(lambda: fetch_values(cluster.node(3), "any"), "node 3 serves") == [b"a", b"b"]


def test_topic_is_known_everywhere_when_created(cluster: Cluster) -> None:
    """Whoever is told that a topic exists can use it through every node, however far behind its metadata is."""
    for number in range(5):
        name = f"fresh-{number}"
        cluster.node(1).admin.CreateTopic(admin_pb2.CreateTopicRequest(name=name, replication_factor=3), timeout=10)
        request = log_pb2.ListOffsetsRequest(queries=[log_pb2.OffsetQuery(topic=name, earliest=True)])
        for node in cluster.nodes:
            result = node.log_stub.ListOffsets(request, timeout=10).results[0]
            assert result.error.metadata.get("reason") != "UNKNOWN_TOPIC", result
            assert "there is no topic" not in result.error.message


def test_partition_with_one_replica_through_every_node(cluster: Cluster) -> None:
    """Nodes without a replica pass on Produce, Fetch, Follow and ListOffsets."""
    cluster.create_topic("one", partitions=1, replication_factor=1)
    for number, node in enumerate(cluster.nodes):
        response = node.log_stub.Produce(produce_request("one", b"%d" % number), timeout=10)
        assert (response.base_offset, response.copies_on_disk) == (number, 1)
    for node in cluster.nodes:
        assert fetch_values(node, "one") == [b"0", b"1", b"2"]
        following = node.log_stub.Follow(log_pb2.FollowRequest(topic="one", as_records=True), timeout=10)
        seen: list[bytes] = []
        while len(seen) < 3:
            seen += [record.value for record in next(following).records]
        following.cancel()
        assert seen == [b"0", b"1", b"2"]
        request = log_pb2.ListOffsetsRequest(queries=[log_pb2.OffsetQuery(topic="one", latest=True)])
        assert node.log_stub.ListOffsets(request, timeout=10).results[0].found.offset == 3


@pytest.mark.parametrize("node_id", [1, 2, 3])
def test_stream_keeps_the_order(cluster: Cluster, node_id: int) -> None:
    """300 requests over one stream, to partitions led anywhere: in order per partition, each answered once."""
    topic = f"stream-{node_id}"
    cluster.create_topic(topic, partitions=3)
    requests = [
        log_pb2.ProduceStreamRequest(
            correlation_id=number, request=produce_request(topic, b"%d" % number, partition=number % 3)
        )
        for number in range(300)
    ]
    answers = list(cluster.node(node_id).log_stub.ProduceStream(iter(requests), timeout=20))
    assert sorted(answer.correlation_id for answer in answers) == list(range(300))
    for answer in answers:
        assert answer.committed.base_offset == answer.correlation_id // 3, answer

    def complete(partition: int) -> list[bytes] | None:
        values = fetch_values(cluster.node(node_id), topic, partition)
        return values if len(values) == 100 else None

    for partition in range(3):
        values = wait_until(partial(complete, partition), "all are served")
        assert values == [b"%d" % number for number in range(partition, 300, 3)]


def test_stream_answers_errors_one_by_one(cluster: Cluster) -> None:
    """An error of one request of a stream is that request's alone."""
    cluster.create_topic("mixed")
    requests = [
        log_pb2.ProduceStreamRequest(correlation_id=1, request=produce_request("mixed", b"a")),
        log_pb2.ProduceStreamRequest(correlation_id=2, request=produce_request("nowhere", b"a")),
        log_pb2.ProduceStreamRequest(correlation_id=3, request=log_pb2.ProduceRequest(topic="mixed")),
        log_pb2.ProduceStreamRequest(correlation_id=4, request=produce_request("mixed", b"b")),
    ]
    answers = {a.correlation_id: a for a in cluster.node(1).log_stub.ProduceStream(iter(requests), timeout=10)}
    assert (answers[1].committed.base_offset, answers[4].committed.base_offset) == (0, 1)
    assert answers[2].error.reason == 7  # UNKNOWN_TOPIC
    assert answers[3].error.reason == 1  # INVALID_ARGUMENT
    assert answers[3].error.outcome == 2  # REJECTED


def test_encoded_batches_and_entries(cluster: Cluster) -> None:
    """What was sent as a batch comes back as the same bytes, inside an entry with the leader's stamp."""
    cluster.create_topic("batches")
    data = batch(b"x", b"y", b"z")
    request = log_pb2.ProduceRequest(
        topic="batches", batch=record_pb2.RecordBatch.FromString(data), batch_crc32c=crc32c(data)
    )
    for node in cluster.nodes:
        node.log_stub.Produce(request, timeout=10)
    leader = cluster.node(cluster.leader_of("batches"))
    response = leader.log_stub.Fetch(log_pb2.FetchRequest(topic="batches"), timeout=10)
    entries = [entry for entry in response.entries if entry.stamp.record_count]
    assert [b.SerializeToString() for entry in entries for b in entry.batches] == [data] * 3
    assert [entry.stamp.base_offset for entry in entries] == [0, 3, 6]
    assert (response.status.next_offset, response.status.high_watermark) == (9, 9)


def test_resend_is_written_once(cluster: Cluster) -> None:
    """The same producer id and sequence again, through another node: the first answer, nothing written."""
    cluster.create_topic("once")
    producer_id = os.urandom(16)
    request = produce_request("once", b"a", b"b", producer_id=producer_id)
    first = cluster.node(1).log_stub.Produce(request, timeout=10)
    again = cluster.node(2).log_stub.Produce(request, timeout=10)
    assert (first.duplicate, again.duplicate) == (False, True)
    assert first.base_offset == again.base_offset == 0
    gap = produce_request("once", b"c", producer_id=producer_id, base_sequence=7)
    assert refused(cluster.node(3).log_stub.Produce, gap)[1] == "OUT_OF_ORDER_SEQUENCE"


def test_expected_offset(cluster: Cluster) -> None:
    """Of several writers that expect the same end, one wins."""
    cluster.create_topic("events")
    cluster.node(1).log_stub.Produce(produce_request("events", b"a", expected_offset=0), timeout=10)
    code, reason, metadata = refused(
        cluster.node(2).log_stub.Produce, produce_request("events", b"b", expected_offset=0)
    )
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_EXPECTED_OFFSET")
    assert (metadata["log_end_offset"], metadata["outcome"]) == ("1", "REJECTED")


def test_long_poll_wakes_on_commit(cluster: Cluster) -> None:
    """A fetch at the end waits on every replica until something is committed, and not for its whole time."""
    cluster.create_topic("poll")
    cluster.node(1).log_stub.Produce(produce_request("poll", b"0"), timeout=10)
    results: dict[int, list[bytes]] = {}

    def wait(node_id: int) -> None:
        stub = cluster.node(node_id).log_stub
        request = log_pb2.FetchRequest(topic="poll", offset=1, max_wait_ms=20_000, as_records=True)
        results[node_id] = [record.value for record in stub.Fetch(request, timeout=30).records]

    threads = [threading.Thread(target=wait, args=(node.node_id,)) for node in cluster.nodes]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    cluster.node(2).log_stub.Produce(produce_request("poll", b"1"), timeout=10)
    for thread in threads:
        thread.join()
    assert results == {1: [b"1"], 2: [b"1"], 3: [b"1"]}
    assert time.monotonic() - started < 15


def test_long_poll_ends_empty(cluster: Cluster) -> None:
    """Nothing comes: an empty answer with the high watermark."""
    cluster.create_topic("quiet")
    request = log_pb2.FetchRequest(topic="quiet", max_wait_ms=100)
    for node in cluster.nodes:
        status = node.log_stub.Fetch(request, timeout=10).status
        assert (status.next_offset, status.high_watermark, status.served_by) == (0, 0, node.node_id)


def test_follow_goes_on(cluster: Cluster) -> None:
    """Follow delivers what is there and then what comes, through a follower, too."""
    cluster.create_topic("tail")
    cluster.node(1).log_stub.Produce(produce_request("tail", b"0"), timeout=10)
    following = cluster.node(3).log_stub.Follow(log_pb2.FollowRequest(topic="tail", as_records=True), timeout=20)
    seen = [record.value for record in next(following).records]
    for number in range(1, 4):
        cluster.node(1).log_stub.Produce(produce_request("tail", b"%d" % number), timeout=10)
        seen += [record.value for record in next(following).records]
    following.cancel()
    assert seen == [b"0", b"1", b"2", b"3"]


def test_follow_ends_when_the_topic_is_deleted(cluster: Cluster) -> None:
    """A reader that waits learns that its topic is gone."""
    cluster.create_topic("doomed")
    following = cluster.node(2).log_stub.Follow(log_pb2.FollowRequest(topic="doomed"), timeout=20)
    cluster.node(1).admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name="doomed"), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        next(following)
    assert error_info(caught.value).reason == "UNKNOWN_TOPIC"


def test_list_offsets(cluster: Cluster) -> None:
    """Earliest, latest and time, for partitions with leaders anywhere, and an error for one query alone."""
    cluster.create_topic("offsets", partitions=3)
    before_ms = time.time_ns() // 1_000_000
    for partition in range(3):
        for _ in range(partition + 1):
            cluster.node(1).log_stub.Produce(produce_request("offsets", b"v", partition=partition), timeout=10)
    query = log_pb2.OffsetQuery
    queries = [query(topic="offsets", partition=p, latest=True) for p in range(3)]
    queries += [
        query(topic="offsets", partition=2, earliest=True),
        query(topic="offsets", partition=2, time_ms=before_ms),
    ]
    queries += [
        query(topic="offsets", partition=2, time_ms=before_ms + 10**9),
        query(topic="offsets", partition=9, latest=True),
    ]
    for node in cluster.nodes:
        results = node.log_stub.ListOffsets(log_pb2.ListOffsetsRequest(queries=queries), timeout=10).results
        assert [result.found.offset for result in results[:6]] == [1, 2, 3, 0, 0, 3]
        assert results[4].found.append_time_ms >= before_ms
        assert results[6].error.reason == 8  # UNKNOWN_PARTITION


def test_health_and_reflection(cluster: Cluster) -> None:
    """The standard health service says SERVING for each service."""
    health = health_pb2_grpc.HealthStub(cluster.node(1).channel)
    for service in ("", "fluxlog.v1.Log", "fluxlog.v1.Admin"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


# ---- bad input


def test_offset_out_of_range(cluster: Cluster) -> None:
    """Said by every node on the leader's word, with the bounds."""
    cluster.create_topic("range")
    cluster.node(1).log_stub.Produce(produce_request("range", b"a"), timeout=10)
    for node in cluster.nodes:
        code, reason, metadata = refused(node.log_stub.Fetch, log_pb2.FetchRequest(topic="range", offset=5))
        assert (code, reason) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE")
        assert (metadata["log_start_offset"], metadata["high_watermark"]) == ("0", "1")


def _forged_stamp() -> bytes:
    """A batch that ends like an entry: another stamp, with offset 1000, behind it."""
    stamp = record_pb2.EntryStamp(
        base_offset=1_000, raft_index=1, leader_epoch=9, record_count=1, kind=record_pb2.ENTRY_KIND_RECORDS
    )
    return batch(b"a") + record_pb2.LogEntry(stamp=stamp).SerializeToString()


_WRONG_CRC = log_pb2.ProduceRequest(topic="bad", batch=record_pb2.RecordBatch.FromString(batch(b"a")), batch_crc32c=1)
_BOTH = log_pb2.ProduceRequest(
    topic="bad", batch=record_pb2.RecordBatch.FromString(batch(b"a")), records=[record_pb2.Record(value=b"b")]
)
_COUNTS_DISAGREE = log_pb2.ProduceRequest(
    topic="bad", batch=record_pb2.RecordBatch(record_count=3, value_lengths=[1], columns=b"a")
)
_DELTAS = log_pb2.ProduceRequest(
    topic="bad", batch=record_pb2.RecordBatch(record_count=1, value_lengths=[1], columns=b"a", offset_deltas=[5])
)


@pytest.mark.parametrize(
    ("request_message", "reason"),
    [
        (produce_request("nowhere", b"a"), "UNKNOWN_TOPIC"),
        (produce_request("", b"a"), "UNKNOWN_TOPIC"),
        (produce_request("bad", b"a", partition=7), "UNKNOWN_PARTITION"),
        (produce_request("bad", b"a", topic_id=bytes(16)), "TOPIC_ID_MISMATCH"),
        (produce_request("bad", b"a", topic_id=b"short"), "INVALID_ARGUMENT"),
        (produce_request("bad", b"a", timeout_ms=60_001), "INVALID_ARGUMENT"),
        (produce_request("bad"), "INVALID_ARGUMENT"),
        (produce_request("bad", b"a", producer_id=b"short"), "INVALID_ARGUMENT"),
        (produce_request("bad", b"a", producer_id=bytes(16), base_sequence=3), "UNKNOWN_PRODUCER"),
        (produce_request("bad", b"x" * (1 << 20)), "BATCH_TOO_LARGE"),
        (produce_request("__cluster_metadata", b"a"), "PERMISSION_DENIED"),
        (_WRONG_CRC, "WRONG_CHECKSUM"),
        (_BOTH, "INVALID_ARGUMENT"),
        (_COUNTS_DISAGREE, "CORRUPT_BATCH"),
        (_DELTAS, "CORRUPT_BATCH"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_produce(cluster: Cluster, request_message: log_pb2.ProduceRequest, reason: str) -> None:
    """Each wrong request gets its own reason, REJECTED, on the leader and on a node that passes it on."""
    cluster.node(1).admin.CreateTopic(
        admin_pb2.CreateTopicRequest(name="bad", if_not_exists=True, wait_ms=5_000), timeout=10
    )
    for node in cluster.nodes:
        _, actual, metadata = refused(node.log_stub.Produce, request_message)
        assert actual == reason
        assert metadata["outcome"] == "REJECTED"


def _raw_produce(cluster: Cluster, node_id: int, topic: str, data: bytes) -> bytes:
    """Send bytes as the batch of a ProduceRequest, whatever they are."""
    request = log_pb2.ProduceRequest(topic=topic).SerializeToString()
    length, head = len(data), bytearray(b"\x1a")
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return raw_call(cluster.node(node_id).channel, "/fluxlog.v1.Log/Produce", request + bytes(head) + data, timeout=10)[
        0
    ]


def test_forged_and_random_batches(cluster: Cluster) -> None:
    """A batch that tries to forge the stamp, and bytes that are no batch, are refused; the log's offsets stay dense."""
    cluster.create_topic("forged")
    chance = random.Random(1)
    attempts = [
        _forged_stamp(),
        b"\x0a\x35" + bytes(53),
        *(chance.randbytes(chance.randrange(1, 400)) for _ in range(60)),
    ]
    for number, data in enumerate(attempts):
        with pytest.raises(grpc.RpcError) as caught:
            _raw_produce(cluster, number % 3 + 1, "forged", data)
        assert error_info(caught.value).reason in ("CORRUPT_BATCH", "BATCH_TOO_LARGE")
    assert cluster.node(1).log_stub.Produce(produce_request("forged", b"a"), timeout=10).base_offset == 0


def test_random_bytes_on_every_method(cluster: Cluster) -> None:
    """Every method answers bytes that are no request with INVALID_ARGUMENT and our reason, and the node lives."""
    channel = cluster.node(2).channel
    garbage = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
    for descriptor in (log_pb2.DESCRIPTOR.services_by_name["Log"], admin_pb2.DESCRIPTOR.services_by_name["Admin"]):
        for method in descriptor.methods:
            path = f"/{descriptor.full_name}/{method.name}"
            kinds = ["stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming)]
            with pytest.raises(grpc.RpcError) as caught:
                raw_call(channel, path, garbage, kind="_".join(kinds), timeout=10)
            assert code_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT, path
            assert error_info(caught.value).reason == "INVALID_ARGUMENT", path


def test_random_small_bytes_never_show_a_defect(cluster: Cluster) -> None:
    """Short random requests, some of them valid protobuf: any answer but INTERNAL."""
    chance = random.Random(7)
    channel = cluster.node(3).channel
    methods = [
        f"/{service.full_name}/{method.name}"
        for service in (log_pb2.DESCRIPTOR.services_by_name["Log"], admin_pb2.DESCRIPTOR.services_by_name["Admin"])
        for method in service.methods
        if not method.client_streaming and not method.server_streaming
    ]
    for _ in range(150):
        path = chance.choice(methods)
        try:
            raw_call(channel, path, chance.randbytes(chance.randrange(0, 12)), timeout=10)
        except grpc.RpcError as error:
            assert error_info(error).reason not in ("INTERNAL", ""), path


def test_too_many_queries(cluster: Cluster) -> None:
    """No query at all is refused, too."""
    assert refused(cluster.node(1).log_stub.ListOffsets, log_pb2.ListOffsetsRequest())[1] == "INVALID_ARGUMENT"


def test_fetch_bounds(cluster: Cluster) -> None:
    """Bounds of a fetch are said."""
    stub = cluster.node(1).log_stub
    assert refused(stub.Fetch, log_pb2.FetchRequest(topic="bad", max_bytes=1 << 30))[1] == "INVALID_ARGUMENT"
    assert refused(stub.Fetch, log_pb2.FetchRequest(topic="bad", max_wait_ms=30_001))[1] == "INVALID_ARGUMENT"
    assert refused(stub.Fetch, log_pb2.FetchRequest(topic="nowhere"))[:2] == (
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_TOPIC",
    )


def test_stopping_needs_leave(cluster: Cluster) -> None:
    """Without allow_remote_stop nobody ends a node over the network."""
    for call, request in (
        (cluster.node(1).admin.StopNode, admin_pb2.StopNodeRequest(node_id=1)),
        (cluster.node(1).admin.KillNode, admin_pb2.KillNodeRequest(node_id=1)),
    ):
        assert refused(call, request)[:2] == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


# ---- strangers on the node-to-node service


def _hello(
    cluster: Cluster, *, secret: bytes = SECRET.encode(), to: int = 1, cluster_id: str = "", node: int = 2
) -> str:
    """The reason with which Hello is refused."""
    caller = Caller(NodeId(node), NodeId(to), os.urandom(16), cluster_id, new_nonce())
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(cluster.node(1).channel, "/fluxlog.v1.Peer/Hello", b"", metadata=prove(secret, caller), timeout=5)
    return str(error_info(caught.value).reason)


def test_strangers(cluster: Cluster) -> None:
    """No proof, another secret, another cluster, a number that is taken, a wrong address: each with its reason."""
    channel = cluster.node(1).channel
    for path in ("Control", "Bulk"):
        with pytest.raises(grpc.RpcError) as caught:
            raw_call(channel, f"/fluxlog.v1.Peer/{path}", b"", kind="stream_stream", timeout=5)
        assert error_info(caught.value).reason == "UNAUTHENTICATED"
    assert _hello(cluster, secret=b"not the cluster's secret") == "UNAUTHENTICATED"
    assert _hello(cluster, cluster_id="0" * 32) == "WRONG_CLUSTER"
    assert _hello(cluster) == "NODE_ID_IN_USE"
    assert _hello(cluster, node=1) == "NODE_ID_IN_USE"
    assert _hello(cluster, to=3) == "INVALID_ARGUMENT"


def test_stranger_cannot_forward(cluster: Cluster) -> None:
    """Only a node may say that it passes a request on."""
    with pytest.raises(grpc.RpcError) as caught:
        cluster.node(1).log_stub.Produce(produce_request("bad", b"a"), timeout=5, metadata=(("fluxd-forwarded", "1"),))
    assert error_info(caught.value).reason == "UNAUTHENTICATED"
