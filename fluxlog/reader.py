"""Reads committed records of some partitions of a topic, in offset order within each, through failovers.

One long poll is open per partition; when a node fails, the next one is asked for the same offset, so nothing is
skipped or read twice. When none serves a partition, its new leader is told (fluxlog/lost_leaders.py); beside that they
are asked again, with pauses. Deliberately absent: groups and committed offsets.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import grpc

from fluxlog.client import Client
from fluxlog.entry import CorruptResponseError, FetchedBatch, batches_of, parse_response
from fluxlog.errors import FluxlogError, OffsetOutOfRangeError, from_rpc_error
from fluxlog.leader_watch import LeaderWatch
from fluxlog.lost_leaders import WAIT_MS, LostLeader, LostLeaders
from fluxlog.v1 import log_pb2, record_pb2

FETCH_BYTES_DEFAULT = 1_048_576
FETCH_WAIT_MS = 1_000
_ATTEMPT_GRACE = 4.0
"""Seconds beyond the long poll after which a node is taken for hung."""
_BACKOFF_MIN = 0.02
_BACKOFF_MAX = 0.5


@dataclass(frozen=True, slots=True)
class Fetched:
    """One answer: whole entries of one partition from an offset on."""

    partition: int
    wanted_offset: int
    """Records below it, in the first batch, are not to be delivered again."""
    next_offset: int
    high_watermark: int
    """Exclusive, as far as the node that answered knows."""
    entries: Sequence[record_pb2.LogEntry]
    served_by: int
    """Node id."""

    def batches(self) -> Iterator[FetchedBatch]:
        """What was fetched, not decoded yet: decoding one that is corrupt raises, and the next one can be taken."""
        return batches_of(self.entries, self.wanted_offset)


@dataclass(slots=True, eq=False)
class _Position:
    partition: int
    offset: int
    address: str
    lost: LostLeader
    failures: int = 0
    doubted_since: float = 0.0
    retry_at: float | None = None
    call: grpc.Future[bytes] | None = None

    def go_to(self, address: str) -> None:
        """The leader is there, as a node says: ask it at once; and if it does not answer yet, the others soon."""
        self.address, self.retry_at, self.failures = address, None, 1


_METHOD = "/fluxlog.v1.Log/Fetch"
# A node may not have heard yet of a new topic.
_DOUBTFUL = frozenset({"UNKNOWN_TOPIC", "UNKNOWN_PARTITION"})
_DOUBT_SECONDS = 2.0


class Reader:
    """Fetches from several partitions at once.

    Args:
        client: shared; not closed here.
        topic: its name.
        positions: offset to begin with, per partition.
        leaders: where to ask first, per partition.
        topic_id: 16 bytes: refuse to read another topic of this name (TOPIC_ID_MISMATCH). Empty: read on at the same
            offset when the topic is deleted and created anew.
        reset_below_start: begin at the log start when an offset is below it (otherwise OffsetOutOfRangeError).
        on_retry: called with (partition, failure, next address) when another node is asked.
        patience: seconds without an answer for a partition after which its failure is raised; None: never.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        positions: Mapping[int, int],
        *,
        leaders: Mapping[int, str] | None = None,
        topic_id: bytes = b"",
        reset_below_start: bool = False,
        on_retry: Callable[[int, FluxlogError, str], None] | None = None,
        patience: float | None = 60.0,
        max_bytes: int = FETCH_BYTES_DEFAULT,
        max_wait_ms: int = FETCH_WAIT_MS,
    ) -> None:
        self._client, self._topic, self._topic_id = client, topic, topic_id
        self._reset_below_start, self._on_retry, self._patience = reset_below_start, on_retry, patience
        self._max_bytes, self._max_wait_ms = max_bytes, max_wait_ms
        first = client.addresses()[0]
        self._positions = {
            number: self._position_of(number, offset, (leaders or {}).get(number) or first)
            for number, offset in positions.items()
        }
        self.last_failure: FluxlogError | None = None
        """Since the last answer of any partition."""
        self._last_answer = dict.fromkeys(self._positions, time.monotonic())
        # What has ended: one item per partition at most, since each has one call open, and one for the leaders.
        self._done: queue.SimpleQueue[Callable[[], Fetched | None]] = queue.SimpleQueue()
        self._lost = LostLeaders()
        self._leader_watch = LeaderWatch(client, self._lost, self._done.put, wait_ms=WAIT_MS)

    def _position_of(self, number: int, offset: int, address: str) -> _Position:
        lost = LostLeader(self._topic, number, lambda leader: position.go_to(leader))
        position = _Position(number, offset, address, lost)
        return position

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is open."""
        self._leader_watch.close()
        for position in self._positions.values():
            if position.call is not None:
                position.call.cancel()

    def position(self, partition: int) -> int:
        """Next offset of a partition."""
        return self._positions[partition].offset

    def stop(self, partition: int) -> None:
        """Read no more of a partition."""
        position = self._positions.pop(partition, None)
        if position is not None:
            self._lost.discard(position.lost)
            if position.call is not None:
                position.call.cancel()

    def poll(self, timeout: float) -> Fetched | None:
        """The next answer with anything in it, or that shows that the end is reached; None when none came in time.

        Args:
            timeout: seconds.

        Raises:
            OffsetOutOfRangeError: the offset is not (or no longer) there.
            FluxlogError: a failure that does not pass, or lasted longer than the patience.
        """
        give_up_at = time.monotonic() + timeout
        while self._positions:
            self._start_calls()
            self._leader_watch.look()
            now = time.monotonic()
            if now >= give_up_at:
                return None
            retries = [position.retry_at for position in self._positions.values() if position.retry_at is not None]
            try:
                ended = self._done.get(timeout=max(0.001, min([give_up_at, *retries]) - now))
            except queue.Empty:
                continue
            fetched = ended()
            if fetched is not None:
                return fetched
        return None

    def _start_calls(self) -> None:
        now = time.monotonic()
        for position in self._positions.values():
            if position.call is None and (position.retry_at is None or now >= position.retry_at):
                position.retry_at = None
                self._lost.discard(position.lost)
                request = log_pb2.FetchRequest(
                    topic=self._topic,
                    partition=position.partition,
                    offset=position.offset,
                    max_bytes=self._max_bytes,
                    # After a failure the first answer is to come at once.
                    max_wait_ms=0 if position.failures else self._max_wait_ms,
                    topic_id=self._topic_id,
                )
                # The answer's own bytes, since its checksums are over them.
                method: grpc.UnaryUnaryMultiCallable[log_pb2.FetchRequest, bytes] = self._client.node(
                    position.address
                ).channel.unary_unary(_METHOD, log_pb2.FetchRequest.SerializeToString, bytes)
                position.call = method.future(request, timeout=self._max_wait_ms / 1000 + _ATTEMPT_GRACE)
                position.call.add_done_callback(partial(self._post_done, position))

    def _post_done(self, position: _Position, _call: object) -> None:
        self._done.put(partial(self._take, position))

    def _take(self, position: _Position) -> Fetched | None:
        if self._positions.get(position.partition) is not position or position.call is None:  # stopped meanwhile
            return None
        if not position.call.done():  # the news of a call since replaced
            return None
        call, position.call = position.call, None
        try:
            response = parse_response(call.result())
        except CorruptResponseError as error:
            corrupt = f"{position.address} sent {self._topic}-{position.partition} damaged: {error}"
            self._handle_failure(position, FluxlogError("CORRUPT_RESPONSE", corrupt, retriable=True))
            return None
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            self._handle_failure(position, from_rpc_error(error, address=position.address))
            return None
        position.failures, position.doubted_since, self.last_failure = 0, 0.0, None
        self._last_answer[position.partition] = time.monotonic()
        wanted, status = position.offset, response.status
        position.offset = max(status.next_offset, wanted)
        if status.leader.address:
            self._client.remember([status.leader.address])
            position.lost.note(status.leader.leader_epoch)
        return Fetched(
            position.partition, wanted, position.offset, status.high_watermark, response.entries, status.served_by
        )

    def _handle_failure(self, position: _Position, failure: FluxlogError) -> None:
        now = time.monotonic()
        if (
            isinstance(failure, OffsetOutOfRangeError)
            and self._reset_below_start
            and position.offset < failure.log_start_offset
        ):
            position.offset = failure.log_start_offset
            return
        if failure.reason in _DOUBTFUL:
            position.doubted_since = position.doubted_since or now
            if now - position.doubted_since >= _DOUBT_SECONDS:
                raise failure
        elif not failure.retriable:
            raise failure
        if self._patience is not None and now - self._last_answer[position.partition] > self._patience:
            raise failure
        position.failures += 1
        self.last_failure, position.lost.avoid = failure, "" if failure.from_server else position.address
        leader = failure.leader_address
        if leader and leader != position.address:
            position.address = leader
        else:
            position.address = self._client.next_address(position.address)
            if position.failures >= len(self._client.addresses()):
                self._lost.add(position.lost)
        position.retry_at = now + min(_BACKOFF_MIN * 2 ** min(position.failures, 8), _BACKOFF_MAX)
        if self._on_retry is not None:
            self._on_retry(position.partition, failure, position.address)


def iter_until(reader: Reader, ends: Mapping[int, int], *, timeout: float) -> Iterator[Fetched]:
    """Read every partition up to an end (exclusive).

    Raises:
        FluxlogError: nothing came for `timeout` seconds: the last failure, or TIMEOUT.
    """
    waiting = dict(ends)
    for number, end in ends.items():
        if reader.position(number) >= end:
            reader.stop(number)
            del waiting[number]
    while waiting:
        fetched = reader.poll(timeout)
        if fetched is None:
            late = FluxlogError("TIMEOUT", f"nothing came for {timeout:g} s from partitions {sorted(waiting)}")
            raise reader.last_failure or late
        if fetched.next_offset >= waiting[fetched.partition]:
            reader.stop(fetched.partition)
            del waiting[fetched.partition]
        yield fetched
