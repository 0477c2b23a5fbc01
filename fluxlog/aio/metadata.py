"""What is known of topics: their partitions and where their leaders are. Asked for once, refreshed on hints."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from fluxlog.aio.connection import Connection
from fluxlog.aio.tasks import was_cancelled
from fluxlog.errors import FluxlogError, LocalError, from_error_message
from fluxlog.v1 import admin_pb2

AGE_MAX = 60.0
"""Seconds after which a topic is asked for again when it is used: partitions may have been added."""
_PATIENCE = 10.0
_NODE_TIMEOUT = 3.0


@dataclass(slots=True)
class TopicInfo:
    """A topic as writers and readers need it."""

    name: str
    topic_id: bytes
    partitions: int
    """They are numbered from 0."""
    leaders: dict[int, str]
    """Address of each partition's leader, where one is known."""
    learned_at: float = field(default_factory=time.monotonic)


class Metadata:
    """Topics of one cluster, each asked for by one call at a time however many wait for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._topics: dict[str, TopicInfo] = {}
        self._asking: dict[str, asyncio.Task[TopicInfo]] = {}

    def known(self, name: str) -> TopicInfo | None:
        """Without asking anybody; None when it is not known, or has to be asked for again."""
        info = self._topics.get(name)
        return info if info is not None and time.monotonic() - info.learned_at < AGE_MAX else None

    def forget(self, name: str) -> None:
        """It has turned out to be wrong."""
        self._topics.pop(name, None)

    async def topic(self, name: str, *, fresh: bool = False) -> TopicInfo:
        """What is known of a topic; asks when nothing is, or that is old.

        Args:
            fresh: ask in any case.

        Raises:
            FluxlogError: UNKNOWN_TOPIC; nobody answers; CANCELLED: closed meanwhile.
        """
        info = None if fresh else self.known(name)
        if info is not None:
            return info
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.get_running_loop().create_task(self._ask(name), name=name)
            task.add_done_callback(self._asked)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not was_cancelled():
                raise LocalError("CANCELLED", f"closed before a node told of topic {name!r}") from None
            raise
        except FluxlogError as failure:
            old = self._topics.get(name)
            if old is not None and failure.retriable and not fresh:  # what was known is better than nothing
                return old
            raise

    async def close(self) -> None:
        """End what is being asked."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _asked(self, task: asyncio.Task[TopicInfo]) -> None:
        self._asking.pop(task.get_name(), None)
        if not task.cancelled():
            task.exception()  # those who asked may have been cancelled: then nobody else looks at it

    async def _ask(self, name: str) -> TopicInfo:
        request = admin_pb2.DescribeTopicsRequest(names=[name])
        connection = self._connection
        cluster = await connection.call(
            lambda node: node.admin.DescribeCluster, admin_pb2.DescribeClusterRequest(), patience=_PATIENCE
        )
        addresses = {node.node_id: node.address for node in cluster.nodes}
        connection.remember(addresses.values())
        answer = await connection.call(lambda node: node.admin.DescribeTopics, request, patience=_PATIENCE)
        if answer.errors:
            answer = await ask_everybody(connection, request) or answer
        if answer.errors:
            raise from_error_message(answer.errors[0])
        topic = answer.topics[0]
        info = TopicInfo(
            name,
            topic.topic_id,
            len(topic.partitions),
            {p.partition: addresses[p.leader_node] for p in topic.partitions if p.leader_node in addresses},
        )
        self._topics[name] = info
        return info


async def ask_everybody(
    connection: Connection, request: admin_pb2.DescribeTopicsRequest
) -> admin_pb2.DescribeTopicsResponse | None:
    """An answer that knows every topic. A node that has just started may not have heard of all of them yet."""
    await connection.learn_nodes()
    for address in connection.addresses():
        try:
            answer = await connection.call_node(
                address, lambda node: node.admin.DescribeTopics, request, timeout_s=_NODE_TIMEOUT
            )
        except FluxlogError:
            continue
        if not answer.errors:
            return answer
    return None
