"""Clients that write: idempotent ones with several batches in flight, plain ones, and conditional ones."""

from __future__ import annotations

from dataclasses import dataclass

from fluxd.core.errors import FluxError, Outcome, Reason
from fluxlog.batch import crc32c_of, encode_batch
from fluxlog.checker import Outcome as Recorded
from fluxlog.v1 import log_pb2, record_pb2
from tests.cluster.scene import LOG, OUTCOMES, TOPIC, Client, Scene
from tests.cluster.streams import Stream

PRODUCE = LOG + "Produce"
_TIMEOUT = 4.0
_RETRY_AFTER = 0.05
_RETRY_AFTER_MAX = 0.4


class Writer(Client):
    """What all of them do."""

    async def produce(self, address: str, request: log_pb2.ProduceRequest) -> log_pb2.ProduceResponse | FluxError:
        """One attempt."""
        return await self.call(address, PRODUCE, request, log_pb2.ProduceResponse, _TIMEOUT)

    def begin(self, partition: int, names: list[str], expected: int | None = None) -> int:
        """Enter a send in the history."""
        return self.scene.history.send(
            self.name, self.scene.name_of(partition), names, self.now, expected_offset=expected
        )

    def finish(
        self, row: int, partition: int, answer: log_pb2.ProduceResponse | FluxError, *, unclear: bool = False
    ) -> None:
        """Enter its answer. `unclear`: an earlier attempt may have been written."""
        history = self.scene.history
        if isinstance(answer, FluxError):
            outcome = Recorded.UNKNOWN if unclear else OUTCOMES[answer.traits.outcome]
            history.sent(row, self.now, outcome)
            return
        leads = not answer.duplicate and answer.leader.leader_epoch == answer.leader_epoch
        history.sent(
            row, self.now, Recorded.OK, offset=answer.base_offset, leader_epoch=answer.leader_epoch,
            node=answer.leader.node_id if leads else None,
        )  # fmt: skip
        self.scene.counts["duplicates_recognised"] += answer.duplicate
        self.scene.saw(partition, answer.base_offset + answer.record_count)
        if answer.copies_on_disk < self.scene.replicas // 2 + 1:
            self.scene.on_defect(f"{self.name}: acknowledged with {answer.copies_on_disk} copies on disk")

    def some_partition(self) -> int:
        """Of those that are known."""
        return self.rng.randrange(self.scene.partitions)


@dataclass(slots=True, eq=False)
class _Batch:
    """One batch over all its attempts."""

    row: int
    number: int
    request: log_pb2.ProduceRequest
    unclear: bool = False
    retry: bool = False


class Lane:
    """One producer's batches to one partition: several in flight, in order, each until it is committed."""

    def __init__(self, writer: IdempotentWriter, partition: int) -> None:
        self._writer, self._partition = writer, partition
        self._producer_id = writer.rng.randbytes(16)
        self._sequence = self._batches = 0
        self._window = writer.rng.choice((1, 1, 3, 8))
        self._target = ""
        self._acknowledged = self._resending = False
        self._pause = _RETRY_AFTER
        self.outstanding: list[_Batch] = []

    def send(self) -> None:
        """One more, if the window allows it: it counts from the oldest that is not answered."""
        oldest = self.outstanding[0].number if self.outstanding else self._batches
        if self._batches - oldest >= self._window:
            return
        names, values = self._writer.values(self._writer.rng.choice((1, 1, 2, 5)))
        data = encode_batch(values, producer_id=self._producer_id, base_sequence=self._sequence, timestamps_ms=0)
        request = log_pb2.ProduceRequest(
            topic=TOPIC, partition=self._partition, batch=record_pb2.RecordBatch.FromString(data),
            batch_crc32c=crc32c_of(data),
        )  # fmt: skip
        batch = _Batch(self._writer.begin(self._partition, names), self._batches, request)
        self._batches += 1
        self._sequence += len(names)
        self.outstanding.append(batch)
        self._writer.spawn(self._attempt(batch))

    async def _attempt(self, batch: _Batch) -> None:
        address, known_before = self._target or self._writer.any_address(), self._acknowledged
        answer = await self._writer.produce(address, batch.request)
        if batch not in self.outstanding:
            return
        if not isinstance(answer, FluxError):
            self._acknowledged = True
            self._pause = _RETRY_AFTER
            self._target = answer.leader.address if self._writer.goes_to_leaders else address
            self._writer.finish(batch.row, self._partition, answer)
            self.outstanding.remove(batch)
            return
        self._target = answer.metadata.get("leader_address", "") if self._writer.goes_to_leaders else ""
        batch.unclear |= answer.traits.outcome is not Outcome.REJECTED
        forgotten = answer.reason is Reason.UNKNOWN_PRODUCER and known_before
        known = (Reason.UNKNOWN_PRODUCER, Reason.OUT_OF_ORDER_SEQUENCE)
        if forgotten or not (answer.traits.retriable or answer.reason in known):
            self._writer.scene.on_defect(f"{self._writer.name}: {answer.reason.name}: {answer.message}")
        batch.retry = True
        if not self._resending:
            self._resending = True
            self._writer.spawn(self._resend())

    async def _resend(self) -> None:
        """In order of sequence; what is still under way stays under way."""
        await self._writer.rest(0.5 * self._pause, 1.5 * self._pause)
        self._pause = min(2 * self._pause, _RETRY_AFTER_MAX)
        self._resending = False
        for batch in self.outstanding:
            if batch.retry:
                batch.retry = False
                self._writer.scene.counts["retries"] += 1
                self._writer.spawn(self._attempt(batch))


class IdempotentWriter(Writer):
    """With a producer id: a batch is sent again until its outcome is known."""

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene)
        self.goes_to_leaders = self.rng.random() < 0.5
        self._uses_streams = self.rng.random() < 0.5
        self._streams: dict[str, Stream] = {}

    async def produce(self, address: str, request: log_pb2.ProduceRequest) -> log_pb2.ProduceResponse | FluxError:
        """One attempt, alone or on a stream."""
        if not self._uses_streams:
            return await super().produce(address, request)
        if address not in self._streams:
            self._streams[address] = Stream(self, address)
        return await self._streams[address].produce(request, _TIMEOUT)

    async def live(self) -> None:
        """Batches to all partitions."""
        self._streams = {}
        lanes: dict[int, Lane] = {}
        while self.scene.writing:
            partition = self.some_partition()
            if partition not in lanes:
                lanes[partition] = Lane(self, partition)
            for _ in range(self.rng.choice((1, 1, 1, 4))):
                lanes[partition].send()
            await self.rest(0.02, 0.15)
        while any(lane.outstanding for lane in lanes.values()):
            await self.rest(0.05, 0.05)


class PlainWriter(Writer):
    """Without one: each batch is sent once, whatever comes of it."""

    async def live(self) -> None:
        """One after another, as a batch or as plain records."""
        while self.scene.writing:
            partition = self.some_partition()
            names, values = self.values(self.rng.choice((1, 3)))
            request = log_pb2.ProduceRequest(topic=TOPIC, partition=partition)
            if self.rng.random() < 0.5:
                request.records.extend(record_pb2.Record(value=value) for value in values)
            else:
                request.batch.ParseFromString(encode_batch(values, timestamps_ms=0))
            row = self.begin(partition, names)
            self.finish(row, partition, await self.produce(self.any_address(), request))
            await self.rest(0.02, 0.2)


class ConditionalWriter(Writer):
    """Appends only where it believes the end to be, against everybody else."""

    async def live(self) -> None:
        """Try a few times to be the one that is next."""
        ends: dict[int, int] = {}
        while self.scene.writing:
            partition = self.some_partition()
            for _ in range(5):
                names, values = self.values(1)
                expected = ends.get(partition, 0)
                request = log_pb2.ProduceRequest(
                    topic=TOPIC, partition=partition, expected_offset=expected,
                    records=[record_pb2.Record(value=value) for value in values],
                )  # fmt: skip
                row = self.begin(partition, names, expected)
                answer = await self.produce(self.any_address(), request)
                self.finish(row, partition, answer)
                if not isinstance(answer, FluxError):
                    ends[partition] = answer.base_offset + answer.record_count
                    break
                if answer.reason is not Reason.WRONG_EXPECTED_OFFSET:
                    break
                ends[partition] = int(answer.metadata["log_end_offset"])
            await self.rest(0.1, 0.4)
