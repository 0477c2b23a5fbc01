"""One call of ProduceStream: many requests, each with its one answer, in whatever order they come.

What this node leads is appended as it is read, without a task of its own. A request that has to wait (an election, a
hop to another node) is served by a task; a line per partition keeps the order of requests until they are on their way,
so those behind it queue up, too.
"""

from __future__ import annotations

import asyncio
from collections import deque
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

_ANSWERS_MAX = 256
"""In one message, which stays far below gRPC's bound on what a client receives, also when all are errors."""

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
        self._responses: deque[log_pb2.ProduceStreamResponse] = deque()  # bounded by `_places`
        self._something = asyncio.Event()
        """There is a response, or the last one has been queued."""
        self._ended = self._accepts_more = False
        self._places = asyncio.Semaphore(limits.STREAM_IN_FLIGHT_MAX)
        self._lines: dict[_Partition, _Line] = {}
        self._unanswered = 0
        self._answered = asyncio.Event()

    async def serve(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The responses, until all requests are read and answered."""
        reader = asyncio.ensure_future(self._read(requests))
        try:
            while await self._filled():
                yield self._next_message()
            await _outcome(reader)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _filled(self) -> bool:
        """Wait for a response; False: there will be none."""
        while not self._responses and not self._ended:
            self._something.clear()
            await self._something.wait()
        return bool(self._responses)

    def _next_message(self) -> bytes:
        """The oldest response and, where the client reads them so, those that wait behind it: what it costs to send a
        message is many times what is in it."""
        response = self._responses.popleft()
        self._places.release()
        if self._accepts_more and self._responses:
            for _ in range(min(len(self._responses), _ANSWERS_MAX - 1)):
                response.more.append(self._responses.popleft())
                self._places.release()
        return response.SerializeToString()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        broken: FluxError | None = None
        try:
            async with asyncio.TaskGroup() as serving:
                async for message in requests:
                    try:
                        number, raw, accepts_more = parse_stream_request(message)
                    except FluxError as error:  # that this was not written says nothing of those before it
                        broken = error
                        break
                    self._accepts_more |= accepts_more
                    await self._places.acquire()
                    self._unanswered += 1
                    self._begin(number, raw, serving)
            while self._unanswered:
                self._answered.clear()
                await self._answered.wait()
            if broken is not None:
                raise broken
        finally:
            self._ended = True
            self._something.set()

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
        self._responses.append(response)
        self._something.set()
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
