"""How many bytes of requests may be in this node: per connection and in all. Over it the answer is OVERLOADED with a
delay, never a growing heap. (The bound per partition is its queue's, in `raft/group.py`.)
"""

from __future__ import annotations

import asyncio

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason


class Ticket:
    """Leave for one request's bytes. `release` counts once, however often it is called."""

    __slots__ = ("_admission", "_connection", "_size")

    def __init__(self, admission: Admission, connection: str, size: int) -> None:
        self._admission, self._connection, self._size = admission, connection, size

    def release(self) -> None:
        """The request is answered and its bytes are gone."""
        self._admission._give_back(self._connection, self._size)
        self._size = 0


class Admission:
    """Counts the bytes of requests that have not been answered."""

    def __init__(
        self,
        node_bytes_max: int = limits.NODE_QUEUE_BYTES_MAX,
        connection_bytes_max: int = limits.CONNECTION_QUEUE_BYTES_MAX,
    ) -> None:
        self._node_bytes_max = node_bytes_max
        self._connection_bytes_max = connection_bytes_max
        self._by_connection: dict[str, int] = {}
        self.bytes_admitted = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def admit(self, connection: str, size: int) -> Ticket:
        """Take a place for a request.

        Args:
            connection: names the client's connection.
            size: encoded bytes.

        Raises:
            FluxError: OVERLOADED, REJECTED.
        """
        used = self._by_connection.get(connection, 0)
        if self.bytes_admitted + size > self._node_bytes_max:
            raise _overloaded(f"{self.bytes_admitted} bytes of requests wait on this node", self._node_bytes_max)
        if used + size > self._connection_bytes_max:
            raise _overloaded(f"{used} bytes of requests wait on this connection", self._connection_bytes_max)
        self.bytes_admitted += size
        self._empty.clear()
        self._by_connection[connection] = used + size
        return Ticket(self, connection, size)

    async def drained(self) -> None:
        """Return when no request waits for its answer."""
        await self._empty.wait()

    def _give_back(self, connection: str, size: int) -> None:
        if not size:
            return
        self.bytes_admitted -= size
        if not self.bytes_admitted:
            self._empty.set()
        left = self._by_connection[connection] - size
        if left:
            self._by_connection[connection] = left
        else:
            del self._by_connection[connection]


def _overloaded(what: str, bound: int) -> FluxError:
    return FluxError(Reason.OVERLOADED, f"{what}, the bound is {bound}", retry_after_ms=limits.OVERLOADED_RETRY_MS)
