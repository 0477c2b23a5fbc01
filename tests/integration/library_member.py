"""A member of a group in a process of its own: prints each record when it has handled it.

python -m tests.integration.library_member ADDRESSES TOPIC GROUP
"""

from __future__ import annotations

import asyncio
import sys

from fluxlog import Consumer


async def main(addresses: str, topic: str, group: str) -> None:
    """Until it is killed."""
    async with Consumer(addresses, topic, group=group, start="earliest", commit_interval_ms=50) as consumer:
        async for record in consumer:
            sys.stdout.write(f"{record.partition} {record.offset}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
