"""The topics that a producer writes to: learned when first used, kept fresh, given up when they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fluxlog.aio.connection import Connection
from fluxlog.aio.lanes import Lane, TopicLanes
from fluxlog.aio.metadata import AGE_MAX, Metadata, TopicInfo
from fluxlog.aio.tasks import TaskSet
from fluxlog.delivery import PartitionQueue
from fluxlog.errors import FluxlogError

_STALE = frozenset({"UNKNOWN_TOPIC", "UNKNOWN_PARTITION", "TOPIC_ID_MISMATCH"})


class TopicBook:
    """See the module.

    Args:
        queue_of: the pipeline's queue for (topic, partition, address to begin with, topic id).
    """

    def __init__(self, connection: Connection, queue_of: Callable[[str, int, str, bytes], PartitionQueue]) -> None:
        self._connection, self._queue_of = connection, queue_of
        self.topics: dict[str, TopicLanes] = {}
        """Those that are known: looked up with each record."""
        self._metadata = Metadata(connection)
        self._tasks = TaskSet()
        self._refreshing: set[str] = set()
        self._left: list[Lane] = []
        """Of partitions that are gone; what was in them still gets its outcome."""
        self._keeps_fresh = False

    async def load(self, topic: str) -> TopicLanes:
        """Learn about a topic.

        Raises:
            FluxlogError: UNKNOWN_TOPIC; or nobody answers.
        """
        self._take(await self._metadata.topic(topic))
        if not self._keeps_fresh:
            self._keeps_fresh = True
            self._tasks.start(self._keep_fresh(), "keep topics fresh")
        return self.topics[topic]

    def doubt(self, topic: str, error: FluxlogError) -> None:
        """A batch was not acknowledged: if that says that the topic has changed, learn of it."""
        if error.reason in _STALE and topic not in self._refreshing:
            self._refreshing.add(topic)
            self._tasks.start(self._refresh(topic), f"refresh {topic}")

    def lanes(self) -> list[Lane]:
        """Of all partitions, those that are gone among them while something of them has no outcome."""
        self._left = [lane for lane in self._left if lane.unfinished or lane.open is not None]
        return [*self._left, *(lane for topic in self.topics.values() for lane in topic.lanes)]

    async def close(self) -> None:
        """End what runs."""
        await self._tasks.close()
        await self._metadata.close()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(AGE_MAX)
            for topic in list(self.topics):
                await self._refresh(topic)

    async def _refresh(self, topic: str) -> None:
        try:
            self._take(await self._metadata.topic(topic, fresh=True))
        except FluxlogError as failure:
            if failure.reason == "UNKNOWN_TOPIC":
                gone = self.topics.pop(topic, None)  # the next `send` asks again
                self._left += gone.lanes if gone is not None else ()
        finally:
            self._refreshing.discard(topic)

    def _take(self, info: TopicInfo) -> None:
        """Partitions may have been added, or the topic created anew."""
        topic = self.topics.setdefault(info.name, TopicLanes(info.name))
        first = self._connection.addresses()[0]
        for number in range(info.partitions):
            queue = self._queue_of(info.name, number, info.leaders.get(number, first), info.topic_id)
            if number >= len(topic.lanes):
                topic.lanes.append(Lane(queue, topic))
        self._left += topic.lanes[info.partitions :]  # created anew, with fewer
        del topic.lanes[info.partitions :]
        topic.position %= info.partitions
