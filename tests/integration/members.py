"""Members of consumer groups that speak the protocol with generated stubs: a thread for each stream."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator

import grpc

from fluxlog.v1 import groups_pb2, groups_pb2_grpc
from tests.integration.cluster import NodeProcess, wait_until

Key = tuple[str, int]


class Member:
    """One member over one stream. It gives up what it is told to, at once (unless `stubborn`).

    Args:
        member_id: to come back; else a new one.
    """

    def __init__(
        self,
        node: NodeProcess,
        group: str,
        *topics: str,
        member_id: bytes = b"",
        stubborn: bool = False,
        session_timeout_ms: int = 0,
        rebalance_timeout_ms: int = 0,
        name: str = "",
    ) -> None:
        self.group, self.member_id = group, member_id or os.urandom(16)
        self.stub = groups_pb2_grpc.GroupsStub(node.channel)
        self.epoch = 0
        self.resumed = False
        self.coordinator = 0
        self.owned: dict[Key, int] = {}
        """Partitions, and the generation in which each was assigned."""
        self.ids: dict[Key, groups_pb2.TopicPartition] = {}
        self.committed: dict[Key, int | None] = {}
        """As told with the assignment."""
        self.lost: list[Key] = []
        self.revoked: list[Key] = []
        self.error: grpc.RpcError | None = None
        self.ended = threading.Event()
        self.on_assigned: Callable[[list[Key], int], None] = lambda keys, generation: None
        self._stubborn = stubborn
        self._outgoing: queue.SimpleQueue[groups_pb2.MemberMessage | None] = queue.SimpleQueue()
        join = groups_pb2.Join(
            group=group, member_id=self.member_id, client_name=name, topics=topics,
            session_timeout_ms=session_timeout_ms, rebalance_timeout_ms=rebalance_timeout_ms,
        )  # fmt: skip
        self._outgoing.put(groups_pb2.MemberMessage(join=join))
        self._call = self.stub.Join(self._requests())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _requests(self) -> Iterator[groups_pb2.MemberMessage]:
        while (message := self._outgoing.get()) is not None:
            yield message

    def _read(self) -> None:
        try:
            for message in self._call:
                self._take(message)
        except grpc.RpcError as error:
            self.error = error
        self._outgoing.put(None)
        self.ended.set()

    def _take(self, message: groups_pb2.CoordinatorMessage) -> None:
        match message.WhichOneof("body"):
            case "joined":
                self.resumed, self.coordinator = message.joined.resumed, message.joined.coordinator_node
                self.epoch = message.joined.member_epoch
            case "assigned":
                keys = []
                for each in message.assigned.assignments:
                    key = (each.partition.topic, each.partition.partition)
                    self.ids[key] = each.partition
                    self.committed[key] = each.committed_offset if each.HasField("committed_offset") else None
                    self.owned[key] = message.assigned.generation
                    keys.append(key)
                self.on_assigned(keys, message.assigned.generation)
            case "revoke":
                keys = [(each.topic, each.partition) for each in message.revoke.partitions]
                self.revoked += keys
                if not self._stubborn:
                    self.release(*keys)
            case "lost":
                for taken in message.lost.partitions:
                    self.owned.pop((taken.topic, taken.partition), None)
                    self.lost.append((taken.topic, taken.partition))

    def release(self, *keys: Key) -> None:
        """Give partitions up."""
        for key in keys:
            self.owned.pop(key, None)
        released = groups_pb2.Released(partitions=[self.ids[key] for key in keys])
        self._outgoing.put(groups_pb2.MemberMessage(released=released))

    def progress(self, stuck_ms: int) -> None:
        """Say how the handler is doing."""
        self._outgoing.put(groups_pb2.MemberMessage(progress=groups_pb2.Progress(stuck_ms=stuck_ms)))

    def leave(self) -> None:
        """Go, in good order."""
        self._outgoing.put(groups_pb2.MemberMessage(leave=groups_pb2.Leave()))
        self.ended.wait(10)
        assert self.error is None, self.error

    def hang_up(self) -> None:
        """The stream breaks; the membership does not end by that."""
        self._call.cancel()
        self.ended.wait(10)

    def commit(self, key: Key, offset: int, *, rewind: bool = False) -> groups_pb2.OffsetCommitResult:
        """Commit one offset."""
        item = groups_pb2.OffsetCommit(topic=key[0], partition=key[1], offset=offset, rewind=rewind)
        request = groups_pb2.CommitOffsetsRequest(
            group=self.group, member_id=self.member_id, member_epoch=self.epoch, offsets=[item]
        )
        return self.stub.CommitOffsets(request, timeout=10).results[0]


def owned_by(*members: Member) -> dict[Key, int]:
    """How many of the members think that they own each partition."""
    out: dict[Key, int] = {}
    for member in members:
        for key in tuple(member.owned):
            out[key] = out.get(key, 0) + 1
    return out


def wait_owned(topic: str, partitions: int, *members: Member) -> None:
    """Until every partition of a topic has exactly one owner among the members, and each its even share."""
    wanted = {(topic, number): 1 for number in range(partitions)}

    def shared() -> bool:
        loads = [len(member.owned) for member in members]
        return owned_by(*members) == wanted and max(loads) - min(loads) <= 1

    wait_until(shared, f"{partitions} partitions of {topic} are owned once each")


def committed(node: NodeProcess, group: str) -> dict[Key, int]:
    """What a group has committed, as any node tells it."""
    stub = groups_pb2_grpc.GroupsStub(node.channel)
    answer = stub.FetchOffsets(groups_pb2.FetchOffsetsRequest(group=group), timeout=10)
    return {(each.partition.topic, each.partition.partition): each.offset for each in answer.offsets}


def describe(node: NodeProcess, group: str) -> groups_pb2.GroupDescription:
    """A group, as any node tells it."""
    stub = groups_pb2_grpc.GroupsStub(node.channel)
    answer = stub.DescribeGroups(groups_pb2.DescribeGroupsRequest(groups=[group]), timeout=10)
    assert not answer.errors, answer.errors
    return answer.groups[0]
