"""From the moment a record was due to be sent until it is in a consumer's hands, with the library at both ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fluxlog import Consumer, Producer

_RECORD_BYTES = 100


async def time_records(addresses: Sequence[str], topic: str, *, per_second: float, seconds: float) -> list[float]:
    """Send at a steady rate, whether or not the records before have arrived (open loop).

    Returns:
        Seconds that each record took; those of the first second, while connections are opened, are left out.
    """
    warm_up = int(per_second)
    count, taken_s = warm_up + int(seconds * per_second), list[float]()
    async with (
        Producer(addresses) as producer,
        Consumer(addresses, topic, start="earliest") as consumer,
        asyncio.TaskGroup() as tasks,
    ):
        await producer.send(topic, bytes(_RECORD_BYTES))

        async def consume() -> None:
            async for record in consumer:
                if record.offset:
                    taken_s.append(time.perf_counter() - float((record.value or b"0").rstrip(b" ")))
                if record.offset == count:
                    return

        tasks.create_task(consume())
        began = time.perf_counter()
        for number in range(count):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            producer.send_nowait(topic, f"{due:.9f}".encode().ljust(_RECORD_BYTES))
    return taken_s[warm_up:]
