"""Readers of one partition from its start to its end: raw bytes, and every record decoded with `fluxlog`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from grpc import aio

from fluxlog.entry import batches_of, parse_response
from fluxlog.v1 import log_pb2
from tests.bench.load import open_channel
from tests.bench.usage import Meter, Usage

_FOLLOW = "/fluxlog.v1.Log/Follow"
_FETCH = "/fluxlog.v1.Log/Fetch"


@dataclass(frozen=True, slots=True)
class Read:
    """What was read."""

    size: int
    """Bytes of responses; with `records`: bytes of values."""
    records: int
    """0: they were not looked at."""
    usage: Usage

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes a second."""
        return self.size / self.usage.seconds / 1e6

    @property
    def records_per_s(self) -> float:
        """0 where they were not looked at."""
        return self.records / self.usage.seconds


async def _follow(channel: aio.Channel, topic: str, max_bytes: int) -> AsyncIterator[bytes]:
    method: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_FOLLOW)
    call = method(log_pb2.FollowRequest(topic=topic, max_bytes=max_bytes).SerializeToString())
    try:
        async for data in call:
            yield data
    finally:
        call.cancel()


async def follow_raw(address: str, topic: str, total_bytes: int, max_bytes: int, processes: Mapping[str, int]) -> Read:
    """Follow, counting bytes only.

    Args:
        total_bytes: stop once so many bytes have come; the partition must have them.
    """
    async with open_channel(address) as channel:
        meter, size = Meter(processes), 0
        async for data in _follow(channel, topic, max_bytes):
            size += len(data)
            if size >= total_bytes:
                break
        return Read(size, 0, meter.stop())


async def follow_decoded(
    address: str, topic: str, end_offset: int, max_bytes: int, processes: Mapping[str, int]
) -> Read:
    """Follow; every checksum verified, every value of every batch taken apart."""
    async with open_channel(address) as channel:
        meter, size, records, offset = Meter(processes), 0, 0, 0
        async for data in _follow(channel, topic, max_bytes):
            response = parse_response(data)
            for batch in batches_of(response.entries, offset):
                values = batch.decode().values()
                records += len(values)
                size += sum(len(value) for value in values if value is not None)
            offset = response.status.next_offset
            if offset >= end_offset:
                break
        return Read(size, records, meter.stop())


async def fetch_parsed(address: str, topic: str, end_offset: int, max_bytes: int, processes: Mapping[str, int]) -> Read:
    """Fetch, one request after another, each response parsed for where to go on."""
    async with open_channel(address) as channel:
        method: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_FETCH)
        meter, size, offset = Meter(processes), 0, 0
        while offset < end_offset:
            request = log_pb2.FetchRequest(topic=topic, offset=offset, max_bytes=max_bytes)
            data = await method(request.SerializeToString())
            size += len(data)
            offset = log_pb2.FetchResponse.FromString(data).status.next_offset
        return Read(size, 0, meter.stop())
