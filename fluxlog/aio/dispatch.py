"""From batches to acknowledgements on an event loop: owns a producer's pipeline, its streams and its one timer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fluxlog.aio.connection import Connection
from fluxlog.aio.lanes import Lane, RecordsBatch
from fluxlog.aio.leader_watch import LeaderWatch
from fluxlog.aio.produce_stream import ProduceStream
from fluxlog.aio.tasks import TaskSet
from fluxlog.codec import Codec
from fluxlog.delivery import Batch, Retry
from fluxlog.errors import FluxlogError, LocalError
from fluxlog.pipeline import IN_FLIGHT_MAX, Pipeline
from fluxlog.v1 import log_pb2

_CLOSE_GRACE = 1.0


class Dispatch:
    """Hands batches over when their time has come.

    An open batch leaves when it is full, when nothing of its partition is in flight (then nothing waits), or after the
    linger; while as many batches as may be are in flight, it stays open.

    Args:
        linger: seconds that a batch waits at most while others of its partition are in flight.
        on_finished: called for each batch that has its result.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        on_finished: Callable[[RecordsBatch], None],
        on_retry: Callable[[Retry], None] | None,
        codec: Codec,
        linger: float,
        delivery_timeout: float,
    ) -> None:
        self._connection, self._on_finished, self._linger = connection, on_finished, linger
        self._on_retry = on_retry
        self._loop = asyncio.get_running_loop()
        self._tasks = TaskSet()
        self.pipeline = Pipeline(
            connection, self._open_stream, on_result=self._take_result, on_retry=self._take_retry, clock=time.monotonic,
            codec=codec, delivery_timeout=delivery_timeout,
        )  # fmt: skip
        self._leaders = LeaderWatch(connection, self.pipeline, self._tasks, self._soon)
        self._touched: dict[Lane, None] = {}
        """Their open batch may be due."""
        self._lingering: dict[Lane, None] = {}
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def touch(self, lane: Lane) -> None:
        """Something about a lane has changed: look at it when this turn of the loop is over."""
        self._touched[lane] = None
        self._soon()

    def hand_over(self, lane: Lane, batch: RecordsBatch) -> None:
        """A batch goes behind those of its lane."""
        lane.last = batch
        lane.unfinished += 1
        self.pipeline.add(lane.queue, batch)
        self.touch(lane)

    def seal(self, lane: Lane) -> None:
        """The open batch takes no more records and goes."""
        batch, lane.open = lane.open, None
        self._lingering.pop(lane, None)
        if batch is not None:
            if lane is lane.topic.sticky:
                lane.topic.move_on()
            self.hand_over(lane, batch)

    async def close(self) -> None:
        """Give every batch an outcome and end the streams."""
        self.pipeline.stop()
        self._leaders.close()
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close(grace=_CLOSE_GRACE)

    # ---- on the loop

    def _turn(self) -> None:
        self._scheduled = False
        now = time.monotonic()
        touched, self._touched = self._touched, {}
        for lane in touched:
            if lane.open is not None:
                self._consider(lane, now)
        self._advance()

    def _consider(self, lane: Lane, now: float) -> None:
        assert lane.open is not None
        if not lane.unfinished:
            self.seal(lane)
        elif lane.unfinished < IN_FLIGHT_MAX:
            due = lane.open.queued_at + self._linger
            if now >= due:
                self.seal(lane)
            else:
                self._lingering[lane] = None
                self._arm(due)

    def _advance(self) -> None:
        self.pipeline.advance()
        self._leaders.look()
        self._arm(self.pipeline.deadline)

    def _arm(self, when: float) -> None:
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self._loop.call_later(max(0.0, when - time.monotonic()), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        now = time.monotonic()
        lingering, self._lingering = self._lingering, {}
        for lane in lingering:
            if lane.open is not None:
                self._consider(lane, now)
        self._advance()

    # ---- what is heard

    def _open_stream(self, address: str) -> ProduceStream:
        return ProduceStream(self._connection.node(address), self._tasks, self._take_answer, self._take_broken)

    def _take_answer(self, stream: ProduceStream, response: log_pb2.ProduceStreamResponse) -> None:
        self.pipeline.take_answer(stream, response)
        self._soon()

    def _take_broken(self, stream: ProduceStream, failure: FluxlogError) -> None:
        self.pipeline.take_broken(stream, failure)
        self._soon()

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _take_result(self, batch: Batch) -> None:
        assert isinstance(batch, RecordsBatch)
        lane: Lane = batch.context
        lane.unfinished -= 1
        self._on_finished(batch)
        batch.resolve()
        if lane.open is not None:
            self.touch(lane)  # nothing else may come for it: what expires is told by the timer

    def _take_retry(self, retry: Retry) -> None:
        if self._on_retry is not None:
            # In a turn of its own: what it raises goes to the loop's handler, and leaves nothing half done here.
            self._loop.call_soon(self._on_retry, retry)


def closed_error() -> LocalError:
    """The producer takes no more records."""
    return LocalError("CANCELLED", "the producer is closed")
