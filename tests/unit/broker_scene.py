"""Node 1 with its administration and its currency, other nodes as functions from request to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import cast

from fluxd.broker.administration import Administration
from fluxd.broker.cluster import LeaderHint
from fluxd.broker.controller import Controller, TopicResult
from fluxd.broker.currency import MetadataCurrency
from fluxd.broker.metadata import MetadataFollower
from fluxd.broker.routes import Route
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import METADATA_GROUP, METADATA_TOPIC, NodeId
from fluxd.raft.spec import Role
from fluxlog.v1 import admin_pb2, log_pb2
from tests.unit.broker_fakes import Cluster, FakeGroup, leads

Answer = Callable[[bytes], bytes]


class FakeCalls:
    """Other nodes, as functions from request to answer."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[tuple[NodeId, str]] = []

    async def unary(self, node: NodeId, method: str, request: bytes, *, timeout_s: float, writes: bool) -> bytes:
        self.calls.append((node, method.rpartition("/")[2]))
        await asyncio.sleep(0)
        return self.answers[method.rpartition("/")[2]](request)


class FakeRoutes:
    """Routes over the view, without waiting."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def find(self, topic: str, partition: int, topic_id: bytes) -> Route:
        known = self._cluster.view.topic(topic)
        if known is None:
            raise FluxError(Reason.UNKNOWN_TOPIC, topic, metadata={"topic": topic})
        return Route(known, partition, known.group_id(partition))

    async def find_all(self, partitions: Iterable[tuple[str, int, bytes]]) -> list[Route | FluxError]:
        found: list[Route | FluxError] = []
        for each in partitions:
            try:
                found.append(await self.find(*each))
            except FluxError as error:
                found.append(error)
        return found

    async def await_leader(self, route: Route, seconds: float) -> LeaderHint:
        hint = self.leader(route)
        if hint is None:
            raise FluxError(Reason.NO_LEADER, route.name)
        return hint

    def leader(self, route: Route) -> LeaderHint | None:
        return self._cluster.view.leader(route.group_id)

    def leading(self, route: Route) -> FakeGroup | None:
        group = self._cluster.groups.get(route.group_id)
        return group if group is not None and group.role is Role.LEADER else None

    def named(self, error: FluxError, route: Route) -> FluxError:
        return error


class FakeController:
    """Answers what it is told to."""

    def __init__(self, result: Callable[[], Awaitable[TopicResult]]) -> None:
        self.create_topic = lambda request: result()


class Scene:
    """Node 1, and node 2 as the controller unless told otherwise."""

    def __init__(self, controller: FakeController | None = None) -> None:
        self.cluster = Cluster()
        self.calls = FakeCalls()
        self.calls.answers["ListOffsets"] = self.latest
        self.follower = MetadataFollower(
            self.cluster.clock.reactor, self.cluster.metadata.image, on_fatal=lambda error: None
        )
        self.currency = MetadataCurrency(self.cluster.view, self.follower, None, self.calls)
        self.admin = Administration(
            self.cluster.view,
            FakeRoutes(self.cluster),
            self.currency,
            cast(Controller | None, controller),
            self.calls,
        )
        self.end = 0
        self.cluster.tell(2, leads(METADATA_GROUP, 3))

    def latest(self, request: bytes) -> bytes:
        query = log_pb2.ListOffsetsRequest.FromString(request).queries[0]
        assert (query.topic, query.latest) == (METADATA_TOPIC, True)
        found = log_pb2.OffsetFound(offset=self.end)
        return log_pb2.ListOffsetsResponse(results=[log_pb2.OffsetResult(found=found)]).SerializeToString()

    def create(self, *, forwarded: bool = False, wait_ms: int = 0) -> admin_pb2.CreateTopicResponse:
        request = admin_pb2.CreateTopicRequest(name="orders", wait_ms=wait_ms)
        return asyncio.run(self.admin.create_topic(request, forwarded=forwarded))
