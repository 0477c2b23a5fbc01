"""Fetch, Follow and ListOffsets on one node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fluxd.broker.routes import Route
from fluxd.broker.waiting import WaitingRoom
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxlog.batch import encode_batch
from fluxlog.codec import Codec
from fluxlog.v1 import log_pb2, record_pb2
from tests.unit.broker_lone import Lone, batch, fetch_call, lone, produce_call


def run(root: Path, test: Callable[[Lone], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with lone(root) as node:
            await test(node)

    asyncio.run(inside())


async def write(node: Lone, *values: bytes) -> None:
    await node.producing.produce(produce_call("solo", batch(values)))


async def fetch(node: Lone, offset: int = 0, **fields: object) -> log_pb2.FetchResponse:
    return log_pb2.FetchResponse.FromString(await node.fetching.fetch(fetch_call("solo", offset, **fields)))


async def until_waiting(node: Lone, count: int) -> None:
    """Until so many reads wait."""
    while node.room.waiting < count:  # noqa: ASYNC110 - the room has no reason to announce who enters
        await asyncio.sleep(0)


def test_whole_entries(tmp_path: Path) -> None:
    """The entry that holds the offset and what follows; where to go on; bounded, but never nothing."""

    async def test(node: Lone) -> None:
        await write(node, b"a", b"b")
        await write(node, bytes(2_000))
        await write(node, b"d")
        everything = await fetch(node)
        assert [e.stamp.base_offset for e in everything.entries if e.stamp.record_count] == [0, 2, 3]
        assert (everything.status.next_offset, everything.status.high_watermark) == (4, 4)
        assert (everything.status.served_by, everything.status.leader.node_id) == (1, 1)
        inside = await fetch(node, 1, max_bytes=10)
        assert [e.stamp.base_offset for e in inside.entries] == [0]
        assert inside.status.next_offset == 2
        assert (await fetch(node, 2, max_bytes=10)).status.next_offset == 3

    run(tmp_path, test)


def test_plain_records(tmp_path: Path) -> None:
    """Records from the wanted offset on, with their offsets; a bound in the middle of an entry is gone on from."""

    async def test(node: Lone) -> None:
        await write(node, b"a", b"b", b"c")
        some = await fetch(node, 1, as_records=True)
        assert [(r.offset, r.value) for r in some.records] == [(1, b"b"), (2, b"c")]
        one = await fetch(node, 0, as_records=True, max_bytes=1)
        assert [r.value for r in one.records] == [b"a"]
        assert one.status.next_offset == 1

    run(tmp_path, test)


def test_batch_that_cannot_be_decoded(tmp_path: Path) -> None:
    """One clear error that says where to go on; the reader steps over it."""

    async def test(node: Lone) -> None:
        bad = record_pb2.RecordBatch(
            record_count=2, codec=record_pb2.CODEC_ZSTD, value_lengths=[5, 5], columns=b"not zstd"
        )
        await node.producing.produce(produce_call("solo", bad.SerializeToString()))
        await write(node, b"good")
        with pytest.raises(FluxError) as caught:
            await fetch(node, 1, as_records=True)
        assert caught.value.reason is Reason.CORRUPT_BATCH
        assert caught.value.metadata == {"partition": "solo-0", "base_offset": "0", "next_offset": "2"}
        assert "solo-0" in caught.value.message
        assert [r.value for r in (await fetch(node, 2, as_records=True)).records] == [b"good"]

    run(tmp_path, test)


def test_a_record_too_large_for_a_plain_response(tmp_path: Path) -> None:
    """Compressed it is accepted; as a plain record it would go over what clients receive by default. What is before it
    is read; then an error says where to go on, and as an entry it can be read.
    """

    async def test(node: Lone) -> None:
        values = [b"small", bytes(5_000_000), bytes(limits.PLAIN_RECORD_BYTES_MAX - 32), b"last"]
        await node.producing.produce(produce_call("solo", encode_batch(values, codec=Codec.ZSTD)))
        first = await fetch(node, 0, as_records=True)
        assert [r.value for r in first.records] == [b"small"]
        with pytest.raises(FluxError) as caught:
            await fetch(node, first.status.next_offset, as_records=True)
        assert caught.value.reason is Reason.BATCH_TOO_LARGE
        assert not caught.value.traits.retriable
        assert caught.value.metadata == {"partition": "solo-0", "base_offset": "1", "next_offset": "2"}
        largest = await fetch(node, 2, as_records=True)
        assert [r.offset for r in largest.records] == [2]
        assert limits.GRPC_MESSAGE_BYTES_MAX - 8 * limits.KIB < largest.ByteSize() < limits.GRPC_MESSAGE_BYTES_MAX
        assert [r.value for r in (await fetch(node, 3, as_records=True)).records] == [b"last"]
        assert sum(entry.stamp.record_count for entry in (await fetch(node, 1)).entries) == 4

    run(tmp_path, test)


def test_waits_for_a_commit(tmp_path: Path) -> None:
    """At the end a fetch waits, and a commit ends the wait; min_bytes waits for more."""

    async def test(node: Lone) -> None:
        waiting = asyncio.ensure_future(fetch(node, 0, max_wait_ms=20_000))
        patient = asyncio.ensure_future(fetch(node, 0, max_wait_ms=20_000, min_bytes=3_000))
        async with asyncio.timeout(10):
            await until_waiting(node, 2)
            await write(node, b"a")
            assert (await waiting).status.next_offset == 1
            await until_waiting(node, 1)
            assert not patient.done()
            await write(node, bytes(4_000))
            assert (await patient).status.next_offset == 2
        assert node.room.waiting == 0
        assert node.group("solo").on_commit == []

    run(tmp_path, test)


def test_what_is_committed_while_a_fetch_reads_ends_its_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes nobody, since nobody waits yet."""

    async def test(node: Lone) -> None:
        await write(node, b"a")
        read = node.fetching._read
        reads = list[object]()

        async def slow_read(*args: Any) -> Any:
            chunk = await read(*args)
            if not reads:
                await write(node, bytes(4_000))
            reads.append(chunk)
            return chunk

        monkeypatch.setattr(node.fetching, "_read", slow_read)
        async with asyncio.timeout(10):
            assert (await fetch(node, 0, max_wait_ms=30_000, min_bytes=3_000)).status.next_offset == 2
        assert len(reads) == 2

    run(tmp_path, test)


def test_follow(tmp_path: Path) -> None:
    """What is there, then what comes; the end of the replica ends the stream with the reason."""

    async def test(node: Lone) -> None:
        await write(node, b"a")
        following = node.fetching.follow(fetch_call("solo", as_records=True))
        async with asyncio.timeout(10):
            first = log_pb2.FetchResponse.FromString(await anext(following))
            assert [r.value for r in first.records] == [b"a"]
            second = asyncio.ensure_future(anext(following))
            await write(node, b"b")
            assert [r.value for r in log_pb2.FetchResponse.FromString(await second).records] == [b"b"]
            last = asyncio.ensure_future(anext(following))
            await until_waiting(node, 1)
            node.host.close(node.group("solo").group_id)
            with pytest.raises(FluxError) as caught:
                await last
        assert caught.value.reason is Reason.REPLICA_OFFLINE

    run(tmp_path, test)


def test_many_unknown_names_cost_one_confirmation(tmp_path: Path) -> None:
    """Each is found, or refused for itself; where nothing can be confirmed, what is known is found."""

    async def test(node: Lone) -> None:
        asked = [("solo", 0, b""), ("nothing", 0, b""), ("solo", 7, b""), ("none", 0, b"")]
        solo, nothing, seventh, none = await node.routes.find_all(asked)
        assert isinstance(solo, Route)
        assert (solo.name, node.confirmations) == ("solo-0", 1)
        reasons = [error.reason for error in (nothing, seventh, none) if isinstance(error, FluxError)]
        assert reasons == [Reason.UNKNOWN_TOPIC, Reason.UNKNOWN_PARTITION, Reason.UNKNOWN_TOPIC]
        node.confirmed = False
        solo, nothing = await node.routes.find_all(asked[:2])
        assert isinstance(solo, Route)
        assert isinstance(nothing, FluxError)
        assert (nothing.reason, node.confirmations) == (Reason.NO_CONTROLLER, 2)
        await node.routes.find_all(asked[:1])
        assert node.confirmations == 2, "nothing was unknown"

    run(tmp_path, test)


def test_out_of_range_is_the_leaders_word(tmp_path: Path) -> None:
    """A leader says so, with the bounds. A replica without a leader waits: the offset may be committed elsewhere."""

    async def test(node: Lone) -> None:
        await write(node, b"a")
        with pytest.raises(FluxError) as caught:
            await fetch(node, 7)
        assert caught.value.reason is Reason.OFFSET_OUT_OF_RANGE
        assert caught.value.metadata == {"partition": "solo-0", "log_start_offset": "0", "high_watermark": "1"}
        answer = log_pb2.FetchResponse.FromString(await node.fetching.fetch(fetch_call("pair", 7, max_wait_ms=10)))
        assert (answer.status.next_offset, answer.status.high_watermark) == (7, 0)

    run(tmp_path, test)


def test_bounds_of_requests(tmp_path: Path) -> None:
    """What is above its bound is refused."""

    async def test(node: Lone) -> None:
        for fields in ({"max_bytes": 1 << 30}, {"max_wait_ms": 30_001}, {"topic_id": b"x"}):
            with pytest.raises(FluxError) as caught:
                await fetch(node, 0, **fields)
            assert caught.value.reason is Reason.INVALID_ARGUMENT

    run(tmp_path, test)


def test_list_offsets(tmp_path: Path) -> None:
    """Ends by position and time; without a leader the start is known all the same, the end is not."""

    async def test(node: Lone) -> None:
        await write(node, b"a", b"b")
        queries = [
            log_pb2.OffsetQuery(topic="solo", earliest=True),
            log_pb2.OffsetQuery(topic="solo", latest=True),
            log_pb2.OffsetQuery(topic="solo", time_ms=0),
            log_pb2.OffsetQuery(topic="solo", time_ms=1 << 60),
            log_pb2.OffsetQuery(topic="solo"),
            log_pb2.OffsetQuery(topic="pair", earliest=True),
            log_pb2.OffsetQuery(topic="pair", latest=True),
            log_pb2.OffsetQuery(topic="nothing", latest=True),
        ]
        request = log_pb2.ListOffsetsRequest(queries=queries)
        results = (await node.offsets.list_offsets(request, forwarded=False)).results
        assert [result.found.offset for result in results[:4]] == [0, 2, 0, 2]
        assert [Reason(result.error.reason) for result in (results[4], *results[6:])] == [
            Reason.INVALID_ARGUMENT, Reason.NO_QUORUM, Reason.UNKNOWN_TOPIC,
        ]  # fmt: skip
        assert results[5].HasField("found")

    run(tmp_path, test)


class _Quiet:
    """A group in which nothing happens."""

    def __init__(self) -> None:
        self.on_commit: list[Callable[[], None]] = []
        self.on_role: list[Callable[[], None]] = []


def test_waiting_room_is_bounded() -> None:
    """One read too many is told to come back; the time of a wait ends; who leaves is forgotten."""

    async def test() -> None:
        room, group = WaitingRoom(1), _Quiet()
        assert not await room.wait(group, 0.001)
        waiting = asyncio.ensure_future(room.wait(group, None))
        await asyncio.sleep(0)
        with pytest.raises(FluxError) as caught:
            await room.wait(group, None)
        assert caught.value.reason is Reason.OVERLOADED
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (room.waiting, group.on_commit, group.on_role) == (0, [], [])

    asyncio.run(test())
