"""One loop over what a consumer reads, by records or by batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from fluxlog.aio.consumed import ConsumedBatch, ConsumedRecord
from fluxlog.aio.hand import Chunk, Hand


class Iteration:
    """What `async for` steps through; fluxlog.sync steps through the chunks on its caller's thread.

    Args:
        hand: of the consumer.
        wait_chunk: waits for the next batch when nothing is left of the one in hand; None: there will be none.
    """

    def __init__(self, hand: Hand, wait_chunk: Callable[[], Awaitable[Chunk | None]]) -> None:
        self._hand, self._wait_chunk = hand, wait_chunk

    async def next_chunk(self) -> Chunk | None:
        """The batch in hand while something of it is left, or the next one; None: there will be none. What was handed
        out before has been handled."""
        return self._hand.come_back(self) or await self._wait_chunk()

    def end(self) -> None:
        """The loop was left."""
        self._hand.let_go(self)

    async def records(self) -> AsyncGenerator[ConsumedRecord, None]:
        """One by one."""
        try:
            while (chunk := await self.next_chunk()) is not None:
                for record in chunk.records():
                    yield record
        finally:
            self.end()

    async def batches(self) -> AsyncGenerator[ConsumedBatch, None]:
        """Whole, or what is left of them."""
        try:
            while (chunk := await self.next_chunk()) is not None:
                if (batch := chunk.remainder()) is not None:
                    yield batch
        finally:
            self.end()
