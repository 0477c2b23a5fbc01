"""The Admin service: the door to `broker/administration.py`. Methods take and give messages and raise FluxError.

StopNode and KillNode concern the process itself and are added by the node.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxd.broker.administration import Administration
from fluxd.broker.checking import CheckingReplicas
from fluxd.broker.cluster import ClusterView
from fluxd.broker.describe import cluster_description
from fluxd.rpc.handling import Context
from fluxlog.v1 import admin_pb2

WRITES = frozenset(
    {
        "CreateTopic",
        "AlterTopic",
        "AddPartitions",
        "DeleteTopic",
        "DeleteRecords",
        "TransferLeadership",
        "StopNode",
        "KillNode",
    }
)
"""Methods whose errors say what became of the change."""


class AdminServicer:
    """For `handling.typed_service`, which finds the methods by their names in the .proto.

    Args:
        administration: raises NOT_READY or STOPPING when there is none; checking, too.
        view: answers DescribeCluster also before the cluster is founded.
        is_forwarded: another node passes the call on; raises UNAUTHENTICATED when a stranger says so.
    """

    def __init__(
        self,
        administration: Callable[[], Administration],
        checking: Callable[[], CheckingReplicas],
        view: ClusterView,
        is_forwarded: Callable[[Context], bool],
    ) -> None:
        self._administration, self._checking = administration, checking
        self._view = view
        self._is_forwarded = is_forwarded

    async def CreateTopic(  # noqa: N802
        self, request: admin_pb2.CreateTopicRequest, context: Context
    ) -> admin_pb2.CreateTopicResponse:
        """See admin.proto."""
        return await self._administration().create_topic(request, forwarded=self._is_forwarded(context))

    async def ListTopics(  # noqa: N802
        self, request: admin_pb2.ListTopicsRequest, context: Context
    ) -> admin_pb2.ListTopicsResponse:
        """See admin.proto."""
        return await self._administration().list_topics(request)

    async def DescribeTopics(  # noqa: N802
        self, request: admin_pb2.DescribeTopicsRequest, context: Context
    ) -> admin_pb2.DescribeTopicsResponse:
        """See admin.proto."""
        return await self._administration().describe_topics(request)

    async def AlterTopic(  # noqa: N802
        self, request: admin_pb2.AlterTopicRequest, context: Context
    ) -> admin_pb2.AlterTopicResponse:
        """See admin.proto."""
        return await self._administration().alter_topic(request, forwarded=self._is_forwarded(context))

    async def AddPartitions(  # noqa: N802
        self, request: admin_pb2.AddPartitionsRequest, context: Context
    ) -> admin_pb2.AddPartitionsResponse:
        """See admin.proto."""
        return await self._administration().add_partitions(request, forwarded=self._is_forwarded(context))

    async def DeleteTopic(  # noqa: N802
        self, request: admin_pb2.DeleteTopicRequest, context: Context
    ) -> admin_pb2.DeleteTopicResponse:
        """See admin.proto."""
        return await self._administration().delete_topic(request, forwarded=self._is_forwarded(context))

    async def DeleteRecords(  # noqa: N802
        self, request: admin_pb2.DeleteRecordsRequest, context: Context
    ) -> admin_pb2.DeleteRecordsResponse:
        """See admin.proto."""
        return await self._administration().delete_records(request, forwarded=self._is_forwarded(context))

    async def DescribeCluster(  # noqa: N802
        self, request: admin_pb2.DescribeClusterRequest, context: Context
    ) -> admin_pb2.DescribeClusterResponse:
        """See admin.proto."""
        return cluster_description(self._view)

    async def AwaitLeaders(  # noqa: N802
        self, request: admin_pb2.AwaitLeadersRequest, context: Context
    ) -> admin_pb2.AwaitLeadersResponse:
        """See admin.proto."""
        return await self._administration().leader_waiting.wait(request)

    async def TransferLeadership(  # noqa: N802
        self, request: admin_pb2.TransferLeadershipRequest, context: Context
    ) -> admin_pb2.TransferLeadershipResponse:
        """See admin.proto."""
        return await self._administration().transfer_leadership(request, forwarded=self._is_forwarded(context))

    async def CheckReplica(  # noqa: N802
        self, request: admin_pb2.CheckReplicaRequest, context: Context
    ) -> admin_pb2.CheckReplicaResponse:
        """See admin.proto."""
        return await self._checking().check_replica(request, forwarded=self._is_forwarded(context))
