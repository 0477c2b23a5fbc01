"""Topics, nodes and the cluster, as typed calls. Answers are the messages of admin.proto themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fluxlog.attempts import Effect
from fluxlog.client import Client
from fluxlog.errors import FluxlogError, from_error_message
from fluxlog.v1 import admin_pb2
from fluxlog.verification import CHECK_TIMEOUT, PartitionVerification, replicas_of, verification

_CHANGE_PATIENCE = 15.0
"""Seconds in which a change waits for a controller: longer than an election."""


class Admin:
    """Administration of one cluster through any of its nodes.

    Every method raises FluxlogError. One that changes something raises it with outcome UNKNOWN when the change may have
    been made.

    Args:
        client: shared with others as needed; not closed here.
        patience: seconds in which changes are tried again while the cluster cannot take them (an election).
    """

    def __init__(self, client: Client, *, patience: float = _CHANGE_PATIENCE) -> None:
        self._client = client
        self._patience = patience

    def create_topic(
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
        return self._client.call(
            lambda node: node.admin.CreateTopic,
            request,
            timeout=15.0 + wait_ms / 1000,
            patience=self._patience,
            effect=Effect.SAME if if_not_exists else Effect.ANOTHER,
        )

    def list_topics(self, *, include_internal: bool = False) -> Sequence[admin_pb2.TopicSummary]:
        """All topics, by name."""
        request = admin_pb2.ListTopicsRequest(include_internal=include_internal)
        answer = self._client.call(lambda node: node.admin.ListTopics, request)
        return sorted(answer.topics, key=lambda topic: topic.name)

    def describe_topics(
        self, names: Iterable[str] = (), *, under_replicated_only: bool = False
    ) -> Sequence[admin_pb2.TopicDescription]:
        """Describe topics; no names: all that are not internal.

        Raises:
            FluxlogError: UNKNOWN_TOPIC for the first name that does not exist.
        """
        request = admin_pb2.DescribeTopicsRequest(names=list(names), under_replicated_only=under_replicated_only)
        answer = self._client.call(lambda node: node.admin.DescribeTopics, request)
        if answer.errors:
            answer = self._ask_everybody(request) or answer
        if answer.errors:
            raise from_error_message(answer.errors[0])
        return list(answer.topics)

    def _ask_everybody(self, request: admin_pb2.DescribeTopicsRequest) -> admin_pb2.DescribeTopicsResponse | None:
        """An answer that knows every topic. A node that has just started may not have heard of all of them yet."""
        self._client.learn_nodes()
        for address in self._client.addresses():
            try:
                answer = self._client.call_node(address, lambda node: node.admin.DescribeTopics, request, timeout=3.0)
            except FluxlogError:
                continue
            if not answer.errors:
                return answer
        return None

    def describe_topic(self, name: str) -> admin_pb2.TopicDescription:
        """Describe one topic, partitions in ascending order.

        Raises:
            FluxlogError: UNKNOWN_TOPIC.
        """
        topics = self.describe_topics([name])
        if not topics:
            raise FluxlogError("UNKNOWN_TOPIC", f"no topic {name!r}")
        return topics[0]

    def alter_topic(
        self, name: str, *, set_configs: Mapping[str, str] | None = None, delete_configs: Sequence[str] = ()
    ) -> Mapping[str, str]:
        """Set and remove configuration keys; returns all that are set afterwards."""
        request = admin_pb2.AlterTopicRequest(name=name, set_configs=set_configs or {}, delete_configs=delete_configs)
        answer = self._client.call(
            lambda node: node.admin.AlterTopic, request, patience=self._patience, effect=Effect.ANOTHER
        )
        return dict(answer.configs)

    def add_partitions(self, name: str, total_partitions: int) -> int:
        """Raise the number of partitions to a new total; returns it."""
        request = admin_pb2.AddPartitionsRequest(name=name, total_partitions=total_partitions)
        return self._client.call(
            lambda node: node.admin.AddPartitions, request, patience=self._patience, effect=Effect.ANOTHER
        ).partitions

    def delete_topic(self, name: str, *, if_exists: bool = False) -> bool:
        """Delete a topic and its records; returns whether there was one.

        Not repeated after an unclear answer: by then the name may be another topic's.
        """
        request = admin_pb2.DeleteTopicRequest(name=name, if_exists=if_exists)
        return self._client.call(
            lambda node: node.admin.DeleteTopic, request, patience=self._patience, effect=Effect.ANOTHER
        ).deleted

    def delete_records(self, topic: str, partition: int, before_offset: int) -> admin_pb2.DeleteRecordsResponse:
        """Move the beginning of a partition: what is before an offset can be read no more. Repeating it is harmless.

        Args:
            before_offset: the first one to keep, at most the high watermark. For a time see `offsets.offsets_at`.

        Raises:
            FluxlogError: OFFSET_OUT_OF_RANGE.
        """
        request = admin_pb2.DeleteRecordsRequest(topic=topic, partition=partition, before_offset=before_offset)
        return self._client.call(
            lambda node: node.admin.DeleteRecords, request, patience=self._patience, effect=Effect.ANOTHER
        )

    def describe_cluster(self, *, address: str = "", timeout: float = 5.0) -> admin_pb2.DescribeClusterResponse:
        """The cluster as one node sees it: any that answers, or the one at an address."""
        request = admin_pb2.DescribeClusterRequest()
        if not address:
            return self._client.learn_nodes(timeout=timeout)
        return self._client.call_node(address, lambda node: node.admin.DescribeCluster, request, timeout=timeout)

    def transfer_leadership(
        self, topic: str, partition: int, *, to_node: int = 0
    ) -> admin_pb2.TransferLeadershipResponse:
        """Move a partition's leadership to a node, or (0) to any replica that is caught up."""
        request = admin_pb2.TransferLeadershipRequest(topic=topic, partition=partition, to_node=to_node)
        return self._client.call(lambda node: node.admin.TransferLeadership, request, patience=5.0, effect=Effect.SAME)

    def verify_partition(self, topic: str, partition: int, *, deep: bool = False) -> PartitionVerification:
        """Compare the replicas of a partition by their chain checksums.

        Args:
            deep: also have every replica read all of its log again and verify it.
        """
        nodes = replicas_of(self.describe_topic(topic), partition)
        steps = verification(topic, partition, nodes, deep=deep)
        try:
            requests = next(steps)
            while True:
                requests = steps.send([self._check_replica(request) for request in requests])
        except StopIteration as end:
            found: PartitionVerification = end.value
            return found

    def _check_replica(self, request: admin_pb2.CheckReplicaRequest) -> admin_pb2.CheckReplicaResponse | FluxlogError:
        try:
            return self._client.call(lambda node: node.admin.CheckReplica, request, timeout=CHECK_TIMEOUT)
        except FluxlogError as failure:
            return failure

    def node_address(self, node_id: int) -> str:
        """Client address of a node.

        Raises:
            FluxlogError: UNKNOWN_NODE.
        """
        for node in self.describe_cluster().nodes:
            if node.node_id == node_id:
                return node.address
        raise FluxlogError("UNKNOWN_NODE", f"the cluster has no node {node_id}")

    def stop_node(self, node_id: int) -> None:
        """End a node's process as SIGTERM would. The node must have been started with leave for it."""
        request = admin_pb2.StopNodeRequest(node_id=node_id)
        self._client.call_node(self.node_address(node_id), lambda node: node.admin.StopNode, request)

    def kill_node(self, node_id: int) -> None:
        """End a node's process as SIGKILL would. The node must have been started with leave for it.

        Raises:
            FluxlogError: the node is not reached (outcome REJECTED), or refuses, or does not answer in time.
        """
        request, address = admin_pb2.KillNodeRequest(node_id=node_id), self.node_address(node_id)
        self._client.reach(address)  # a node that is cut off, or hangs, was not ended
        try:
            self._client.call_node(address, lambda node: node.admin.KillNode, request)
        except FluxlogError as failure:
            if failure.from_server or failure.reason != "UNAVAILABLE":
                raise
            # The process ended before its answer left: that is what was asked for.
