"""Members' streams, on any node: served by the group's coordinator here, or passed on to the node that is it.

A stream that is passed on ends when its coordinator is replaced, even if the old one only hangs; the member comes back
within its session's time and nothing changes hands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fluxd.broker.coordinator import Coordinator
from fluxd.broker.coordinator_session import Session
from fluxd.broker.coordinators import Coordinators
from fluxd.broker.group_requests import COORDINATOR_WAIT, PASSING, RETRY_AFTER
from fluxd.broker.routes import Route
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.groups import MEMBER_ID_BYTES
from fluxd.core.names import check_group_name, check_topic_name
from fluxd.core.types import GroupId, NodeId
from fluxlog.v1 import group_log_pb2, groups_pb2

JOIN = "/fluxlog.v1.Groups/Join"
CLIENT_KEY = "fluxd-client"
"""Goes with a stream that is passed on: the client's address."""

Messages = AsyncIterator[groups_pb2.MemberMessage]


class Streams(Protocol):
    """Passes streams on: `Forwarder`."""

    def bidi(
        self, node: NodeId, method: str, requests: AsyncIterator[bytes], *, metadata: Sequence[tuple[str, str]] = ()
    ) -> AsyncIterator[bytes]: ...


class Leaders(Protocol):
    """Who leads: `Routes`."""

    def leader_of_group(self, group_id: GroupId) -> NodeId | None: ...
    def watch_leaders(self, callback: Callable[[GroupId], None]) -> object: ...


@dataclass(frozen=True, slots=True)
class MemberClient:
    """Where a member's stream comes from."""

    host: str
    via_node: NodeId
    """The node that the client is connected to."""
    forwarded: bool


class Membership:
    """See the module."""

    def __init__(self, coordinators: Coordinators, streams: Streams, leaders: Leaders) -> None:
        self._coordinators, self._streams, self._leaders = coordinators, streams, leaders
        self._passed_on: dict[asyncio.Event, tuple[Route, NodeId]] = {}
        self.stopping = False
        """This node stops: who has been refused should go to another one."""
        leaders.watch_leaders(self._leader_changed)

    def stop(self) -> None:
        """End the streams that are passed on: this node stops. The others end with their coordinator."""
        self.stopping = True
        for moved in self._passed_on:
            moved.set()

    async def serve(
        self, join: groups_pb2.Join, messages: Messages, client: MemberClient
    ) -> AsyncIterator[groups_pb2.CoordinatorMessage]:
        """Be a member for as long as the stream lasts.

        Args:
            messages: what comes after Join.

        Raises:
            FluxError: the stream ends with it; see groups.proto.
        """
        command = _checked(join, client)
        if self.stopping:
            raise self._why_ended(join.group)
        await self._coordinators.ensure_topic()
        deadline = asyncio.get_running_loop().time() + COORDINATOR_WAIT
        while True:
            try:
                route = await self._coordinators.route(join.group)
                node = self._coordinators.node_id
                if not client.forwarded:
                    node = await self._coordinators.node_of(route)
                if node != self._coordinators.node_id:
                    break
                coordinator = await self._coordinators.serving(route)
                session = await coordinator.join(join.group, command)
                break
            except FluxError as error:
                if client.forwarded or error.reason not in PASSING or asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(RETRY_AFTER)
        if node != self._coordinators.node_id:
            async for message in self._pass_on(route, node, join, messages, client):
                yield message
        else:
            async for message in self._serve(coordinator, session, messages):
                yield message

    # ---- here

    async def _serve(
        self, coordinator: Coordinator, session: Session, messages: Messages
    ) -> AsyncIterator[groups_pb2.CoordinatorMessage]:
        reader = asyncio.ensure_future(self._read(coordinator, session, messages))
        reader.add_done_callback(lambda _: session.end())
        try:
            joined = groups_pb2.Joined(
                member_epoch=session.member.epoch,
                resumed=session.resumed,
                coordinator_node=self._coordinators.node_id,
                session_timeout_ms=session.member.session_timeout_ms,
                rebalance_timeout_ms=session.member.rebalance_timeout_ms,
            )
            yield groups_pb2.CoordinatorMessage(joined=joined)
            while await session.wait():
                for message in coordinator.messages(session):
                    yield message
            if reader.done():
                reader.result()
        finally:
            coordinator.leave_stream(session)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, coordinator: Coordinator, session: Session, messages: Messages) -> None:
        async for message in messages:
            match message.WhichOneof("body"):
                case "released":
                    partitions = [_partition(each) for each in message.released.partitions]
                    await coordinator.release(session, partitions)
                case "leave":
                    await coordinator.leave(session)
                    return
                case "progress":
                    session.stuck_ms = message.progress.stuck_ms
                case _:
                    raise FluxError(
                        Reason.INVALID_ARGUMENT, "after Join: Released, Leave or Progress, once each message"
                    )

    # ---- elsewhere

    async def _pass_on(
        self, route: Route, node: NodeId, join: groups_pb2.Join, messages: Messages, client: MemberClient
    ) -> AsyncIterator[groups_pb2.CoordinatorMessage]:
        async def outgoing() -> AsyncIterator[bytes]:
            yield groups_pb2.MemberMessage(join=join).SerializeToString()
            async for message in messages:
                yield message.SerializeToString()

        moved = asyncio.Event()
        self._passed_on[moved] = (route, node)
        stream = self._streams.bidi(node, JOIN, outgoing(), metadata=[(CLIENT_KEY, client.host)])
        ended = asyncio.ensure_future(moved.wait())
        following: asyncio.Future[bytes | None] | None = None
        try:
            while True:
                following = asyncio.ensure_future(_next(stream))
                await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise self._why_ended(join.group)
                response = following.result()
                if response is None:
                    return
                yield groups_pb2.CoordinatorMessage.FromString(response)
        finally:
            del self._passed_on[moved]
            for task in (ended, following):
                if task is not None:
                    task.cancel()
            await asyncio.gather(ended, *([following] if following else []), return_exceptions=True)

    def _why_ended(self, group: str) -> FluxError:
        if self.stopping:
            return FluxError(Reason.STOPPING, "this node is shutting down: join again through another one")
        return FluxError(Reason.NOT_LEADER, f"the coordinator of group {group} has moved")

    def _leader_changed(self, group_id: GroupId) -> None:
        for moved, (route, node) in self._passed_on.items():
            if route.group_id == group_id and self._leaders.leader_of_group(group_id) not in (None, node):
                moved.set()


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


def _partition(each: groups_pb2.TopicPartition) -> GroupId:
    return GroupId(each.topic_id, each.partition)


def _checked(join: groups_pb2.Join, client: MemberClient) -> group_log_pb2.JoinMember:
    """Bounds and defaults.

    Raises:
        FluxError: INVALID_GROUP_NAME, INVALID_TOPIC_NAME, INVALID_ARGUMENT.
    """
    check_group_name(join.group)
    for topic in join.topics:
        check_topic_name(topic)
    if len(join.member_id) != MEMBER_ID_BYTES:
        raise _invalid(f"member_id has {len(join.member_id)} bytes, not {MEMBER_ID_BYTES}")
    if len(join.client_name) > limits.CLIENT_NAME_CHARS_MAX:
        raise _invalid(f"client_name has {len(join.client_name)} characters, above {limits.CLIENT_NAME_CHARS_MAX}")
    topics = tuple(dict.fromkeys(join.topics))
    if not 1 <= len(topics) <= limits.GROUP_TOPICS_MAX:
        raise _invalid(f"{len(topics)} topics are not 1..{limits.GROUP_TOPICS_MAX}")
    session_ms = join.session_timeout_ms or limits.SESSION_TIMEOUT_MS_DEFAULT
    rebalance_ms = join.rebalance_timeout_ms or limits.REBALANCE_TIMEOUT_MS_DEFAULT
    if not limits.SESSION_TIMEOUT_MS_MIN <= session_ms <= limits.SESSION_TIMEOUT_MS_MAX:
        bounds = f"{limits.SESSION_TIMEOUT_MS_MIN:,}..{limits.SESSION_TIMEOUT_MS_MAX:,}"
        raise _invalid(f"session_timeout_ms {session_ms} is not {bounds}")
    if not limits.REBALANCE_TIMEOUT_MS_MIN <= rebalance_ms <= limits.REBALANCE_TIMEOUT_MS_MAX:
        bounds = f"{limits.REBALANCE_TIMEOUT_MS_MIN:,}..{limits.REBALANCE_TIMEOUT_MS_MAX:,}"
        raise _invalid(f"rebalance_timeout_ms {rebalance_ms} is not {bounds}")
    return group_log_pb2.JoinMember(
        member_id=join.member_id, client_name=join.client_name, host=client.host, via_node=client.via_node,
        topics=topics, session_timeout_ms=session_ms, rebalance_timeout_ms=rebalance_ms,
    )  # fmt: skip


def _invalid(message: str) -> FluxError:
    return FluxError(Reason.INVALID_ARGUMENT, message)
