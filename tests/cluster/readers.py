"""Clients that read: from one node by Fetch, from some node by Follow, the latest offsets, and all at the end."""

from __future__ import annotations

import asyncio

from grpc import aio

from fluxd.core.errors import FluxError, Reason
from fluxlog.v1 import log_pb2
from tests.cluster.scene import LOG, TOPIC, Client, Scene, failure_of, runs_of


class Reader(Client):
    """What all of them do."""

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene)
        self.positions: dict[int, int] = {}
        self.known_as = name
        """In the history."""

    def assign_all(self) -> None:
        """Read all partitions, from where it was."""
        self.positions = {number: self.positions.get(number, 0) for number in range(self.scene.partitions)}
        self.assign()

    def assign(self) -> None:
        """Enter what is read from now on, and from where."""
        names = {self.scene.name_of(number): offset for number, offset in self.positions.items()}
        self.scene.history.assign(self.known_as, names, self.now)

    async def fetch(self, address: str, partition: int, wait_ms: int = 0) -> int | FluxError:
        """Ask once; the new position."""
        request = log_pb2.FetchRequest(
            topic=TOPIC, partition=partition, offset=self.positions[partition], max_wait_ms=wait_ms,
            max_bytes=self.rng.choice((0, 4_000, 100_000)), as_records=self.rng.random() < 0.3,
        )  # fmt: skip
        invoked = self.now
        data = await self.call_raw(address, LOG + "Fetch", request, 3.0)
        if isinstance(data, FluxError):
            return self.positions[partition] if self.skip_expired(partition, data, invoked) else data
        self.take(data, partition, invoked)
        return self.positions[partition]

    def skip_expired(self, partition: int, failure: FluxError, invoked: float) -> bool:
        """Retention was faster: go on at the log's start. False: that is not what the failure says."""
        if failure.reason is not Reason.OFFSET_OUT_OF_RANGE:
            return False
        start, end = (int(failure.metadata[name]) for name in ("log_start_offset", "high_watermark"))
        if start <= self.positions[partition]:
            return False
        self.scene.counts["expired"] += 1
        self.scene.history.watermark(
            f"start{self.scene.counts['expired']}", self.scene.name_of(partition), end, invoked, self.now,
            log_start_offset=start,
        )  # fmt: skip
        self.positions[partition] = start
        self.assign()
        return True

    def take(self, data: bytes, partition: int, invoked: float) -> None:
        """Enter what was read."""
        response, runs = runs_of(data, self.positions[partition])
        name = self.scene.name_of(partition)
        if runs:
            self.scene.history.poll_runs(
                self.known_as, invoked, self.now, [(name, offset, values) for offset, values in runs if values]
            )
        self.positions[partition] = response.status.next_offset
        self.scene.saw(partition, response.status.high_watermark)


class NodeReader(Reader):
    """All partitions from one node alone, whether it leads, follows, or has just come back."""

    def __init__(self, name: str, scene: Scene, address: str) -> None:
        super().__init__(name, scene)
        self._address = address

    async def live(self) -> None:
        """Partition by partition."""
        self.positions = {number: max(0, at - self.rng.randint(0, 50)) for number, at in self.positions.items()}
        while self.scene.reading:
            if len(self.positions) != self.scene.partitions:
                self.assign_all()
            for partition in tuple(self.positions):
                answer = await self.fetch(self._address, partition, self.rng.choice((0, 0, 200, 1_000)))
                if isinstance(answer, FluxError) and not answer.traits.retriable:
                    self.scene.on_defect(f"{self.name}: at {self.positions[partition]}: {answer.reason}: {answer}")
            await self.rest(0.05, 0.4)


class Follower(Reader):
    """One partition at a time by Follow, at any node, for a while."""

    async def live(self) -> None:
        """Again and again."""
        while self.scene.reading:
            self.assign_all()
            partition = self.rng.randrange(self.scene.partitions)
            try:
                async with asyncio.timeout(self.rng.choice((0.3, 1.0, 4.0))):
                    await self._follow(partition)
            except TimeoutError:
                pass
            await self.rest(0.05, 0.3)

    async def _follow(self, partition: int) -> None:
        request = log_pb2.FollowRequest(topic=TOPIC, partition=partition, offset=self.positions[partition])
        with self.stream(self.any_address(), LOG + "Follow", request) as call:
            invoked = self.now
            try:
                async for data in call:
                    self.take(data, partition, invoked)
                    self.scene.counts["followed"] += 1
                    invoked = self.now
            except aio.AioRpcError as error:
                failure = failure_of(error)
                self.judge("Follow", failure)
                if not failure.traits.retriable and not self.skip_expired(partition, failure, invoked):
                    self.scene.on_defect(f"{self.name}: {failure.reason}: {failure}")


class LatestReader(Client):
    """Asks any node where the partitions end: the answer covers all that was acknowledged before."""

    async def live(self) -> None:
        """A few times a second."""
        while self.scene.reading:
            queries = [
                log_pb2.OffsetQuery(topic=TOPIC, partition=number, latest=True)
                for number in range(self.scene.partitions)
            ]
            invoked = self.now
            answer = await self.call(
                self.any_address(), LOG + "ListOffsets", log_pb2.ListOffsetsRequest(queries=queries),
                log_pb2.ListOffsetsResponse, 3.0,
            )  # fmt: skip
            if not isinstance(answer, FluxError):
                for result in answer.results:
                    if result.WhichOneof("result") == "found":
                        self._found(result, invoked)
            await self.rest(0.1, 0.4)

    def _found(self, result: log_pb2.OffsetResult, invoked: float) -> None:
        self.scene.saw(result.partition, result.found.offset)
        self.scene.history.watermark(
            self.name, self.scene.name_of(result.partition), result.found.offset, invoked, self.now, latest=True
        )


class FinalReader(Reader):
    """In the end: everything from the beginning to the highest offset that anybody saw, from one node."""

    def __init__(self, name: str, scene: Scene, address: str) -> None:
        super().__init__(name, scene)
        self._address = address
        self.last_failure = ""

    async def live(self) -> None:
        """Until all is read. The world bounds the time."""
        for partition, end in sorted(self.scene.ends.items()):
            self.known_as, self.positions = f"{self.name}-{partition}", {partition: 0}
            self.assign()
            while self.positions[partition] < end:
                answer = await self.fetch(self._address, partition)
                if isinstance(answer, FluxError):
                    self.last_failure = f"partition {partition} at {self.positions[partition]} of {end}: {answer}"
                    await asyncio.sleep(0.1)
