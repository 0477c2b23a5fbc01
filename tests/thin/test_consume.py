"""The Consume stream on a real cluster: credits, acknowledgements, sharing, batches, and a coordinator that dies."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import grpc
import pytest

from fluxlog.batch import encode_batch
from fluxlog.codec import Codec
from fluxlog.v1 import consume_pb2, consume_pb2_grpc, log_pb2, record_pb2
from fluxlog.v1.errors_pb2 import ErrorReason
from tests.integration.cluster import Cluster, NodeProcess, error_info, produce_request, wait_until
from tests.integration.members import committed, describe

pytestmark = pytest.mark.slow
LARGEST = bytes(4_190_190)
"""The value of a record that is just delivered as a plain one; clients have gRPC's default limits."""


class Stream:
    """One client; it acknowledges what it is told to."""

    def __init__(self, node: NodeProcess, group: str, topic: str, **fields: object) -> None:
        self.topic = topic
        self.records: list[tuple[int, int, bytes]] = []
        self.entries: list[consume_pb2.Delivery] = []
        self.undeliverable: list[consume_pb2.Undeliverable] = []
        self.owned: set[int] = set()
        self.member_id = b""
        self.error: grpc.RpcError | None = None
        self.ended = threading.Event()
        self._requests: queue.SimpleQueue[consume_pb2.ConsumeRequest | None] = queue.SimpleQueue()
        subscribe = consume_pb2.Subscribe(group=group, topics=[topic], **fields)  # type: ignore[arg-type]
        self._requests.put(consume_pb2.ConsumeRequest(subscribe=subscribe))
        self._call = consume_pb2_grpc.ConsumerStub(node.channel).Consume(self._outgoing())
        threading.Thread(target=self._read, daemon=True).start()

    def _outgoing(self) -> Iterator[consume_pb2.ConsumeRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        try:
            for response in self._call:
                match response.WhichOneof("body"):
                    case "subscribed":
                        self.member_id = response.subscribed.member_id
                    case "changed":
                        self.owned = {each.partition for each in response.changed.owned}
                    case "delivery":
                        self._take(response.delivery)
                    case "undeliverable":
                        self.undeliverable.append(response.undeliverable)
        except grpc.RpcError as error:
            self.error = error
        self.ended.set()

    def _take(self, delivery: consume_pb2.Delivery) -> None:
        self.records += [(delivery.partition, record.offset, record.value) for record in delivery.records]
        if delivery.entries:
            self.entries.append(delivery)

    def ack(self, partition: int, first: int, last: int) -> None:
        """These are done."""
        ack = consume_pb2.Ack(topic=self.topic, partition=partition, first_offset=first, last_offset=last)
        self._requests.put(consume_pb2.ConsumeRequest(ack=ack))

    def leave(self) -> None:
        """Go; the stream ends in good order."""
        self._requests.put(consume_pb2.ConsumeRequest(leave=consume_pb2.LeaveGroup()))
        assert self.ended.wait(20)
        assert self.error is None
        self._requests.put(None)

    def hang_up(self) -> None:
        """The stream breaks."""
        self._call.cancel()
        self.ended.wait(20)
        self._requests.put(None)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("consume")) as running:
        yield running


def produce(cluster: Cluster, topic: str, count: int, partitions: int = 1) -> None:
    for number in range(count):
        request = produce_request(topic, b"%d" % number, partition=number % partitions)
        next(node for node in cluster.nodes if node.running).log_stub.Produce(request, timeout=10)


def test_credits_bound_what_is_not_acknowledged(cluster: Cluster) -> None:
    """Three credits, three records; one acknowledgement, one more; what is done without a gap is committed."""
    cluster.create_topic("credits")
    produce(cluster, "credits", 10)
    stream = Stream(cluster.node(1), "credits", "credits", credits=3)
    wait_until(lambda: len(stream.records) == 3, "three come")
    stream.ack(0, 1, 1)
    wait_until(lambda: len(stream.records) == 4, "one more comes")
    assert committed(cluster.node(2), "credits") == {}
    stream.ack(0, 0, 0)
    wait_until(lambda: committed(cluster.node(2), "credits") == {("credits", 0): 2}, "it is committed")
    wait_until(lambda: len(stream.records) == 5, "one more comes")
    stream.ack(0, 2, 4)
    stream.leave()
    assert committed(cluster.node(2), "credits") == {("credits", 0): 5}, "before the stream ended"
    again = Stream(cluster.node(3), "credits", "credits")
    wait_until(lambda: [offset for _, offset, _ in again.records] == [5, 6, 7, 8, 9], "the rest comes")
    again.leave()


def test_partitions_are_shared_when_they_are_drained(cluster: Cluster) -> None:
    """A partition goes on when what was delivered of it is acknowledged, and nothing comes twice then."""
    cluster.create_topic("drained", partitions=2)
    produce(cluster, "drained", 20, partitions=2)
    first = Stream(cluster.node(1), "drained", "drained", rebalance_timeout_ms=60_000)
    wait_until(lambda: len(first.records) == 20, "the first has all")
    second = Stream(cluster.node(2), "drained", "drained")
    wait_until(lambda: len(describe(cluster.node(3), "drained").members) == 2, "both are members")
    assert not second.owned
    for partition in (0, 1):
        first.ack(partition, 0, 9)
    wait_until(lambda: len(first.owned) == len(second.owned) == 1, "each has one")
    assert second.records == []
    assert committed(cluster.node(3), "drained") == {("drained", 0): 10, ("drained", 1): 10}
    first.leave()
    second.leave()


def test_what_was_not_acknowledged_comes_again(cluster: Cluster) -> None:
    """Within the session to the same member over another node; later to anybody."""
    cluster.create_topic("again")
    produce(cluster, "again", 5)
    stream = Stream(cluster.node(1), "again", "again", session_timeout_ms=1_000)
    wait_until(lambda: len(stream.records) == 5, "all come")
    stream.ack(0, 0, 1)
    wait_until(lambda: committed(cluster.node(1), "again") == {("again", 0): 2}, "two are committed")
    stream.hang_up()
    back = Stream(cluster.node(2), "again", "again", session_timeout_ms=1_000, member_id=stream.member_id)
    wait_until(lambda: [offset for _, offset, _ in back.records] == [2, 3, 4], "the rest comes again")
    back.hang_up()
    other = Stream(cluster.node(3), "again", "again")
    wait_until(lambda: [offset for _, offset, _ in other.records] == [2, 3, 4], "and to another one")
    other.leave()


def test_batches_and_the_latest(cluster: Cluster) -> None:
    """Entries as they are stored; from the end, where nothing was committed."""
    cluster.create_topic("batches")
    produce(cluster, "batches", 4)
    stored = Stream(cluster.node(1), "stored", "batches", as_batches=True)
    wait_until(lambda: bool(stored.entries) and stored.entries[-1].last_offset == 3, "all come")
    assert sum(entry.stamp.record_count for delivery in stored.entries for entry in delivery.entries) == 4
    stored.ack(0, 0, 3)
    stored.leave()
    assert committed(cluster.node(1), "stored") == {("batches", 0): 4}
    latest = Stream(cluster.node(2), "latest", "batches", start_at=consume_pb2.START_AT_LATEST)
    wait_until(lambda: bool(latest.owned), "it has the partition")
    produce(cluster, "batches", 50)
    wait_until(lambda: bool(latest.records), "what comes from now on")
    assert latest.records[0][1] >= 4
    latest.leave()


@pytest.fixture(scope="module")
def odd(cluster: Cluster) -> str:
    """A topic. In partition 0: a record, two that nobody can decompress, one too large for a plain response, and one
    that just fits. In partition 1: five records.
    """
    cluster.create_topic("odd", partitions=2)
    garbage = record_pb2.RecordBatch(
        record_count=2, codec=record_pb2.CODEC_ZSTD, value_lengths=[5, 5], columns=b"not zstd"
    )
    large = record_pb2.RecordBatch.FromString(encode_batch([bytes(5_000_000), LARGEST], codec=Codec.ZSTD))
    node = cluster.node(1)
    node.log_stub.Produce(produce_request("odd", b"first"), timeout=10)
    for batch in (garbage, large):
        node.log_stub.Produce(log_pb2.ProduceRequest(topic="odd", batch=batch), timeout=10)
    for number in range(5):
        node.log_stub.Produce(produce_request("odd", b"%d" % number, partition=1), timeout=10)
    return "odd"


def test_what_cannot_be_delivered_is_told_and_acknowledged(cluster: Cluster, odd: str) -> None:
    """With the offsets and a reason for each; their partition goes on behind them then, the other one all the time."""
    stream = Stream(cluster.node(2), "odd", odd, accepts_undeliverable=True)
    wait_until(lambda: len(stream.records) == 6 and len(stream.undeliverable) == 1, "all but what is behind it comes")
    stream.ack(0, 0, 0)
    stream.ack(1, 0, 4)
    stream.ack(0, 1, 2)
    wait_until(lambda: len(stream.undeliverable) == 2, "the next one is told")
    stream.ack(0, 3, 3)
    wait_until(lambda: (0, 4, LARGEST) in stream.records, "the record behind comes")
    stream.ack(0, 4, 4)
    stream.leave()
    assert [
        (each.topic, each.partition, each.first_offset, each.last_offset, ErrorReason.Name(each.error.reason))
        for each in stream.undeliverable
    ] == [
        (odd, 0, 1, 2, "ERROR_REASON_CORRUPT_BATCH"),
        (odd, 0, 3, 3, "ERROR_REASON_BATCH_TOO_LARGE"),
    ]
    assert committed(cluster.node(3), "odd") == {(odd, 0): 5, (odd, 1): 5}


def test_what_cannot_be_delivered_ends_the_stream_of_who_did_not_ask_for_it(cluster: Cluster, odd: str) -> None:
    """With the partition, and where to go on. So is a plain Fetch answered, through any node."""
    stream = Stream(cluster.node(1), "odd-ended", odd)
    assert stream.ended.wait(20)
    assert stream.error is not None
    info = error_info(stream.error)
    assert (info.reason, info.metadata["partition"], info.metadata["next_offset"]) == ("CORRUPT_BATCH", "odd-0", "3")
    for node in cluster.nodes:
        with pytest.raises(grpc.RpcError) as refused:
            node.log_stub.Fetch(log_pb2.FetchRequest(topic=odd, offset=3, as_records=True), timeout=10)
        info = error_info(refused.value)
        assert (info.reason, info.metadata["partition"], info.metadata["next_offset"]) == (
            "BATCH_TOO_LARGE",
            "odd-0",
            "4",
        )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"group": "", "topics": ["t"]}, "INVALID_GROUP_NAME"), ({"group": "g", "topics": ["t"], "credits": 10_001}, "")],
)
def test_bad_subscriptions_are_refused(cluster: Cluster, fields: dict[str, object], reason: str) -> None:
    """With a reason."""
    request = consume_pb2.ConsumeRequest(subscribe=consume_pb2.Subscribe(**fields))  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError) as refused:
        list(consume_pb2_grpc.ConsumerStub(cluster.node(1).channel).Consume(iter([request]), timeout=10))
    assert error_info(refused.value).reason == (reason or "INVALID_ARGUMENT")


def test_a_coordinator_that_dies_is_not_seen(cluster: Cluster) -> None:
    """The stream goes on, through the new coordinator and the new leaders; commits, too."""
    cluster.create_topic("unseen", partitions=3)
    stream = Stream(cluster.node(1), "unseen", "unseen")
    wait_until(lambda: len(stream.owned) == 3, "it owns all")
    victim = describe(cluster.node(1), "unseen").coordinator_node
    if victim == 1:  # the stream has to be at another node
        stream.leave()
        stream = Stream(cluster.node(2), "unseen", "unseen")
        wait_until(lambda: len(stream.owned) == 3, "it owns all")
    cluster.node(victim).kill()
    alive = cluster.others(victim)[0]
    sent = 0

    def send() -> bool:
        nonlocal sent
        request = produce_request("unseen", b"%d" % sent, partition=sent % 3, producer_id=bytes([sent % 3]) * 16,
                                  base_sequence=sent // 3)  # fmt: skip
        alive.log_stub.Produce(request, timeout=5)
        sent += 1
        return sent == 30

    wait_until(send, "30 records are acknowledged")
    wait_until(lambda: len(stream.records) == 30, "all come")
    for partition in range(3):
        stream.ack(partition, 0, 9)
    wanted = {("unseen", partition): 10 for partition in range(3)}
    wait_until(lambda: committed(alive, "unseen") == wanted, "all is committed")
    assert stream.error is None
    stream.leave()
