"""Changes of the metadata: the work of the node that leads the metadata group.

One change at a time: make sure that this node leads and knows all that is committed (read index), check the request
against that image, place replicas, propose one command, and answer with what applying it gave. `apply` checks again, so
a controller that was replaced in between cannot do harm: the command is then refused in the log itself, the same on
every node.

Nodes are registered here too, from what they tell: a new node, a changed address, another data directory; and replicas
that were copied are bound to the directory that they are in. The log is kept short (`MetadataTrimming`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from fluxd.broker.answer import answer_of
from fluxd.broker.cluster import ClusterView
from fluxd.broker.log_trimming import Done
from fluxd.broker.metadata import CommittedLog, MetadataFollower
from fluxd.broker.metadata_trimming import MetadataTrimming
from fluxd.core import limits
from fluxd.core.batch import batch_from_records
from fluxd.core.errors import FluxError, InvariantViolation, Reason
from fluxd.core.metadata import (
    FIRST_GENERATION,
    Image,
    Node,
    Partition,
    Replica,
    Result,
    Topic,
)
from fluxd.core.metadata_commands import Commands
from fluxd.core.names import SEGMENT_BYTES, check_configs, check_topic_name
from fluxd.core.placement import NodeLoad, assign
from fluxd.core.runtime import Reactor
from fluxd.core.types import OFFSETS_TOPIC, GroupId, NodeId, Offset
from fluxd.raft.proposal import Append, AppendResult
from fluxd.raft.spec import Role
from fluxlog.v1 import admin_pb2, metadata_pb2, peer_pb2, record_pb2, state_pb2

COMMAND_BYTES_MAX = limits.BATCH_BYTES_MAX - limits.KIB
"""A command is one record of one batch."""
_PLACEMENTS_MAX = 3
"""A node may register another directory between placing and applying; then it is placed anew."""


class MetadataGroup(CommittedLog, Protocol):
    """This node's replica of the metadata group, as the controller uses it."""

    on_role: list[Callable[[], None]]

    @property
    def role(self) -> Role: ...
    @property
    def high_watermark(self) -> Offset: ...
    @property
    def log_start_offset(self) -> Offset: ...
    def submit(self, append: Append) -> None: ...
    def trim(self, log_start_offset: Offset, done: Done) -> None: ...
    def read_index(self, done: Callable[[FluxError | None], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class TopicResult:
    """A topic after a change."""

    topic: Topic
    changed: bool


class Controller:
    """See the module. Every call raises NOT_LEADER, with nothing written, on a node that does not lead the metadata
    group.
    """

    def __init__(self, reactor: Reactor, view: ClusterView, follower: MetadataFollower, group: MetadataGroup) -> None:
        self._reactor = reactor
        self._view = view
        self._follower = follower
        self._group = group
        self._commands = Commands(reactor.random, reactor.wall_ms)
        self._lock = asyncio.Lock()
        self._queued = 0
        self._registering: set[NodeId] = set()
        self._binding: set[tuple[GroupId, NodeId]] = set()
        self._unlisten = [view.on_status(self._register), view.on_status(self._bind_replicas)]
        group.on_role.append(lambda: reactor.call_soon(self.register_nodes))
        self._trimming = MetadataTrimming(reactor, view, follower, group, self._append_chunk)

    def close(self) -> None:
        """Its replica has been replaced by a copy, which has a controller of its own."""
        for unlisten in self._unlisten:
            unlisten()
        self._unlisten = []

    # ---- topics

    async def create_topic(self, request: admin_pb2.CreateTopicRequest) -> TopicResult:
        """Create a topic; `changed` is False where it existed and that is fine with the caller.

        Anybody may ask for __consumer_offsets to be there: it is made as the cluster wants it, whatever is asked for.

        Raises:
            FluxError: INVALID_TOPIC_NAME, INVALID_CONFIG, INVALID_ARGUMENT, TOPIC_EXISTS, NOT_ENOUGH_NODES: nothing was
            written.
        """
        if request.name == OFFSETS_TOPIC:
            request = admin_pb2.CreateTopicRequest(
                name=OFFSETS_TOPIC, partitions=limits.OFFSETS_PARTITIONS, if_not_exists=True,
                configs={SEGMENT_BYTES: str(limits.GROUPS_SEGMENT_BYTES)},
            )  # fmt: skip
        check_topic_name(request.name, internal_allowed=request.name == OFFSETS_TOPIC)
        check_configs(dict(request.configs))
        count = request.partitions or 1
        if count > limits.PARTITIONS_PER_TOPIC_MAX or request.replication_factor > limits.VOTERS_MAX:
            raise FluxError(
                Reason.INVALID_ARGUMENT,
                f"{count} partitions with replication factor {request.replication_factor}: at most "
                f"{limits.PARTITIONS_PER_TOPIC_MAX} and {limits.VOTERS_MAX} are allowed",
            )
        async with self._turn():
            for _ in range(_PLACEMENTS_MAX):
                image = self._follower.image
                existing = image.topic(request.name)
                if existing is not None and request.if_not_exists:
                    return TopicResult(existing, changed=False)
                if existing is not None:
                    raise FluxError(Reason.TOPIC_EXISTS, f"topic {request.name} exists")
                factor = request.replication_factor or min(limits.REPLICATION_FACTOR_DEFAULT, len(image.nodes))
                partitions = self._place(image, count, factor)
                result = await self._propose(self._commands.create_topic(request.name, partitions, request.configs))
                if result.reason is not Reason.UNKNOWN_NODE:
                    break
            _raise_refusal(result)
            return TopicResult(self._topic_by_id(result.created_topic), changed=True)

    async def delete_topic(self, request: admin_pb2.DeleteTopicRequest) -> bool:
        """Delete a topic; False where there is none and that is fine with the caller.

        Raises:
            FluxError: UNKNOWN_TOPIC, PERMISSION_DENIED (the cluster's own).
        """
        async with self._turn():
            if request.if_exists and self._follower.image.topic(request.name) is None:
                return False
            topic = self._changeable(request.name)
            result = await self._propose(self._commands.delete_topic(topic.topic_id))
            # A change whose caller went away holds up nobody: it may have been made in between.
            if request.if_exists and result.reason is Reason.UNKNOWN_TOPIC:
                return False
            _raise_refusal(result)
            return True

    async def alter_topic(self, request: admin_pb2.AlterTopicRequest) -> Topic:
        """Set and remove configuration keys.

        Raises:
            FluxError: UNKNOWN_TOPIC, PERMISSION_DENIED, INVALID_CONFIG.
        """
        check_configs(dict(request.set_configs))
        async with self._turn():
            topic = self._changeable(request.name)
            command = self._commands.alter_topic(topic.topic_id, request.set_configs, request.delete_configs)
            _raise_refusal(await self._propose(command))
            return self._topic_by_id(topic.topic_id)

    async def add_partitions(self, request: admin_pb2.AddPartitionsRequest) -> Topic:
        """Raise the number of partitions.

        Raises:
            FluxError: UNKNOWN_TOPIC, PERMISSION_DENIED, PARTITION_COUNT (not above the present number, or over the
            bound).
        """
        async with self._turn():
            for _ in range(_PLACEMENTS_MAX):
                topic = self._changeable(request.name)
                present = len(topic.partitions)
                if not present < request.total_partitions <= limits.PARTITIONS_PER_TOPIC_MAX:
                    raise FluxError(
                        Reason.PARTITION_COUNT,
                        f"topic {topic.name} has {present} partitions; the new total must be above that and at most "
                        f"{limits.PARTITIONS_PER_TOPIC_MAX}, not {request.total_partitions}",
                    )
                added = self._place(
                    self._follower.image,
                    request.total_partitions - present,
                    topic.replication_factor,
                    existing=[partition.voters for partition in topic.partitions],
                )
                result = await self._propose(self._commands.add_partitions(topic.topic_id, present, added))
                if result.reason is not Reason.UNKNOWN_NODE:
                    break
            _raise_refusal(result)
            return self._topic_by_id(topic.topic_id)

    def _changeable(self, name: str) -> Topic:
        topic = self._follower.image.topic(name)
        if topic is None:
            raise FluxError(Reason.UNKNOWN_TOPIC, f"there is no topic {name!r}")
        if topic.internal:
            raise FluxError(Reason.PERMISSION_DENIED, f"topic {topic.name} belongs to the cluster")
        return topic

    def _topic_by_id(self, topic_id: bytes) -> Topic:
        topic = self._follower.image.topics.get(topic_id)
        if topic is None:  # another change followed before this one was answered
            raise FluxError(Reason.UNKNOWN_TOPIC, f"topic {topic_id.hex()} was deleted in the meantime")
        return topic

    def _place(
        self, image: Image, partitions: int, replication_factor: int, existing: Sequence[tuple[NodeId, ...]] = ()
    ) -> list[Partition]:
        assignments = assign(
            node_loads(image, self._view.is_up),
            partitions,
            replication_factor,
            existing=existing,
            seed=int(self._reactor.random() * 2**32),
        )
        replicas = {node.node_id: Replica(node.node_id, node.directory_id) for node in image.nodes.values()}
        return [Partition(FIRST_GENERATION, tuple(replicas[node] for node in nodes)) for nodes in assignments]

    # ---- nodes

    def register_nodes(self) -> None:
        """Register this node and all that told of themselves, where the metadata says otherwise."""
        self._register(self._view.local_status())
        for node_id in tuple(self._follower.image.nodes):
            told = self._view.told(node_id)
            if told is not None:
                self._register(told.status)

    def _register(self, status: peer_pb2.NodeStatus) -> None:
        node = Node(NodeId(status.node_id), status.directory_id, status.advertised_address)
        known = self._follower.image.nodes.get(node.node_id)
        if node == known or node.node_id in self._registering or self._group.role is not Role.LEADER:
            return
        self._registering.add(node.node_id)

        def done(_: AppendResult) -> None:
            # Whatever the answer was: the node's next status tells whether there is still something to do.
            self._registering.discard(node.node_id)

        self._group.submit(self._append(self._commands.register_node(node), done))

    def _bind_replicas(self, status: peer_pb2.NodeStatus) -> None:
        """Bind to a node's directory the replicas that it tells to be copied and admitted there."""
        replica = Replica(NodeId(status.node_id), status.directory_id)
        for trouble in status.troubles:
            group_id = GroupId(trouble.topic_id, trouble.partition)
            partition = self._follower.image.partition(group_id) if trouble.copied else None
            key = (group_id, replica.node_id)
            if partition is None or key in self._binding or self._group.role is not Role.LEADER:
                continue
            if partition.directory_of(replica.node_id) in (None, replica.directory_id):
                continue
            self._binding.add(key)

            def done(_: AppendResult, key: tuple[GroupId, NodeId] = key) -> None:
                self._binding.discard(key)  # the node's next status tells whether there is still something to do

            command = self._commands.bind_replica(group_id.topic_id, group_id.partition, partition.generation, replica)
            self._group.submit(self._append(command, done))

    # ---- proposals

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for the changes before, then for a confirmed image."""
        if self._group.role is not Role.LEADER:
            raise FluxError(Reason.NOT_LEADER, "this node does not lead the metadata group")
        if self._queued >= limits.CONTROLLER_QUEUE_MAX:
            raise FluxError(
                Reason.OVERLOADED,
                f"{self._queued} changes of the metadata are waiting",
                retry_after_ms=limits.OVERLOADED_RETRY_MS,
            )
        self._queued += 1
        try:
            async with self._lock:
                await self._confirm()
                yield
        finally:
            self._queued -= 1

    async def _confirm(self) -> None:
        error = await answer_of(self._group.read_index)
        if error is not None:
            raise error
        await self._follower.wait_applied(self._group.high_watermark)

    async def _propose(self, command: metadata_pb2.MetadataCommand) -> Result:
        answer: AppendResult = await answer_of(lambda done: self._group.submit(self._append(command, done)))
        if isinstance(answer, FluxError):
            raise answer
        await self._follower.wait_applied(Offset(answer.base_offset + 1))
        result = self._follower.image.remembered.get(command.command_id)
        if result is None:
            raise InvariantViolation(f"metadata command at offset {answer.base_offset} was applied and left no result")
        return result

    def _append_chunk(self, chunk: state_pb2.StateChunk, done: Done) -> None:
        def appended(answer: AppendResult) -> None:
            done(answer if isinstance(answer, FluxError) else None)

        self._group.submit(self._append(self._commands.state_chunk(chunk), appended))

    def _append(self, command: metadata_pb2.MetadataCommand, done: Callable[[AppendResult], None]) -> Append:
        value = command.SerializeToString()
        if len(value) > COMMAND_BYTES_MAX:
            raise FluxError(
                Reason.INVALID_ARGUMENT,
                f"the change takes {len(value)} bytes, at most {COMMAND_BYTES_MAX} are allowed: "
                "create the topic with fewer partitions, then add more",
            )
        batch = batch_from_records([record_pb2.Record(value=value)], b"", 0, self._reactor.wall_ms())
        return Append(batch, 1, done)


def node_loads(image: Image, is_up: Callable[[NodeId], bool]) -> list[NodeLoad]:
    """What every registered node holds already, in node order."""
    replicas: Counter[NodeId] = Counter()
    leaders: Counter[NodeId] = Counter()
    for topic in image.topics.values():
        for partition in topic.partitions:
            replicas.update(partition.voters)
            leaders[partition.preferred_leader] += 1
    return [NodeLoad(node, replicas[node], leaders[node], is_up(node)) for node in sorted(image.nodes)]


def _raise_refusal(result: Result) -> None:
    if result.reason is not None:
        raise FluxError(result.reason, result.message)
