"""What waits to be sent: frames, order, bounds."""

from __future__ import annotations

import asyncio

from fluxd.peer.outbox import FRAME_BYTES_TARGET, Outbox
from fluxlog.v1 import peer_pb2


def message(term: int, size: int = 0) -> peer_pb2.GroupMessage:
    body = peer_pb2.AppendEntries(frames=[bytes(size)]) if size else None
    return peer_pb2.GroupMessage(topic_id=bytes(16), term=term, append_entries=body)


async def next_frame(box: Outbox) -> peer_pb2.PeerFrame:
    async with asyncio.timeout(5):
        return peer_pb2.PeerFrame.FromString(await box.next_frame())


def test_one_frame_for_all_that_waits() -> None:
    """What was queued together goes together, in order, with the newest status."""

    async def run() -> None:
        box = Outbox(10_000)
        for term in range(1, 6):
            assert box.put(message(term))
        box.put_status(peer_pb2.NodeStatus(node_id=1).SerializeToString())
        box.put_status(peer_pb2.NodeStatus(node_id=2).SerializeToString())
        frame = await next_frame(box)
        assert [m.term for m in frame.messages] == [1, 2, 3, 4, 5]
        assert frame.status.node_id == 2
        assert box.bytes_queued == 0

    asyncio.run(run())


def test_entries_are_put_into_their_message() -> None:
    """What arrives is the message as if its entries had been in it all the time."""

    async def run() -> None:
        box = Outbox(10_000)
        sent = message(1, 300)
        sent.append_entries.sequence = 7
        entries = [b"a" * 200, b"", b"c" * 3]
        assert box.put(sent, entries)
        assert box.put(message(2))
        received = (await next_frame(box)).messages
        sent.append_entries.frames.extend(entries)
        assert list(received) == [sent, message(2)]
        assert box.bytes_queued == 0

    asyncio.run(run())


def test_frames_are_bounded() -> None:
    """Large messages are spread over frames; one that is larger than a frame's target still goes."""

    async def run() -> None:
        box = Outbox(100 * FRAME_BYTES_TARGET)
        for term, size in enumerate((FRAME_BYTES_TARGET // 2, FRAME_BYTES_TARGET // 3, 2 * FRAME_BYTES_TARGET, 10), 1):
            box.put(message(term, size))
        frames = [[m.term for m in (await next_frame(box)).messages] for _ in range(3)]
        assert frames == [[1, 2], [3], [4]]

    asyncio.run(run())


def test_full_box_drops() -> None:
    """Above the bound a message is dropped, and said to be; room comes back when a frame leaves."""

    async def run() -> None:
        box = Outbox(1_500)
        assert box.put(message(1, 1_000))
        assert not box.put(message(2, 1_000))
        await next_frame(box)
        assert box.put(message(3, 1_000))
        box.clear()
        assert box.bytes_queued == 0

    asyncio.run(run())


def test_nothing_queued_waits() -> None:
    """Without a message there is no frame; one that comes later ends the wait."""

    async def run() -> None:
        box = Outbox(1_000)
        waiting = asyncio.ensure_future(next_frame(box))
        await asyncio.sleep(0)
        assert not waiting.done()
        box.put(message(7))
        assert [m.term for m in (await waiting).messages] == [7]

    asyncio.run(run())
