"""A member of a consumer group: joins at any node, reads what it is given, commits, gives up what it is asked to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from grpc import aio

from fluxd.core.errors import FluxError, Reason
from fluxlog.v1 import groups_pb2, log_pb2
from tests.cluster.calls import SimCall
from tests.cluster.scene import LOG, TOPIC, Client, Scene, failure_of

GROUPS = "/fluxlog.v1.Groups/"
GROUP = "group"
_SESSION_MS, _REBALANCE_MS = 2_000, 1_000
_SLOW_TO_RELEASE = 0.6
"""How often a member keeps what it is asked to give up for longer than it may."""
_LEAVES = 0.02
"""How often it goes, and comes back as another one, each time it has looked at everything."""
_AWAY = (0.1, 2.0 * _SESSION_MS / 1000)
"""For so long, seconds: mostly the others have what it had by then, and have to give some of it up."""

Owned = tuple[bytes, int]
"""Topic id and partition."""


@dataclass
class Ledger:
    """What all members of the group were told."""

    committed: dict[Owned, int] = field(default_factory=dict)
    """Highest offset whose commit was acknowledged."""
    owners: dict[tuple[int, Owned], bytes] = field(default_factory=dict)
    """By generation and partition: who was given it."""


class Member(Client):
    """One of a group. After a crash it is another one."""

    def __init__(self, name: str, scene: Scene, ledger: Ledger) -> None:
        super().__init__(name, scene)
        self._ledger = ledger
        self._member_id = b""
        self._epoch = 0
        self._call: SimCall | None = None
        self._left = False
        self._slow_until = 0.0
        """Until then it does not leave: it is to be told that it has lost what it kept."""
        self._positions: dict[Owned, int] = {}

    async def live(self) -> None:
        """Join, and join again whenever the stream ends."""
        self._member_id, self._positions = self.rng.randbytes(16), {}
        self.spawn(self._work())
        while self.scene.reading:
            address = self.any_address()
            self._left = False
            call = self._call = self.channel(address).stream_stream(GROUPS + "Join")()
            try:
                await self._be_member(call)
            except aio.AioRpcError as error:
                failure = failure_of(error)
                self.judge("Join", failure)
                if failure.reason is Reason.FENCED_MEMBER:
                    self._member_id = self.rng.randbytes(16)
                    self._positions.clear()
            except asyncio.InvalidStateError:
                pass
            except asyncio.CancelledError:  # of the call, not of this task
                if not self._left:
                    raise
            finally:
                call.cancel()
            if self._left:  # who comes next does not know its id
                self._member_id = self.rng.randbytes(16)
            await self.rest(*(_AWAY if self._left else (0.05, 0.2)))

    async def _be_member(self, call: SimCall) -> None:
        join = groups_pb2.Join(
            group=GROUP, member_id=self._member_id, client_name=self.name, topics=[TOPIC],
            session_timeout_ms=_SESSION_MS, rebalance_timeout_ms=_REBALANCE_MS,
        )  # fmt: skip
        await call.write(groups_pb2.MemberMessage(join=join).SerializeToString())
        first = True
        while (data := await call.read()) is not aio.EOF:
            if self._left:
                return
            message = groups_pb2.CoordinatorMessage.FromString(data)
            match message.WhichOneof("body"):
                case "joined":
                    self._epoch = message.joined.member_epoch
                    self.scene.counts["members_resumed" if message.joined.resumed else "members_joined"] += 1
                case "assigned":
                    self._assigned(message.assigned, first=first)
                    first = False
                case "revoke":
                    if self.rng.random() < _SLOW_TO_RELEASE:
                        self.scene.counts["fault_slow_to_release"] += 1
                        self._slow_until = self.now + 2.5 * _REBALANCE_MS / 1000
                        await self.rest(1.2 * _REBALANCE_MS / 1000, 2.0 * _REBALANCE_MS / 1000)
                    await self._commit()
                    for partition in message.revoke.partitions:
                        self._positions.pop((partition.topic_id, partition.partition), None)
                    released = groups_pb2.Released(partitions=message.revoke.partitions)
                    await call.write(groups_pb2.MemberMessage(released=released).SerializeToString())
                    self.scene.counts["partitions_revoked"] += len(message.revoke.partitions)
                case "lost":
                    for partition in message.lost.partitions:
                        self._positions.pop((partition.topic_id, partition.partition), None)
                    self.scene.counts["partitions_lost"] += len(message.lost.partitions)

    def _assigned(self, assigned: groups_pb2.Assigned, *, first: bool) -> None:
        if first:
            before, self._positions = self._positions, {}
        else:
            before = {}
        for item in assigned.assignments:
            owned = (item.partition.topic_id, item.partition.partition)
            known = self._ledger.owners.setdefault((assigned.generation, owned), self._member_id)
            if known != self._member_id:
                self.scene.on_defect(f"{self.name}: partition {owned[1]} has two owners in {assigned.generation}")
            self._positions[owned] = max(item.committed_offset, before.get(owned, 0))
        self.scene.counts["partitions_assigned"] += len(assigned.assignments)

    def _leave(self) -> None:
        """Without a word: its stream breaks, and what was read from it meanwhile nobody looks at."""
        if self._call is not None and self._call.cancel():
            self._left = True
            self._positions.clear()

    # ---- work

    async def _work(self) -> None:
        """Read what is owned, commit, and look at what is committed, from time to time."""
        while self.scene.reading:
            for owned in tuple(self._positions):
                await self._read(owned)
            if self.rng.random() < 0.5:
                await self._commit()
            if self.rng.random() < 0.2:
                await self._look()
            if self.rng.random() < _LEAVES and self.now > self._slow_until:
                self.scene.counts["members_left"] += 1
                self._leave()
            await self.rest(0.05, 0.3)

    async def _read(self, owned: Owned) -> None:
        topic_id, partition = owned
        offset = self._positions.get(owned)
        if offset is None:
            return
        request = log_pb2.FetchRequest(
            topic=TOPIC, topic_id=topic_id, partition=partition, offset=offset, as_records=True
        )
        answer = await self.call(self.any_address(), LOG + "Fetch", request, log_pb2.FetchResponse, 2.0)
        if self._positions.get(owned) != offset:
            return  # it has changed hands meanwhile
        if not isinstance(answer, FluxError):
            self._positions[owned] = answer.status.next_offset
            self.scene.counts["consumed"] += len(answer.records)
        elif answer.reason is Reason.OFFSET_OUT_OF_RANGE:
            self._positions[owned] = max(offset, int(answer.metadata["log_start_offset"]))

    async def _commit(self) -> None:
        asked = [(owned, offset) for owned, offset in self._positions.items() if offset]
        if not asked:
            return
        request = groups_pb2.CommitOffsetsRequest(group=GROUP, member_id=self._member_id, member_epoch=self._epoch)
        for (topic_id, partition), offset in asked:
            request.offsets.add(topic=TOPIC, topic_id=topic_id, partition=partition, offset=offset)
        answer = await self.call(
            self.any_address(), GROUPS + "CommitOffsets", request, groups_pb2.CommitOffsetsResponse, 2.0
        )
        if isinstance(answer, FluxError):
            return
        for (owned, offset), result in zip(asked, answer.results, strict=True):
            if result.WhichOneof("result") != "committed_offset":
                continue
            if result.committed_offset < offset:
                self.scene.on_defect(f"{self.name}: committed {offset} of {owned[1]}, told {result.committed_offset}")
            self._ledger.committed[owned] = max(offset, self._ledger.committed.get(owned, 0))

    async def _look(self) -> None:
        """A commit that was acknowledged is seen by whoever asks afterwards."""
        before = dict(self._ledger.committed)
        request = groups_pb2.FetchOffsetsRequest(group=GROUP)
        answer = await self.call(
            self.any_address(), GROUPS + "FetchOffsets", request, groups_pb2.FetchOffsetsResponse, 2.0
        )
        if isinstance(answer, FluxError):
            return
        found = {(item.partition.topic_id, item.partition.partition): item.offset for item in answer.offsets}
        for owned, offset in before.items():
            if found.get(owned, 0) < offset:
                self.scene.on_defect(
                    f"{self.name}: the commit of {offset} of partition {owned[1]} was acknowledged, "
                    f"then {found.get(owned)} was found"
                )
