"""One call of ProduceStream: many requests, each with its one response, in whatever order they are answered.

What this node leads is appended as it is read, without a task of its own. A request that has to wait (an election, a
hop to another node) is served by a task; a line per partition keeps the order of requests until they are on their way,
so those behind it queue up, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

from fluxd.broker.forward import ProduceAnswer
from fluxd.broker.produce import ProduceCall, Producing
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_message
from fluxd.observability import get_logger
from fluxd.rpc.raw import parse_produce, parse_stream_request
from fluxlog.v1 import log_pb2

log = get_logger()

_Partition = tuple[str, int]


@dataclass(slots=True)
class _Line:
    """Requests to one partition that are not on their way yet."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class _Turn(AbstractAsyncContextManager[None]):
    """One request's place in a line; entered when those before have left. `leave` may be called more than once."""

    def __init__(self, lines: dict[_Partition, _Line], partition: _Partition) -> None:
        self._lines, self._partition = lines, partition
        self._line: _Line | None = lines.setdefault(partition, _Line())
        self._line.length += 1

    async def __aenter__(self) -> None:
        assert self._line is not None
        await self._line.lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        assert self._line is not None
        self._line.lock.release()
        self.leave()

    def leave(self) -> None:
        """The request is on its way, or was refused."""
        line, self._line = self._line, None
        if line is not None:
            line.length -= 1
            if not line.length:
                del self._lines[self._partition]


class ProduceStream:
    """See the module.

    Args:
        producing: gives what serves, or raises NOT_READY or STOPPING.
        connection: names the client's connection.
        forwarded: another node passes the requests on.
    """

    def __init__(self, producing: Callable[[], Producing], connection: str, *, forwarded: bool) -> None:
        self._producing, self._connection, self._forwarded = producing, connection, forwarded
        self._responses: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by `_places`
        self._places = asyncio.Semaphore(limits.STREAM_IN_FLIGHT_MAX)
        self._lines: dict[_Partition, _Line] = {}
        self._unanswered = 0
        self._answered = asyncio.Event()

    async def serve(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The responses, until all requests are read and answered."""
        reader = asyncio.ensure_future(self._read(requests))
        try:
            while (response := await self._responses.get()) is not None:
                self._places.release()
                yield response
            await _outcome(reader)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async with asyncio.TaskGroup() as serving:
                async for message in requests:
                    number, raw = parse_stream_request(message)
                    await self._places.acquire()
                    self._unanswered += 1
                    self._begin(number, raw, serving)
            while self._unanswered:
                self._answered.clear()
                await self._answered.wait()
        finally:
            self._responses.put_nowait(None)

    def _begin(self, number: int, raw: bytes | memoryview, serving: asyncio.TaskGroup) -> None:
        try:
            call = parse_produce(raw, connection=self._connection, forwarded=self._forwarded)
            partition = call.topic, call.partition
            if partition in self._lines or not self._producing().start(call, partial(self._answer, number)):
                serving.create_task(self._wait(number, call, _Turn(self._lines, partition)))
        except Exception as error:  # noqa: BLE001 - a defect ends this request, not the stream's other ones
            self._answer(number, _told(error))

    async def _wait(self, number: int, call: ProduceCall, turn: _Turn) -> None:
        try:
            answer: ProduceAnswer = await self._producing().produce(call, turn)
        except Exception as error:  # noqa: BLE001 - as in `_begin`
            answer = _told(error)
        finally:
            turn.leave()
        self._answer(number, answer)

    def _answer(self, number: int, answer: ProduceAnswer) -> None:
        response = log_pb2.ProduceStreamResponse(correlation_id=number)
        if isinstance(answer, FluxError):
            response.error.CopyFrom(error_message(answer, writes=True))
        else:
            response.committed.CopyFrom(answer)
        self._responses.put_nowait(response.SerializeToString())
        self._unanswered -= 1
        self._answered.set()


def _told(error: Exception) -> FluxError:
    """What the client is told of whatever was raised."""
    if isinstance(error, FluxError):
        return error
    log.error("rpc_failed", method="Log/ProduceStream", exc_info=error)
    return FluxError(Reason.INTERNAL, f"a defect in the server ({type(error).__name__}); its log has the details")


async def _outcome(reader: asyncio.Future[None]) -> None:
    """The one error of a task group that ended."""
    try:
        await reader
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
