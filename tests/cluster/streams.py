"""ProduceStream, as a client uses it: many requests on one stream, answers by correlation id."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from fluxd.core.errors import FluxError, Reason
from fluxd.core.status import error_from_message
from fluxlog.framing import answers_of
from fluxlog.v1 import log_pb2
from tests.cluster.calls import SimCall
from tests.cluster.scene import LOG, Client, failure_of

Answer = log_pb2.ProduceResponse | FluxError


class Stream:
    """To one node, opened for the first request, and again after it broke."""

    def __init__(self, client: Client, address: str) -> None:
        self._client, self._address = client, address
        self._call: SimCall | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._last = 0

    async def produce(self, request: log_pb2.ProduceRequest, timeout_s: float) -> Answer:
        """One request."""
        if self._call is None:
            self._call = self._client.channel(self._address).stream_stream(LOG + "ProduceStream")()
            self._client.spawn(self._read(self._call))
        call = self._call
        self._last += 1
        number = self._last
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        # Not with the first one: streams with a request or two get an answer each.
        message = log_pb2.ProduceStreamRequest(correlation_id=number, request=request, accepts_more=number > 2)
        try:
            async with asyncio.timeout(timeout_s):
                await call.write(message.SerializeToString())
                return await future
        except TimeoutError:
            return FluxError(Reason.OUTCOME_UNKNOWN, "no answer in time")
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return FluxError(Reason.OUTCOME_UNKNOWN, "the stream broke")
        finally:
            self._waiting.pop(number, None)

    async def _read(self, call: SimCall) -> None:
        failure = FluxError(Reason.OUTCOME_UNKNOWN, "the stream ended")
        try:
            while (data := await call.read()) is not aio.EOF:
                self._take(data)
        except aio.AioRpcError as error:
            failure = failure_of(error)
            self._client.judge("ProduceStream", failure)
        self._call = None
        for future in self._waiting.values():
            if not future.done():  # what ends the stream says nothing of the requests on it
                future.set_result(FluxError(Reason.OUTCOME_UNKNOWN, failure.message))

    def _take(self, data: Any) -> None:
        for response in answers_of(log_pb2.ProduceStreamResponse.FromString(data)):
            self._take_one(response)

    def _take_one(self, response: log_pb2.ProduceStreamResponse) -> None:
        future = self._waiting.get(response.correlation_id)
        answer: Answer = response.committed
        if not response.HasField("committed"):
            answer = error_from_message(response.error)
            self._client.judge("ProduceStream", answer)
        else:
            self._client.scene.counts["ok_ProduceStream"] += 1
        if future is not None and not future.done():
            future.set_result(answer)
