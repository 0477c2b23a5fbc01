"""Where partitions begin, end, and were at a time: asked from an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fluxlog.aio.connection import Connection
from fluxlog.errors import FluxlogError, from_error_message
from fluxlog.v1 import log_pb2

_QUERIES_MAX = 10_000
_PAUSE = 0.1


async def ask_offsets(
    connection: Connection, queries: Sequence[log_pb2.OffsetQuery], *, patience: float = 0.0
) -> list[log_pb2.OffsetFound | FluxlogError]:
    """Ask for offsets, in calls of 10,000 at most; one answer per query, in their order.

    Args:
        patience: seconds in which what can pass is asked again.

    Raises:
        FluxlogError: nobody answers the call itself.
    """
    answers: list[log_pb2.OffsetFound | FluxlogError] = []
    for first in range(0, len(queries), _QUERIES_MAX):
        answers += await _ask(connection, queries[first : first + _QUERIES_MAX], patience)
    return answers


async def _ask(
    connection: Connection, queries: Sequence[log_pb2.OffsetQuery], patience: float
) -> list[log_pb2.OffsetFound | FluxlogError]:
    give_up_at = time.monotonic() + patience
    answers: dict[int, log_pb2.OffsetFound | FluxlogError] = {}
    waiting = list(range(len(queries)))
    while waiting:
        request = log_pb2.ListOffsetsRequest(queries=[queries[number] for number in waiting])
        response = await connection.call(lambda node: node.log.ListOffsets, request, patience=patience)
        later = []
        for number, result in zip(waiting, response.results, strict=True):
            if result.WhichOneof("result") == "found":
                answers[number] = result.found
                continue
            answers[number] = failure = from_error_message(result.error)
            if failure.retriable:
                later.append(number)
        if time.monotonic() >= give_up_at:
            break
        waiting = later
        if waiting:
            await asyncio.sleep(_PAUSE)
    return [answers[number] for number in range(len(queries))]


async def find_offsets(
    connection: Connection, queries: Sequence[log_pb2.OffsetQuery], *, patience: float = 15.0
) -> list[int]:
    """One offset per query.

    Raises:
        FluxlogError: of the first partition that could not answer.
    """
    offsets = []
    for answer in await ask_offsets(connection, queries, patience=patience):
        if isinstance(answer, FluxlogError):
            raise answer
        offsets.append(answer.offset)
    return offsets
