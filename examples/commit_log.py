"""A commit log: two stores follow it, each at its own pace, and end equal.

    python examples/commit_log.py [HOST:PORT]

Changes are written to the log first. One store is a dict, the other SQLite, which keeps the offset up to which it has
applied the log in the same transaction as what it applied: it can be stopped anywhere and goes on without a gap or a
change applied twice. Each stops once and starts again in the middle.
"""

import asyncio
import random
import sqlite3
import sys

from fluxlog import Admin, Consumer, Producer

TOPIC = "changes"
CHANGES = 3_000


class MemoryStore:
    """A dict."""

    def __init__(self) -> None:
        self.offset = 0
        self._rows: dict[bytes, bytes] = {}

    def apply(self, key: bytes, value: bytes | None, offset: int) -> None:
        if value is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = value
        self.offset = offset + 1

    def rows(self) -> dict[bytes, bytes]:
        return dict(self._rows)


class SqliteStore:
    """A table, and the offset beside it."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:")
        self._db.execute("CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB)")
        self._db.execute("CREATE TABLE applied AS SELECT 0 AS next_offset")

    @property
    def offset(self) -> int:
        return int(self._db.execute("SELECT next_offset FROM applied").fetchone()[0])

    def apply(self, key: bytes, value: bytes | None, offset: int) -> None:
        with self._db:  # one transaction
            if value is None:
                self._db.execute("DELETE FROM rows WHERE key = ?", (key,))
            else:
                self._db.execute("REPLACE INTO rows VALUES (?, ?)", (key, value))
            self._db.execute("UPDATE applied SET next_offset = ?", (offset + 1,))

    def rows(self) -> dict[bytes, bytes]:
        return dict(self._db.execute("SELECT key, value FROM rows"))


async def follow(cluster: str, store: MemoryStore | SqliteStore, until: int) -> None:
    """Apply the log from where the store is."""
    if store.offset >= until:
        return
    async with Consumer(cluster, TOPIC, partitions=[0], start=store.offset) as log:
        async for change in log:
            store.apply(change.key or b"", change.value, change.offset)
            if store.offset >= until:
                return


async def write(cluster: str) -> None:
    """Puts and (tombstones) deletes."""
    chance = random.Random(3)
    keys = [b"key-%d" % chance.randrange(200) for _ in range(CHANGES)]
    values = [None if chance.random() < 0.2 else b"%d" % chance.randrange(1_000_000) for _ in keys]
    async with Producer(cluster) as producer:
        await producer.send_many(TOPIC, values, keys=keys, partition=0)


async def main(cluster: str) -> None:
    async with Admin(cluster) as admin:
        await admin.create_topic(TOPIC, if_not_exists=True, wait_ms=10_000)
    stores = MemoryStore(), SqliteStore()
    await asyncio.gather(
        write(cluster), follow(cluster, stores[0], CHANGES // 3), follow(cluster, stores[1], CHANGES // 2)
    )
    await asyncio.gather(*[follow(cluster, store, CHANGES) for store in stores])
    print(f"{CHANGES} changes applied by both, {len(stores[0].rows())} rows")
    print("equal" if stores[0].rows() == stores[1].rows() else "different")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9101"))
