"""Where a partition begins, ends, and was at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from fluxlog.client import Client
from fluxlog.errors import from_error_message
from fluxlog.v1 import log_pb2

_QUERIES_MAX = 10_000
_PATIENCE = 10.0
_PAUSE = 0.1


def list_offsets(
    client: Client, queries: Iterable[log_pb2.OffsetQuery], *, patience: float = _PATIENCE
) -> Mapping[tuple[str, int], log_pb2.OffsetFound]:
    """Ask for offsets, one query per partition, in calls of 10,000 at most.

    Args:
        patience: seconds in which to ask again while a partition has no leader.

    Raises:
        FluxlogError: of the first partition that could not answer; NO_QUORUM and the like are retriable.
    """
    waiting, found = list(queries), dict[tuple[str, int], log_pb2.OffsetFound]()
    give_up_at = time.monotonic() + patience
    while waiting:
        asked, later = waiting[:_QUERIES_MAX], waiting[_QUERIES_MAX:]
        answer = client.call(
            lambda node: node.log.ListOffsets, log_pb2.ListOffsetsRequest(queries=asked), patience=patience
        )
        failed = []
        for query, result in zip(asked, answer.results, strict=True):
            if result.WhichOneof("result") == "found":
                found[result.topic, result.partition] = result.found
                continue
            failure = from_error_message(result.error)
            if not failure.retriable or time.monotonic() >= give_up_at:
                raise failure
            failed.append(query)
        if failed and not later:
            time.sleep(_PAUSE)
        waiting = later + failed
    return found


def latest_offsets(client: Client, topic: str, partitions: Iterable[int]) -> Mapping[int, int]:
    """High watermark (exclusive) of each partition: everything acknowledged before this call is below it."""
    queries = [log_pb2.OffsetQuery(topic=topic, partition=number, latest=True) for number in partitions]
    return {number: found.offset for (_, number), found in list_offsets(client, queries).items()}


def earliest_offsets(client: Client, topic: str, partitions: Iterable[int]) -> Mapping[int, int]:
    """First offset that is kept, of each partition."""
    queries = [log_pb2.OffsetQuery(topic=topic, partition=number, earliest=True) for number in partitions]
    return {number: found.offset for (_, number), found in list_offsets(client, queries).items()}


def offsets_at(client: Client, topic: str, partitions: Iterable[int], time_ms: int) -> Mapping[int, int]:
    """First offset appended at or after a time (Unix milliseconds), per partition; the high watermark if none was."""
    queries = [log_pb2.OffsetQuery(topic=topic, partition=number, time_ms=time_ms) for number in partitions]
    return {number: found.offset for (_, number), found in list_offsets(client, queries).items()}
