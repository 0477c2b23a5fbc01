"""What a fake cluster keeps of a partition, and the errors that it answers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from fluxd.core.entry import EntryKind, build_frame
from fluxlog.v1 import errors_pb2, record_pb2

_STATUS = {
    "UNKNOWN_TOPIC": grpc.StatusCode.NOT_FOUND,
    "OFFSET_OUT_OF_RANGE": grpc.StatusCode.OUT_OF_RANGE,
    "TOPIC_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
}


@dataclass
class FakePartition:
    """Committed batches, and which (producer, sequence) they were."""

    leader: int
    epoch: int = 1
    frames: list[bytes] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    written: dict[tuple[bytes, int], int] = field(default_factory=dict)
    next_sequence: dict[bytes, int] = field(default_factory=lambda: defaultdict(int))
    corrupt_next: bool = False
    log_start: int = 0
    """What is below it has expired."""

    def check_range(self, offset: int) -> None:
        """Raises OFFSET_OUT_OF_RANGE."""
        end = len(self.values)
        if not self.log_start <= offset <= end:
            raise FakeError("OFFSET_OUT_OF_RANGE", log_start_offset=str(self.log_start), high_watermark=str(end))

    def ends(self) -> list[int]:
        """First offset behind each batch."""
        return [*self.bases[1:], len(self.values)]

    def forget_producers(self) -> None:
        """As when too many others have written, or none for long."""
        self.written.clear()
        self.next_sequence.clear()

    def append(self, batch: record_pb2.RecordBatch, values: list[bytes | None]) -> int:
        """Commit one batch; returns its base offset."""
        base = len(self.values)
        data = batch.SerializeToString()
        self.frames.append(
            build_frame(
                kind=EntryKind.RECORDS,
                base_offset=base,
                raft_index=len(self.frames) + 1,
                leader_epoch=1,
                append_time_ms=1_000 + base,
                record_count=batch.record_count,
                previous_checksum=0,
                batches=[data],
            )
        )
        self.bases.append(base)
        self.values += values
        return base


class FakeError(Exception):
    """To be answered as an error with details."""

    def __init__(
        self,
        reason: str,
        *,
        outcome: str = "REJECTED",
        retriable: bool = False,
        retry_after_ms: int = 0,
        **metadata: str,
    ) -> None:
        super().__init__(reason)
        self.reason, self.outcome, self.retriable, self.metadata = reason, outcome, retriable, metadata
        self.retry_after_ms = retry_after_ms

    def message(self) -> errors_pb2.Error:
        return errors_pb2.Error(
            reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{self.reason}"),
            outcome=errors_pb2.Outcome.Value(f"OUTCOME_{self.outcome}"),
            retriable=self.retriable,
            message=f"fake {self.reason}",
            metadata=self.metadata,
            retry_after_ms=self.retry_after_ms,
        )

    def abort(self, context: grpc.ServicerContext) -> None:
        info = error_details_pb2.ErrorInfo(domain="fluxlog", reason=self.reason)
        info.metadata.update(outcome=self.outcome, retriable="true" if self.retriable else "false", **self.metadata)
        detail = any_pb2.Any()
        detail.Pack(info)
        code = _STATUS.get(self.reason, grpc.StatusCode.UNAVAILABLE)
        status = status_pb2.Status(code=code.value[0], message=f"fake {self.reason}", details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, f"fake {self.reason}")
