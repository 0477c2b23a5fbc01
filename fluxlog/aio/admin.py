"""Topics, nodes and the cluster, as typed calls. Answers are the messages of admin.proto themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from fluxlog.aio.connection import Connection, connection_of
from fluxlog.aio.group_admin import GroupAdmin
from fluxlog.aio.metadata import ask_everybody
from fluxlog.aio.offsets import find_offsets
from fluxlog.attempts import Effect
from fluxlog.errors import FluxlogError, from_error_message
from fluxlog.v1 import admin_pb2, log_pb2
from fluxlog.verification import CHECK_TIMEOUT, PartitionVerification, replicas_of, verification

CHANGE_PATIENCE = 15.0
"""Seconds in which a change waits for a controller: longer than an election."""


class Admin:
    """Administration of one cluster through any of its nodes; `groups` has what concerns consumer groups.

        async with Admin("127.0.0.1:9101") as admin:
            await admin.create_topic("orders", partitions=3, wait_ms=10_000)

    Every method raises FluxlogError. One that changes something raises it with outcome UNKNOWN when the change may have
    been made.

    Args:
        cluster: "host:port,host:port", a list of such, or a Connection that is shared.
        patience: seconds in which changes are tried again while the cluster cannot take them (an election).
    """

    def __init__(self, cluster: str | Sequence[str] | Connection, *, patience: float = CHANGE_PATIENCE) -> None:
        self._connection, self._owns_connection = connection_of(cluster)
        self._patience = patience
        self.groups = GroupAdmin(self._connection, patience=patience)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, unless it is shared."""
        if self._owns_connection:
            await self._connection.close()

    # ---- topics

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replication_factor: int = 0,
        configs: Mapping[str, str] | None = None,
        if_not_exists: bool = False,
        wait_ms: int = 0,
    ) -> admin_pb2.CreateTopicResponse:
        """Create a topic.

        Args:
            partitions: 1..10,000.
            replication_factor: 1..5, at most the number of nodes; 0: min(3, nodes).
            if_not_exists: an existing topic is no error (then the call is also repeated after an unclear answer).
            wait_ms: how long to wait until every partition has a leader, 0..30,000.
        """
        request = admin_pb2.CreateTopicRequest(
            name=name,
            partitions=partitions,
            replication_factor=replication_factor,
            configs=configs or {},
            if_not_exists=if_not_exists,
            wait_ms=wait_ms,
        )
        return await self._connection.call(
            lambda node: node.admin.CreateTopic, request, timeout_s=15.0 + wait_ms / 1000, patience=self._patience,
            effect=Effect.SAME if if_not_exists else Effect.ANOTHER,
        )  # fmt: skip

    async def list_topics(self, *, include_internal: bool = False) -> Sequence[admin_pb2.TopicSummary]:
        """All topics, by name."""
        request = admin_pb2.ListTopicsRequest(include_internal=include_internal)
        answer = await self._connection.call(lambda node: node.admin.ListTopics, request)
        return sorted(answer.topics, key=lambda topic: topic.name)

    async def describe_topics(
        self, names: Iterable[str] = (), *, under_replicated_only: bool = False
    ) -> Sequence[admin_pb2.TopicDescription]:
        """Describe topics; no names: all that are not internal.

        Raises:
            FluxlogError: UNKNOWN_TOPIC for the first name that does not exist.
        """
        request = admin_pb2.DescribeTopicsRequest(names=list(names), under_replicated_only=under_replicated_only)
        answer = await self._connection.call(lambda node: node.admin.DescribeTopics, request)
        if answer.errors:
            answer = await ask_everybody(self._connection, request) or answer
        if answer.errors:
            raise from_error_message(answer.errors[0])
        return list(answer.topics)

    async def describe_topic(self, name: str) -> admin_pb2.TopicDescription:
        """Describe one topic, partitions in ascending order.

        Raises:
            FluxlogError: UNKNOWN_TOPIC.
        """
        topics = await self.describe_topics([name])
        if not topics:
            raise FluxlogError("UNKNOWN_TOPIC", f"no topic {name!r}")
        return topics[0]

    async def alter_topic(
        self, name: str, *, set_configs: Mapping[str, str] | None = None, delete_configs: Sequence[str] = ()
    ) -> Mapping[str, str]:
        """Set and remove configuration keys; returns all that are set afterwards."""
        request = admin_pb2.AlterTopicRequest(name=name, set_configs=set_configs or {}, delete_configs=delete_configs)
        answer = await self._connection.call(
            lambda node: node.admin.AlterTopic, request, patience=self._patience, effect=Effect.ANOTHER
        )
        return dict(answer.configs)

    async def add_partitions(self, name: str, total_partitions: int) -> int:
        """Raise the number of partitions to a new total; returns it."""
        request = admin_pb2.AddPartitionsRequest(name=name, total_partitions=total_partitions)
        answer = await self._connection.call(
            lambda node: node.admin.AddPartitions, request, patience=self._patience, effect=Effect.ANOTHER
        )
        return answer.partitions

    async def delete_topic(self, name: str, *, if_exists: bool = False) -> bool:
        """Delete a topic and its records; returns whether there was one.

        Not repeated after an unclear answer: by then the name may be another topic's.
        """
        request = admin_pb2.DeleteTopicRequest(name=name, if_exists=if_exists)
        answer = await self._connection.call(
            lambda node: node.admin.DeleteTopic, request, patience=self._patience, effect=Effect.ANOTHER
        )
        return answer.deleted

    async def latest_offsets(self, topic: str) -> Mapping[int, int]:
        """High watermark (exclusive) of each partition: everything acknowledged before this call is below it."""
        numbers = range(len((await self.describe_topic(topic)).partitions))
        queries = [log_pb2.OffsetQuery(topic=topic, partition=number, latest=True) for number in numbers]
        return dict(zip(numbers, await find_offsets(self._connection, queries), strict=True))

    # ---- nodes

    async def describe_cluster(self, *, address: str = "", timeout_s: float = 5.0) -> admin_pb2.DescribeClusterResponse:
        """The cluster as one node sees it: any that answers, or the one at an address."""
        if not address:
            return await self._connection.learn_nodes(timeout_s=timeout_s)
        request = admin_pb2.DescribeClusterRequest()
        return await self._connection.call_node(
            address, lambda node: node.admin.DescribeCluster, request, timeout_s=timeout_s
        )

    async def transfer_leadership(
        self, topic: str, partition: int, *, to_node: int = 0
    ) -> admin_pb2.TransferLeadershipResponse:
        """Move a partition's leadership to a node, or (0) to any replica that is caught up."""
        request = admin_pb2.TransferLeadershipRequest(topic=topic, partition=partition, to_node=to_node)
        return await self._connection.call(
            lambda node: node.admin.TransferLeadership, request, patience=5.0, effect=Effect.SAME
        )

    async def verify_partition(self, topic: str, partition: int, *, deep: bool = False) -> PartitionVerification:
        """Compare the replicas of a partition by their chain checksums.

        Args:
            deep: also have every replica read all of its log again and verify it.
        """
        nodes = replicas_of(await self.describe_topic(topic), partition)
        steps = verification(topic, partition, nodes, deep=deep)
        try:
            requests = next(steps)
            while True:
                requests = steps.send(await asyncio.gather(*map(self._check_replica, requests)))
        except StopIteration as end:
            found: PartitionVerification = end.value
            return found

    async def _check_replica(
        self, request: admin_pb2.CheckReplicaRequest
    ) -> admin_pb2.CheckReplicaResponse | FluxlogError:
        try:
            checked: admin_pb2.CheckReplicaResponse = await self._connection.call(
                lambda node: node.admin.CheckReplica, request, timeout_s=CHECK_TIMEOUT
            )
            return checked
        except FluxlogError as failure:
            return failure

    async def node_address(self, node_id: int) -> str:
        """Client address of a node.

        Raises:
            FluxlogError: UNKNOWN_NODE.
        """
        for node in (await self.describe_cluster()).nodes:
            if node.node_id == node_id:
                return node.address
        raise FluxlogError("UNKNOWN_NODE", f"the cluster has no node {node_id}")

    async def stop_node(self, node_id: int) -> None:
        """End a node's process as SIGTERM would. The node must have been started with leave for it."""
        request = admin_pb2.StopNodeRequest(node_id=node_id)
        address = await self.node_address(node_id)
        await self._connection.call_node(address, lambda node: node.admin.StopNode, request)

    async def kill_node(self, node_id: int) -> None:
        """End a node's process as SIGKILL would. The node must have been started with leave for it.

        Raises:
            FluxlogError: the node is not reached (outcome REJECTED), or refuses, or does not answer in time.
        """
        request, address = admin_pb2.KillNodeRequest(node_id=node_id), await self.node_address(node_id)
        await self._connection.reach(address)  # a node that is cut off, or hangs, was not ended
        try:
            await self._connection.call_node(address, lambda node: node.admin.KillNode, request)
        except FluxlogError as failure:
            if failure.from_server or failure.reason != "UNAVAILABLE":
                raise
            # The process ended before its answer left: that is what was asked for.
