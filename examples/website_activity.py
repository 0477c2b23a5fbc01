"""Website activity tracking: page views keyed by visitor, counted by page by two members of a group.

    python examples/website_activity.py [HOST:PORT]

The key keeps each visitor's views in one partition and so in order; the group shares the partitions.
"""

import asyncio
import random
import sys
from collections import Counter

from fluxlog import Admin, Consumer, Producer

TOPIC = "page-views"
PAGES = ("/", "/products", "/cart", "/checkout")
VIEWS = 2_000


async def visit(cluster: str) -> Counter[str]:
    """Visitors look at pages; returns how often each was looked at."""
    chance, views = random.Random(7), Counter[str]()
    async with Producer(cluster) as producer:
        await producer.prepare(TOPIC)
        for _ in range(VIEWS):
            page = chance.choice(PAGES)
            producer.send_nowait(TOPIC, page.encode(), key=f"visitor-{chance.randrange(100)}".encode())
            views[page] += 1
    return views  # leaving the producer has waited for every acknowledgement


async def count(cluster: str, name: str, pages: Counter[str], done: asyncio.Event) -> int:
    """One member; returns how many views it counted."""
    counted = 0
    async with Consumer(cluster, TOPIC, group="page-counters", start="earliest", client_name=name) as consumer:
        async for view in consumer:
            pages[(view.value or b"").decode()] += 1
            counted += 1
            if pages.total() >= VIEWS:
                await consumer.commit()
                done.set()
    return counted


async def main(cluster: str) -> None:
    async with Admin(cluster) as admin:
        await admin.create_topic(TOPIC, partitions=4, if_not_exists=True, wait_ms=10_000)
    views, pages, done = await visit(cluster), Counter[str](), asyncio.Event()
    members = [asyncio.create_task(count(cluster, f"counter-{number}", pages, done)) for number in (1, 2)]
    await asyncio.wait([asyncio.ensure_future(done.wait()), *members], return_when=asyncio.FIRST_COMPLETED)
    for member in members:
        member.cancel()
    await asyncio.gather(*members, return_exceptions=True)
    for page, times in pages.most_common():
        print(f"{page:<10} {times:>6}")
    print("counted as visited" if pages == views else f"counted {pages}, visited {views}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9101"))
