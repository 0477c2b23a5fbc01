"""The state of the metadata as it stands in their own log, in records between the commands (metadata.proto)."""

from __future__ import annotations

from dataclasses import dataclass

from crc32c import crc32c
from google.protobuf.message import DecodeError

from fluxlog.entry import UndecodableBatchError, records_of
from fluxlog.offline.frames import Entry, SegmentBytes, message_of
from fluxlog.v1 import metadata_pb2, state_pb2

METADATA_TOPIC_ID = bytes(15) + b"\x01"


@dataclass(frozen=True, slots=True)
class MetadataState:
    """A whole one.

    Args:
        applied_offset: first offset of the log that is not in it.
    """

    applied_offset: int
    topics: int
    nodes: int


def chunks_in(data: SegmentBytes, entry: Entry) -> list[state_pb2.StateChunk]:
    """The parts of states in a sound entry of the metadata log; none where it cannot be decoded."""
    out = []
    try:
        for record in records_of([message_of(data, entry)], 0):
            command = metadata_pb2.MetadataCommand.FromString(record.value or b"")
            if command.HasField("state_chunk"):
                out.append(command.state_chunk)
    except (DecodeError, UndecodableBatchError):
        return []
    return out


class MetadataStates:
    """Puts states together.

    Attributes:
        last: the last whole one.
    """

    def __init__(self) -> None:
        self.last: MetadataState | None = None
        self._parts: dict[tuple[int, int, int], dict[int, bytes]] = {}

    def take(self, chunk: state_pb2.StateChunk) -> None:
        """In the order of the log."""
        parts = self._parts.setdefault((chunk.applied_offset, chunk.count, chunk.checksum), {})
        parts[chunk.number] = chunk.data
        if len(parts) < chunk.count:
            return
        data = b"".join(part for _, part in sorted(parts.items()))
        if crc32c(data) != chunk.checksum:
            return
        try:
            message = metadata_pb2.MetadataSnapshot.FromString(data)
        except DecodeError:
            return
        self.last = MetadataState(chunk.applied_offset, len(message.topics), len(message.nodes))
