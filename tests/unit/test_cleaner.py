"""Retention at work: a leader moves its log start, and readers are told where the log begins now."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fluxd.broker.cleaner import Cleaner
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import apply
from fluxd.core.types import Offset
from fluxlog.v1 import log_pb2
from tests.unit.broker_lone import Lone, batch, fetch_call, lone, produce_call


async def _clean(node: Lone, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the cleaner until the log start of "solo" has moved."""
    monkeypatch.setattr(limits, "RETENTION_CHECK_INTERVAL", 0.01)
    cleaner, group, moved = Cleaner(node.reactor, node.view, node.host.groups), node.group("solo"), asyncio.Event()
    group.on_commit.append(lambda: moved.set() if group.log_start_offset >= start else None)
    cleaner.start()
    async with asyncio.timeout(10):
        await moved.wait()
    cleaner.stop()
    assert group.log_start_offset == start


def _configure(node: Lone, **configs: str) -> None:
    topic = node.view.image.topic("solo")
    assert topic is not None
    command = node.metadata.commands.alter_topic(
        topic.topic_id, {key.replace("_", "."): value for key, value in configs.items()}, []
    )
    node.metadata.image, result = apply(node.metadata.image, command)
    assert result.reason is None
    node.view.image = node.metadata.image


def test_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed segments go; a reader below the start hears OFFSET_OUT_OF_RANGE with the new one, and its plan too."""

    async def test() -> None:
        async with lone(tmp_path) as node:
            group = node.group("solo")
            group.configure(segment_bytes=limits.SEGMENT_BYTES_MIN, segment_ms=1 << 40)
            for _ in range(3):
                await node.producing.produce(produce_call("solo", batch([bytes(50_000)])))
            plan = group.log.plan_read(Offset(0), max_bytes=1, end_index=group.commit_index)
            _configure(node, retention_bytes="0")
            await _clean(node, 2, monkeypatch)
            assert plan
            with pytest.raises(FluxError) as caught:
                await node.fetching.fetch(fetch_call("solo", 1))
            assert caught.value.reason is Reason.OFFSET_OUT_OF_RANGE
            assert caught.value.metadata == {"partition": "solo-0", "log_start_offset": "2", "high_watermark": "3"}
            response = log_pb2.FetchResponse.FromString(await node.fetching.fetch(fetch_call("solo", 2)))
            assert (response.status.next_offset, response.status.log_start_offset) == (3, 2)

    asyncio.run(test())


def test_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With age 0 everything goes: the active segment's file stays, but nobody reads it."""

    async def test() -> None:
        async with lone(tmp_path) as node:
            for _ in range(3):
                await node.producing.produce(produce_call("solo", batch([b"x"])))
            _configure(node, retention_ms="0")
            await _clean(node, 3, monkeypatch)
            with pytest.raises(FluxError) as caught:
                await node.fetching.fetch(fetch_call("solo", 2))
            assert caught.value.metadata["log_start_offset"] == "3"

    asyncio.run(test())


def test_by_default_nothing_goes_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven days; and the cluster's own topics have no retention."""

    async def test() -> None:
        async with lone(tmp_path) as node:
            await node.producing.produce(produce_call("solo", batch([b"x"])))
            Cleaner(node.reactor, node.view, node.host.groups)._round()
            assert node.group("solo").trimming.wanted is None

    asyncio.run(test())
