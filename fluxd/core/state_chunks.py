"""The state that a log's records make, within the log itself: cut into chunks, each one record, and found again.

Whoever leads writes its state into the log now and then, and has the log trimmed to where that state was taken. Who
begins to read there finds the state further on, and goes on from where it was taken. So nothing is trimmed that a
majority does not have in another form: the chunks are committed before the trim is proposed, and stand before it in
every replica's log.
"""

from __future__ import annotations

from crc32c import crc32c

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.types import Offset
from fluxlog.v1 import state_pb2

_CHUNK_BYTES = 512 * limits.KIB


def state_chunks(applied_offset: Offset, data: bytes) -> list[state_pb2.StateChunk]:
    """An encoded state, in as many chunks as it takes.

    Args:
        applied_offset: first offset that is not in it.
        data: not empty.
    """
    parts = [data[at : at + _CHUNK_BYTES] for at in range(0, len(data), _CHUNK_BYTES)]
    checksum = crc32c(data)
    return [
        state_pb2.StateChunk(
            applied_offset=applied_offset, number=number, count=len(parts), data=part, checksum=checksum
        )
        for number, part in enumerate(parts)
    ]


class StateSearch:
    """Looks for a whole state in a log whose first records are gone.

    Args:
        log_start_offset: where the log begins: a state that was taken before is of no use.
    """

    def __init__(self, log_start_offset: Offset) -> None:
        self.position = log_start_offset
        """Offset of the record to look at next."""
        self._log_start_offset = log_start_offset
        self._chunks: dict[tuple[int, int, int | None], dict[int, bytes]] = {}
        """By state: two leaders may have begun to write one, in different ways."""

    def look(self, chunk: state_pb2.StateChunk | None) -> bytes | None:
        """Look at one record (None: it is no chunk); returns the encoded state when it is complete.

        Raises:
            CorruptDataError: what was written is not what was put together.
        """
        self.position = Offset(self.position + 1)
        if chunk is None or chunk.applied_offset < self._log_start_offset:
            return None
        checksum = chunk.checksum if chunk.HasField("checksum") else None
        chunks = self._chunks.setdefault((chunk.applied_offset, chunk.count, checksum), {})
        chunks[chunk.number] = chunk.data
        if len(chunks) < chunk.count:
            return None
        data = b"".join(data for _, data in sorted(chunks.items()))
        if checksum is not None and crc32c(data) != checksum:
            raise CorruptDataError(f"the state at offset {chunk.applied_offset} has another checksum than was written")
        return data
