"""Stream processing: a topic in, a topic out: celsius to fahrenheit.

    python examples/stream_processing.py [HOST:PORT] [--crash-after N]

A record counts as handled when the loop asks for the next one, and by then its result is acknowledged: so no reading
is ever skipped. What a crash may repeat, exactly: results of the readings that were handled after the last commit
(commits are at most 200 ms apart), and of the one in hand. Nothing else, and in the same order. Each result carries
where it came from, so whoever reads them can drop a repetition: `read_once` does.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator

from fluxlog import Admin, Consumer, Producer

IN, OUT, GROUP = "celsius", "fahrenheit", "converter"


async def convert(cluster: str, until: int, crash_after: int) -> None:
    """The processor: ends when nothing has come for a while; --crash-after ends it as a power cut would."""
    handled = 0
    async with Producer(cluster) as producer, Consumer(cluster, IN, group=GROUP, start="earliest") as consumer:
        async for reading in consumer:
            result = f"{float(reading.value or b'0') * 9 / 5 + 32:g}".encode()
            source = [("source", f"{reading.partition}/{reading.offset}".encode())]
            await producer.send(OUT, result, key=reading.key, headers=source)
            handled += 1
            if handled == crash_after:
                os._exit(1)
            if reading.value == b"%d" % (until - 1):
                await consumer.commit()
                return


async def read_once(cluster: str) -> AsyncIterator[bytes]:
    """The results, each one once, whatever was repeated."""
    seen = set[bytes | None]()
    async with Consumer(cluster, OUT, start="earliest", stop_at_end=True) as consumer:
        async for result in consumer:
            source = dict(result.headers)["source"]
            if source not in seen:
                seen.add(source)
                yield result.value or b""


async def main(cluster: str, readings: int, crash_after: int) -> None:
    async with Admin(cluster) as admin:
        created = [await admin.create_topic(name, if_not_exists=True, wait_ms=10_000) for name in (IN, OUT)]
    if created[0].created:
        async with Producer(cluster) as producer:
            await producer.send_many(IN, [b"%d" % number for number in range(readings)])
    await convert(cluster, readings, crash_after)
    results = [value async for value in read_once(cluster)]
    expected = [f"{number * 9 / 5 + 32:g}".encode() for number in range(readings)]
    async with Admin(cluster) as admin:
        written = sum((await admin.latest_offsets(OUT)).values())
    print(f"{readings} readings, {written} results written, {written - len(results)} of them repetitions")
    print("each once and in order" if results == expected else f"not as expected: {results[:10]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cluster", nargs="?", default="127.0.0.1:9101")
    parser.add_argument("--readings", type=int, default=500)
    parser.add_argument("--crash-after", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.cluster, arguments.readings, arguments.crash_after))
