"""Event sourcing: the log is the truth, state is rebuilt from it, and `expected_offset` keeps decisions consistent.

    python examples/event_sourcing.py [HOST:PORT]

Several clerks withdraw from one account at the same time. Each decides on the state as of an offset and appends only if
the log still ends there; who comes too late is told, reads what is new, and decides again. So the account never goes
below zero although nobody locks anything.
"""

import asyncio
import sys

from fluxlog import Admin, Consumer, Producer, RejectedError

TOPIC = "account-7"
DEPOSIT = 1_000
CLERKS, WITHDRAWALS, AMOUNT = 4, 10, 37


class Account:
    """State, and the offset up to which it is known."""

    def __init__(self, events: Consumer) -> None:
        self._events = aiter(events)
        self.balance = self.next_offset = 0

    async def catch_up(self, end: int) -> None:
        """Apply the events below an offset."""
        while self.next_offset < end:
            event = await anext(self._events)
            self.balance += int(event.value or b"0")
            self.next_offset = event.offset + 1


async def clerk(cluster: str, producer: Producer) -> tuple[int, int]:
    """Withdraws some times; returns how often it did, and how often it had to decide again."""
    done = again = 0
    async with Consumer(cluster, TOPIC, start="earliest") as events:
        account = Account(events)
        (end,) = (await events.find_offsets("latest")).values()
        while done < WITHDRAWALS:
            await account.catch_up(end)
            if account.balance < AMOUNT:
                break
            try:
                withdrawal = b"%d" % -AMOUNT
                placed = await producer.send(TOPIC, withdrawal, partition=0, expected_offset=account.next_offset)
                done, end = done + 1, placed.offset + 1
            except RejectedError as refusal:
                if refusal.reason != "WRONG_EXPECTED_OFFSET":
                    raise
                again, end = again + 1, int(refusal.metadata["log_end_offset"])
    return done, again


async def main(cluster: str) -> None:
    async with Admin(cluster) as admin:
        await admin.create_topic(TOPIC, if_not_exists=True, wait_ms=10_000)
    async with Producer(cluster) as producer:
        await producer.send(TOPIC, b"%d" % DEPOSIT, partition=0, expected_offset=0)
        results = await asyncio.gather(*[clerk(cluster, producer) for _ in range(CLERKS)])
    async with Consumer(cluster, TOPIC, start="earliest") as events:
        account = Account(events)
        await account.catch_up(*(await events.find_offsets("latest")).values())
    withdrawn, again = (sum(numbers) for numbers in zip(*results, strict=True))
    print(f"{withdrawn} withdrawals of {AMOUNT}, {again} decided again, {account.next_offset} events")
    print(f"balance {account.balance}, as the events say: {account.balance == DEPOSIT - withdrawn * AMOUNT >= 0}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9101"))
