"""A group's coordinator that says what a test has it say."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import grpc

from fluxlog.v1 import groups_pb2, groups_pb2_grpc


def partition_of(topic: str, number: int = 0, *, generation: int = 1) -> groups_pb2.TopicPartition:
    """A partition; a topic that is created again has another generation."""
    return groups_pb2.TopicPartition(topic=topic, topic_id=bytes([generation]) * 16, partition=number)


class FakeCoordinator(groups_pb2_grpc.GroupsServicer):
    """One member at a time. What is committed is noted."""

    def __init__(self) -> None:
        self.joins = 0
        self.heard: queue.SimpleQueue[groups_pb2.MemberMessage] = queue.SimpleQueue()
        """What the member said after it had joined."""
        self.committed: dict[tuple[str, int], int] = {}
        self.groups: list[str] = []
        """Names of those that can be listed; each has a member that owns a partition."""
        self.missing_partitions: list[int] = []
        """Their groups cannot be listed."""
        self.client_name = "fake"
        self.never_committed: list[groups_pb2.TopicPartition] = []
        """Told by FetchOffsets, without an offset."""
        self._said: queue.SimpleQueue[groups_pb2.CoordinatorMessage] = queue.SimpleQueue()

    def assign(self, *partitions: groups_pb2.TopicPartition, committed: int | None = None) -> None:
        """They are the member's."""
        each = [groups_pb2.Assignment(partition=partition, committed_offset=committed) for partition in partitions]
        self._said.put(groups_pb2.CoordinatorMessage(assigned=groups_pb2.Assigned(assignments=each)))

    def revoke(self, *partitions: groups_pb2.TopicPartition) -> None:
        """They are to be given up."""
        revoke = groups_pb2.Revoke(partitions=partitions, deadline_ms=10_000)
        self._said.put(groups_pb2.CoordinatorMessage(revoke=revoke))

    def lose(self, *partitions: groups_pb2.TopicPartition) -> None:
        """They are the member's no more."""
        self._said.put(groups_pb2.CoordinatorMessage(lost=groups_pb2.Lost(partitions=partitions)))

    def ListGroups(
        self, request: groups_pb2.ListGroupsRequest, context: grpc.ServicerContext
    ) -> groups_pb2.ListGroupsResponse:
        answer = groups_pb2.ListGroupsResponse(missing_partitions=self.missing_partitions)
        for group in self.groups:
            answer.groups.add(group=group, state=groups_pb2.GROUP_STATE_STABLE, members=1, coordinator_node=1)
        return answer

    def DescribeGroups(
        self, request: groups_pb2.DescribeGroupsRequest, context: grpc.ServicerContext
    ) -> groups_pb2.DescribeGroupsResponse:
        answer, member_id = groups_pb2.DescribeGroupsResponse(), bytes(16)
        for group in request.groups:
            described = answer.groups.add(group=group, state=groups_pb2.GROUP_STATE_STABLE, coordinator_node=1)
            described.members.add(member_id=member_id, client_name=self.client_name, partitions=[partition_of("t")])
            described.partitions.add(partition=partition_of("t"), owner_member_id=member_id)
        return answer

    def Join(
        self, request_iterator: Iterator[groups_pb2.MemberMessage], context: grpc.ServicerContext
    ) -> Iterator[groups_pb2.CoordinatorMessage]:
        assert next(request_iterator).HasField("join")
        self.joins += 1
        left = threading.Event()
        threading.Thread(target=self._listen, args=(request_iterator, left), daemon=True).start()
        joined = groups_pb2.Joined(member_epoch=self.joins, session_timeout_ms=30_000)
        yield groups_pb2.CoordinatorMessage(joined=joined)
        while context.is_active() and not left.is_set():
            try:
                yield self._said.get(timeout=0.01)
            except queue.Empty:
                continue

    def _listen(self, request_iterator: Iterator[groups_pb2.MemberMessage], left: threading.Event) -> None:
        try:
            for message in request_iterator:
                if not message.HasField("progress"):
                    self.heard.put(message)
                if message.HasField("leave"):
                    left.set()
        except grpc.RpcError:  # the stream has ended
            return

    def CommitOffsets(
        self, request: groups_pb2.CommitOffsetsRequest, context: grpc.ServicerContext
    ) -> groups_pb2.CommitOffsetsResponse:
        answer = groups_pb2.CommitOffsetsResponse()
        for item in request.offsets:
            self.committed[item.topic, item.partition] = item.offset
            answer.results.add(topic=item.topic, partition=item.partition, committed_offset=item.offset)
        return answer

    def FetchOffsets(
        self, request: groups_pb2.FetchOffsetsRequest, context: grpc.ServicerContext
    ) -> groups_pb2.FetchOffsetsResponse:
        answer = groups_pb2.FetchOffsetsResponse()
        for (topic, number), offset in self.committed.items():
            answer.offsets.add(partition=partition_of(topic, number), offset=offset)
        for partition in self.never_committed:
            answer.offsets.add(partition=partition)
        return answer
