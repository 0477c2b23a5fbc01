"""A member's stream to its group's coordinator: joins, comes back with the same id, leaves. See groups.proto."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Protocol

import grpc
from grpc import aio

from fluxlog.aio.connection import Connection
from fluxlog.aio.tasks import TaskSet, was_cancelled
from fluxlog.errors import FluxlogError, LocalError, from_rpc_error
from fluxlog.v1 import groups_pb2

_BACKOFF_MIN = 0.05
_BACKOFF_MAX = 0.5
_NOTICED_AFTER = 2.5
"""Seconds that a connection may have been dead before this side noticed: keepalive's time and timeout."""
_LAPSE_MIN = 0.2
_LEAVE_TIMEOUT = 3.0

_Call = aio.StreamStreamCall[groups_pb2.MemberMessage, groups_pb2.CoordinatorMessage]


class MemberSide(Protocol):
    """What a member does with what it is told."""

    def take_assigned(self, assignments: Sequence[groups_pb2.Assignment], *, all_of_them: bool) -> None:
        """These are ours. `all_of_them`: what is not named is not (any more)."""

    async def give_up(self, partitions: Sequence[groups_pb2.TopicPartition], seconds: float) -> None:
        """Stop handing these out and commit; returns when that is done."""

    def take_lost(self, partitions: Sequence[groups_pb2.TopicPartition] | None) -> None:
        """These are not ours any more; None: none is."""

    def take_lapse(self, *, lapsed: bool) -> None:
        """Whether it cannot be known at the moment if what is ours still is."""

    def take_failure(self, failure: FluxlogError) -> None:
        """There is no membership, and there will be none."""


class Membership:
    """Keeps a member in its group until it leaves.

    Args:
        session_timeout_ms: how long it may be away; 0: the server's default.
        rebalance_timeout_ms: how long it may take to give up a partition; 0: the server's default.
    """

    def __init__(
        self,
        connection: Connection,
        group: str,
        topics: Sequence[str],
        side: MemberSide,
        *,
        client_name: str,
        session_timeout_ms: int,
        rebalance_timeout_ms: int,
    ) -> None:
        self._connection, self._group, self._topics, self._side = connection, group, topics, side
        self._client_name = client_name
        self._session_ms, self._rebalance_ms = session_timeout_ms, rebalance_timeout_ms
        self._member_id = os.urandom(16)
        self._epoch = 0
        self._call: _Call | None = None
        self._tasks = TaskSet()
        self._releasing: dict[tuple[bytes, int], None] = {}
        """Being given up."""
        self._lapse: asyncio.TimerHandle | None = None
        self._session_s = session_timeout_ms / 1000
        self._leaving = asyncio.Event()
        self._writing = asyncio.Lock()
        self._first_assigned = False

    @property
    def identity(self) -> tuple[bytes, int] | None:
        """Member id and epoch, once it has joined."""
        return (self._member_id, self._epoch) if self._epoch else None

    def open(self) -> None:
        """Join, and stay."""
        self._tasks.start(self._run(), f"member of {self._group}")

    async def send(self, message: groups_pb2.MemberMessage) -> None:
        """Tell the coordinator something, if there is a stream to it; otherwise it will ask again."""
        async with self._writing:
            call = self._call
            if call is not None and not call.done():
                # The reader hears of it.
                with contextlib.suppress(grpc.RpcError, aio.UsageError, asyncio.InvalidStateError):
                    await call.write(message)

    async def leave(self) -> None:
        """End the membership: what it owns is given on at once."""
        self._leaving.set()
        if self._call is not None and self._epoch:
            await self.send(groups_pb2.MemberMessage(leave=groups_pb2.Leave()))
            await self._tasks.close(grace=_LEAVE_TIMEOUT)
        if self._call is not None:
            self._call.cancel()
        if self._lapse is not None:
            self._lapse.cancel()
        await self._tasks.close(grace=0.1)

    # ---- the stream

    async def _run(self) -> None:
        address, pause = self._connection.addresses()[0], _BACKOFF_MIN
        while not self._leaving.is_set():
            self._first_assigned = True
            failure = await self._stay(address)
            if self._leaving.is_set():
                return
            if failure.reason == "FENCED_MEMBER":
                self._become_another()
                await asyncio.sleep(_BACKOFF_MIN)
                continue
            if (failure.from_server or isinstance(failure, LocalError)) and not failure.retriable:
                self._side.take_failure(failure)
                return
            self._start_lapse(failure)
            if not self._first_assigned:  # it had been joined: a failure anew
                pause = _BACKOFF_MIN
            address = self._connection.next_address(address)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF_MAX)

    async def _stay(self, address: str) -> FluxlogError:
        """One stream, until it ends; why it did."""
        try:
            self._call = call = self._connection.node(address).groups.Join()
            join = groups_pb2.Join(
                group=self._group, member_id=self._member_id, client_name=self._client_name, topics=self._topics,
                session_timeout_ms=self._session_ms, rebalance_timeout_ms=self._rebalance_ms,
            )  # fmt: skip
            await call.write(groups_pb2.MemberMessage(join=join))
            while isinstance(message := await call.read(), groups_pb2.CoordinatorMessage):
                self._take(message)
        except grpc.RpcError as error:
            return from_rpc_error(error, address=address)
        except aio.UsageError as error:
            return FluxlogError("CANCELLED", str(error), retriable=True, address=address)
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            return FluxlogError("CANCELLED", "the stream was closed here", retriable=True, address=address)
        except LocalError as error:  # the connection is closed
            return error
        finally:
            if self._call is not None:
                self._call.cancel()
            self._call = None
        return FluxlogError("UNAVAILABLE", f"{address} ended the stream", retriable=True, address=address)

    def _take(self, message: groups_pb2.CoordinatorMessage) -> None:
        match message.WhichOneof("body"):
            case "joined":
                self._take_joined(message.joined)
            case "assigned":
                mine = [each for each in message.assigned.assignments if _key(each.partition) not in self._releasing]
                first, self._first_assigned = self._first_assigned, False
                self._side.take_assigned(mine, all_of_them=first)
                self._end_lapse()
            case "revoke":
                partitions = [each for each in message.revoke.partitions if _key(each) not in self._releasing]
                self._releasing.update(dict.fromkeys(map(_key, partitions)))
                self._tasks.start(self._release(partitions, message.revoke.deadline_ms / 1000), "release partitions")
            case "lost":
                for each in message.lost.partitions:
                    self._releasing.pop(_key(each), None)
                self._side.take_lost(message.lost.partitions)

    def _take_joined(self, joined: groups_pb2.Joined) -> None:
        if self._epoch and (not joined.resumed or joined.member_epoch != self._epoch):
            self._releasing.clear()
            self._side.take_lost(None)
        self._epoch = joined.member_epoch
        self._session_s = joined.session_timeout_ms / 1000

    def _become_another(self) -> None:
        self._releasing.clear()
        self._side.take_lost(None)
        self._member_id, self._epoch = os.urandom(16), 0

    async def _release(self, partitions: Sequence[groups_pb2.TopicPartition], seconds: float) -> None:
        await self._side.give_up(partitions, seconds)
        given_up = [each for each in partitions if _key(each) in self._releasing]
        for each in given_up:
            del self._releasing[_key(each)]
        if given_up:
            await self.send(groups_pb2.MemberMessage(released=groups_pb2.Released(partitions=given_up)))

    # ---- away

    def _start_lapse(self, failure: FluxlogError) -> None:
        """Away, from when on? A server that says so has just done it; a connection may have been dead for a while."""
        if self._lapse is None and self._epoch:
            seconds = self._session_s if failure.from_server else self._session_s - _NOTICED_AFTER
            self._lapse = asyncio.get_running_loop().call_later(
                max(_LAPSE_MIN, seconds), lambda: self._side.take_lapse(lapsed=True)
            )

    def _end_lapse(self) -> None:
        if self._lapse is not None:
            self._lapse.cancel()
            self._lapse = None
        self._side.take_lapse(lapsed=False)


def _key(partition: groups_pb2.TopicPartition) -> tuple[bytes, int]:
    return partition.topic_id, partition.partition
