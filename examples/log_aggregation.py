"""Log aggregation: many files in, one topic, the order of each source kept.

    python examples/log_aggregation.py HOST:PORT DIRECTORY

Every *.log file of the directory is shipped line by line; the file's name is the key, so its lines stay in one
partition in their order. What was collected is then written back to DIRECTORY/collected, a file for each source.
"""

import asyncio
import sys
from collections import defaultdict
from pathlib import Path

from fluxlog import Admin, Codec, Consumer, Producer

TOPIC = "logs"


async def ship(producer: Producer, path: Path) -> int:
    """One source; returns its number of lines."""
    lines = await asyncio.to_thread(lambda: path.read_bytes().splitlines())
    if lines:
        await producer.send_many(TOPIC, lines, keys=[path.name.encode()] * len(lines))
    return len(lines)


async def collect(cluster: str) -> dict[str, list[bytes]]:
    """All lines by source, up to what is there now."""
    sources = defaultdict[str, list[bytes]](list)
    async with Consumer(cluster, TOPIC, start="earliest", stop_at_end=True) as consumer:
        async for batch in consumer.batches():
            for source, line in zip(batch.keys(), batch.values(), strict=True):
                sources[(source or b"").decode()].append(line or b"")
    return sources


async def main(cluster: str, directory: Path, files: list[Path]) -> None:
    async with Admin(cluster) as admin:
        await admin.create_topic(TOPIC, partitions=3, if_not_exists=True, wait_ms=10_000)
    async with Producer(cluster, codec=Codec.ZSTD) as producer:
        shipped = await asyncio.gather(*[ship(producer, path) for path in files])
    print(f"{sum(shipped)} lines of {len(shipped)} sources shipped")
    (directory / "collected").mkdir(exist_ok=True)
    for source, lines in sorted((await collect(cluster)).items()):
        (directory / "collected" / source).write_bytes(b"".join(line + b"\n" for line in lines))
        print(f"{source:<20} {len(lines):>6} lines")


if __name__ == "__main__":
    where = Path(sys.argv[2])
    asyncio.run(main(sys.argv[1], where, sorted(where.glob("*.log"))))
