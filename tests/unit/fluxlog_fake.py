"""A small cluster in this process behind the real gRPC stack: real servicers on loopback ports, records in lists.

It keeps the promises that the client relies on (order within a stream, a producer table, dense offsets, errors with
details) and breaks calls on demand: `faults` holds what the next produce requests of a partition meet.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import TypeVar

import grpc

from fluxlog.batch import decode_batch
from fluxlog.v1 import admin_pb2, admin_pb2_grpc, groups_pb2_grpc, log_pb2
from tests.unit.fluxlog_fake_groups import FakeCoordinator
from tests.unit.fluxlog_fake_partition import FakeError, FakePartition

Request = TypeVar("Request")
Response = TypeVar("Response")


class Fault(Enum):
    """What happens to one produce request."""

    NO_QUORUM = auto()
    NO_LEADER = auto()
    INVALID_ARGUMENT = auto()
    OUTCOME_UNKNOWN_WRITTEN = auto()
    OUTCOME_UNKNOWN_NOT_WRITTEN = auto()
    DISK_FULL = auto()
    """Not before an hour is over."""
    SILENCE = auto()
    """Not written, and never answered."""
    BREAK_BEFORE = auto()
    BREAK_AFTER = auto()


class _SilenceError(Exception):
    """Not to be answered."""


class FakeCluster:
    """Nodes 1..n. Node 1 leads everything unless told otherwise."""

    def __init__(self, nodes: int = 1) -> None:
        self.lock = threading.Lock()
        self.topics: dict[str, list[FakePartition]] = {}
        self.topic_ids: dict[str, bytes] = {}
        """One that is created again gets another one. Checked by Fetch."""
        self.faults: dict[int, deque[Fault]] = defaultdict(deque)
        self.produced = 0
        self.unanswered = threading.Event()
        """Some request has met Fault.SILENCE."""
        self.behind: dict[int, int] = {}
        """Nodes that are cut off from the others: the high watermark that each one stays at."""
        self.following: list[tuple[int, int]] = []
        """(node, offset) of each Follow."""
        self.tells_leaders = True
        """AwaitLeaders is known here."""
        self.elected = threading.Event()
        """Not set: no node knows of a leader."""
        self.elected.set()
        self.reads_need_leader = False
        """Of the replicas, none but the leader's can be reached."""
        self.refused = 0
        """Reads, for that reason."""
        self.awaited = 0
        """Calls of AwaitLeaders that were answered."""
        self.asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        """Partitions of each AwaitLeaders that was answered or waits."""
        self.ignorant: set[int] = set()
        """Nodes that have not heard of any topic yet."""
        self.answers_together = 1
        """So many requests of one ProduceStream are answered by one message, when they have all come."""
        self.requests: list[tuple[int, bytes, int]] = []
        self.undeletable: set[int] = set()
        """Partitions of which no records can be deleted."""
        self.kill_answer = grpc.StatusCode.UNAVAILABLE
        """What becomes of a KillNode: the status that its caller sees."""
        self.coordinator = FakeCoordinator()  # type: ignore[abstract]
        """Of the groups, on any node."""
        self.addresses: dict[int, str] = {}
        self._servers: dict[int, grpc.Server] = {}
        for node_id in range(1, nodes + 1):
            self.start(node_id)

    def start(self, node_id: int) -> None:
        options = [("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)]  # clients may ping, as on a real node
        server = grpc.server(ThreadPoolExecutor(16), options=options)
        log = _Log(self, node_id)
        server.add_generic_rpc_handlers((log.handlers(),))
        admin_pb2_grpc.add_AdminServicer_to_server(_Admin(self, node_id), server)  # type: ignore[abstract]
        groups_pb2_grpc.add_GroupsServicer_to_server(self.coordinator, server)
        port = server.add_insecure_port(self.addresses.get(node_id, "127.0.0.1:0"))
        self.addresses[node_id] = f"127.0.0.1:{port}" if ":" not in str(port) else str(port)
        server.start()
        self._servers[node_id] = server

    def kill(self, node_id: int) -> None:
        """Connections break; another node leads."""
        self._servers.pop(node_id).stop(None).wait()
        for partitions in self.topics.values():
            for partition in partitions:
                if partition.leader == node_id and self._servers:
                    partition.leader = min(self._servers)
                    partition.epoch += 1

    def stop(self) -> None:
        for server in list(self._servers.values()):
            server.stop(None).wait()

    def up(self) -> set[int]:
        return set(self._servers)

    def create(self, name: str, partitions: int = 1) -> list[FakePartition]:
        self.topic_ids[name] = bytes(16) if name not in self.topic_ids else bytes([self.topic_ids[name][0] + 1]) * 16
        self.topics[name] = [FakePartition(min(self._servers)) for _ in range(partitions)]
        return self.topics[name]

    def partition(self, topic: str, number: int) -> FakePartition:
        if topic not in self.topics:
            raise FakeError("UNKNOWN_TOPIC")
        if number >= len(self.topics[topic]):
            raise FakeError("UNKNOWN_PARTITION")
        return self.topics[topic][number]

    def check_served(self, partition: FakePartition, node_id: int) -> None:
        """Raises NO_LEADER where a node has nothing to serve a read from."""
        if self.reads_need_leader and not (self.elected.is_set() and node_id == partition.leader):
            with self.lock:
                self.refused += 1
            raise FakeError("NO_LEADER", retriable=True)

    def hint(self, partition: FakePartition) -> log_pb2.LeaderHint:
        return log_pb2.LeaderHint(
            node_id=partition.leader, address=self.addresses[partition.leader], leader_epoch=partition.epoch
        )

    def produce(self, request: log_pb2.ProduceRequest) -> tuple[log_pb2.ProduceResponse, Fault | None]:
        """Commit, or raise; a fault that breaks the connection afterwards is returned."""
        with self.lock:
            self.produced += 1
            batch = request.batch
            self.requests.append((request.partition, batch.producer_id, batch.base_sequence))
            partition = self.partition(request.topic, request.partition)
            faults = self.faults[request.partition]
            fault = faults.popleft() if faults else None
            match fault:
                case Fault.NO_QUORUM | Fault.NO_LEADER:
                    raise FakeError(fault.name, retriable=True, missing_nodes="2,3", partition=str(request.partition))
                case Fault.INVALID_ARGUMENT:
                    raise FakeError("INVALID_ARGUMENT")
                case Fault.OUTCOME_UNKNOWN_NOT_WRITTEN:
                    raise FakeError("OUTCOME_UNKNOWN", outcome="UNKNOWN", retriable=True)
                case Fault.DISK_FULL:
                    raise FakeError("DISK_FULL", retriable=True, retry_after_ms=3_600_000)
                case Fault.SILENCE:
                    raise _SilenceError
                case Fault.BREAK_BEFORE:
                    raise ConnectionError
                case _:
                    pass
            key = (batch.producer_id, batch.base_sequence)
            duplicate = key in partition.written
            if not duplicate:
                if batch.base_sequence and batch.producer_id not in partition.next_sequence:
                    raise FakeError("UNKNOWN_PRODUCER")
                expected = partition.next_sequence[batch.producer_id]
                if batch.base_sequence != expected:
                    raise FakeError("OUT_OF_ORDER_SEQUENCE", expected_sequence=str(expected))
                partition.next_sequence[batch.producer_id] += batch.record_count
                partition.written[key] = partition.append(batch, decode_batch(batch).values())
            if fault is Fault.OUTCOME_UNKNOWN_WRITTEN:
                raise FakeError("OUTCOME_UNKNOWN", outcome="UNKNOWN", retriable=True)
            response = log_pb2.ProduceResponse(
                base_offset=partition.written[key],
                record_count=batch.record_count,
                leader_epoch=1,
                copies_on_disk=2,
                duplicate=duplicate,
                leader=self.hint(partition),
            )
            return response, fault


class _Log:
    def __init__(self, cluster: FakeCluster, node_id: int) -> None:
        self._cluster, self._node_id = cluster, node_id

    def handlers(self) -> grpc.GenericRpcHandler:
        """By hand, since Fetch answers with bytes as they are: parsing and encoding them again would give others."""
        return grpc.method_handlers_generic_handler(
            "fluxlog.v1.Log",
            {
                "Produce": grpc.unary_unary_rpc_method_handler(
                    self.Produce, log_pb2.ProduceRequest.FromString, log_pb2.ProduceResponse.SerializeToString
                ),
                "ProduceStream": grpc.stream_stream_rpc_method_handler(
                    self.ProduceStream,
                    log_pb2.ProduceStreamRequest.FromString,
                    log_pb2.ProduceStreamResponse.SerializeToString,
                ),
                "Fetch": grpc.unary_unary_rpc_method_handler(self.fetch_bytes, log_pb2.FetchRequest.FromString, bytes),
                "Follow": grpc.unary_stream_rpc_method_handler(self.follow, log_pb2.FollowRequest.FromString, bytes),
                "ListOffsets": grpc.unary_unary_rpc_method_handler(
                    self.ListOffsets,
                    log_pb2.ListOffsetsRequest.FromString,
                    log_pb2.ListOffsetsResponse.SerializeToString,
                ),
            },
        )

    def ProduceStream(
        self, request_iterator: Iterator[log_pb2.ProduceStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[log_pb2.ProduceStreamResponse]:
        together: list[log_pb2.ProduceStreamResponse] = []
        for answer in self._answers(request_iterator, context):
            together.append(answer)
            if len(together) == self._cluster.answers_together:
                together[0].more.extend(together[1:])
                yield together[0]
                together = []

    def _answers(
        self, request_iterator: Iterator[log_pb2.ProduceStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[log_pb2.ProduceStreamResponse]:
        for item in request_iterator:
            assert item.accepts_more or self._cluster.answers_together == 1
            try:
                response, fault = self._cluster.produce(item.request)
            except FakeError as error:
                yield log_pb2.ProduceStreamResponse(correlation_id=item.correlation_id, error=error.message())
                continue
            except _SilenceError:
                self._cluster.unanswered.set()
                continue
            except ConnectionError:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")
            if fault is Fault.BREAK_AFTER:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")
            yield log_pb2.ProduceStreamResponse(correlation_id=item.correlation_id, committed=response)

    def Produce(self, request: log_pb2.ProduceRequest, context: grpc.ServicerContext) -> log_pb2.ProduceResponse:
        try:
            return self._cluster.produce(request)[0]
        except FakeError as error:
            error.abort(context)
            raise

    def fetch_bytes(self, request: log_pb2.FetchRequest, context: grpc.ServicerContext) -> bytes:
        cluster = self._cluster
        try:
            partition = cluster.partition(request.topic, request.partition)
            if request.topic_id not in (b"", cluster.topic_ids[request.topic]):
                raise FakeError("TOPIC_ID_MISMATCH")
            cluster.check_served(partition, self._node_id)
            partition.check_range(request.offset)
        except FakeError as error:
            error.abort(context)
            raise
        end = len(partition.values)
        entries, next_offset = b"", request.offset
        for frame, base in zip(partition.frames, partition.bases, strict=True):
            entry = log_pb2.FetchResponse.FromString(frame).entries[0]
            if base + entry.stamp.record_count > request.offset and len(entries) + len(frame) <= (1 << 20):
                entries += frame
                next_offset = base + entry.stamp.record_count
        status = log_pb2.FetchStatus(
            high_watermark=end, next_offset=next_offset, leader=cluster.hint(partition), served_by=self._node_id
        )
        return log_pb2.FetchResponse(status=status).SerializeToString() + entries

    def follow(self, request: log_pb2.FollowRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Committed entries as they come; looks for new ones often."""
        self._cluster.following.append((self._node_id, request.offset))
        partition = self._cluster.topics[request.topic][request.partition]
        try:
            self._cluster.check_served(partition, self._node_id)
            partition.check_range(request.offset)
        except FakeError as error:
            error.abort(context)
        offset = request.offset
        while context.is_active():
            bound = self._cluster.behind.get(self._node_id, len(partition.values))
            frames = [
                frame
                for frame, base, end in zip(partition.frames, partition.bases, partition.ends(), strict=False)
                if base < bound and offset < end
            ]
            if not frames:
                time.sleep(0.01)
                continue
            entries = b"".join(frames)
            offset = min(bound, len(partition.values))
            if partition.corrupt_next:
                partition.corrupt_next = False
                entries = entries[:-1] + bytes([entries[-1] ^ 1])
            status = log_pb2.FetchStatus(high_watermark=bound, next_offset=offset, served_by=self._node_id)
            yield log_pb2.FetchResponse(status=status).SerializeToString() + entries

    def ListOffsets(
        self, request: log_pb2.ListOffsetsRequest, context: grpc.ServicerContext
    ) -> log_pb2.ListOffsetsResponse:
        results = []
        for query in request.queries:
            result = log_pb2.OffsetResult(topic=query.topic, partition=query.partition)
            try:
                partition = self._cluster.partition(query.topic, query.partition)
                offset = partition.log_start if query.WhichOneof("at") == "earliest" else len(partition.values)
                if query.WhichOneof("at") == "time_ms":
                    offset = next((base for base in partition.bases if 1_000 + base >= query.time_ms), offset)
                result.found.offset = offset
            except FakeError as error:
                result.error.CopyFrom(error.message())
            results.append(result)
        return log_pb2.ListOffsetsResponse(results=results)


def _answered(
    method: Callable[[_Admin, Request], Response],
) -> Callable[[_Admin, Request, grpc.ServicerContext], Response]:
    def call(self: _Admin, request: Request, context: grpc.ServicerContext) -> Response:
        try:
            return method(self, request)
        except FakeError as error:
            error.abort(context)
            raise

    return call


class _Admin(admin_pb2_grpc.AdminServicer):
    def __init__(self, cluster: FakeCluster, node_id: int) -> None:
        self._cluster, self._node_id = cluster, node_id

    def DescribeCluster(
        self, request: admin_pb2.DescribeClusterRequest, context: grpc.ServicerContext
    ) -> admin_pb2.DescribeClusterResponse:
        cluster = self._cluster
        nodes = [
            admin_pb2.NodeDescription(
                node_id=node_id,
                address=address,
                state=admin_pb2.NODE_STATE_UP if node_id in cluster.up() else admin_pb2.NODE_STATE_DOWN,
                last_heard_ms=0,
                version="0.1.0",
            )
            for node_id, address in sorted(cluster.addresses.items())
        ]
        return admin_pb2.DescribeClusterResponse(
            cluster_id="fake", node_id=self._node_id, controller_node=min(cluster.up()), nodes=nodes,
            topics=len(cluster.topics),
        )  # fmt: skip

    def AwaitLeaders(
        self, request: admin_pb2.AwaitLeadersRequest, context: grpc.ServicerContext
    ) -> admin_pb2.AwaitLeadersResponse:
        cluster = self._cluster
        if not cluster.tells_leaders:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "an older version")
        cluster.awaited += 1
        cluster.asked.put(len(request.partitions))
        response = admin_pb2.AwaitLeadersResponse()
        if not cluster.elected.wait(request.max_wait_ms / 1000):
            return response
        for asked in request.partitions:
            partition = cluster.partition(asked.topic, asked.partition)
            if partition.epoch > asked.after_epoch:
                response.leaders.add(
                    topic=asked.topic, partition=asked.partition, node_id=partition.leader,
                    address=cluster.addresses[partition.leader], leader_epoch=partition.epoch,
                )  # fmt: skip
        return response

    @_answered
    def CreateTopic(self, request: admin_pb2.CreateTopicRequest) -> admin_pb2.CreateTopicResponse:
        if request.name in self._cluster.topics and not request.if_not_exists:
            raise FakeError("TOPIC_EXISTS")
        created = request.name not in self._cluster.topics
        if created:
            self._cluster.create(request.name, request.partitions or 1)
        return admin_pb2.CreateTopicResponse(
            name=request.name,
            topic_id=self._cluster.topic_ids[request.name],
            created=created,
            partitions=request.partitions or 1,
            replication_factor=request.replication_factor or 1,
            all_leaders_elected=self._cluster.elected.is_set(),
        )

    def ListTopics(
        self, request: admin_pb2.ListTopicsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListTopicsResponse:
        return admin_pb2.ListTopicsResponse(
            topics=[
                admin_pb2.TopicSummary(
                    name=name,
                    topic_id=self._cluster.topic_ids[name],
                    partitions=len(partitions),
                    replication_factor=1,
                    internal=name.startswith("__"),
                )
                for name, partitions in self._cluster.topics.items()
                if request.include_internal or not name.startswith("__")
            ]
        )

    def DescribeTopics(
        self, request: admin_pb2.DescribeTopicsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.DescribeTopicsResponse:
        response = admin_pb2.DescribeTopicsResponse()
        for name in request.names or [name for name in self._cluster.topics if not name.startswith("__")]:
            if name not in self._cluster.topics or self._node_id in self._cluster.ignorant:
                response.errors.append(FakeError("UNKNOWN_TOPIC").message())
                continue
            topic = response.topics.add(name=name, topic_id=self._cluster.topic_ids[name], replication_factor=1)
            for number, partition in enumerate(self._cluster.topics[name]):
                description = topic.partitions.add(
                    partition=number,
                    leader_node=partition.leader,
                    leader_epoch=1,
                    replicas=[partition.leader],
                    isr=[partition.leader],
                    high_watermark=len(partition.values),
                    log_end_offset=len(partition.values),
                )
                description.replica_states.add(
                    node_id=partition.leader, state=admin_pb2.REPLICA_STATE_LEADER, last_heard_ms=0, in_sync=True
                )
        return response

    @_answered
    def DeleteTopic(self, request: admin_pb2.DeleteTopicRequest) -> admin_pb2.DeleteTopicResponse:
        if request.name not in self._cluster.topics and not request.if_exists:
            raise FakeError("UNKNOWN_TOPIC")
        return admin_pb2.DeleteTopicResponse(deleted=self._cluster.topics.pop(request.name, None) is not None)

    @_answered
    def DeleteRecords(self, request: admin_pb2.DeleteRecordsRequest) -> admin_pb2.DeleteRecordsResponse:
        partition = self._cluster.partition(request.topic, request.partition)
        if request.partition in self._cluster.undeletable:
            raise FakeError("PERMISSION_DENIED")
        partition.log_start = request.before_offset
        return admin_pb2.DeleteRecordsResponse(
            log_start_offset=partition.log_start, high_watermark=len(partition.values)
        )

    def KillNode(self, request: admin_pb2.KillNodeRequest, context: grpc.ServicerContext) -> admin_pb2.KillNodeResponse:
        context.abort(self._cluster.kill_answer, "ended on purpose")
