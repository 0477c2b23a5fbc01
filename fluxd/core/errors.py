"""The tree of errors. One class, `FluxError`, carries a stable reason; what is the same for every error of a reason
(gRPC status, whether a retry can help, whether a write with it is surely not done) stands in one table.

A broken invariant is not a FluxError: see `InvariantViolation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fluxlog.v1 import errors_pb2


class Outcome(Enum):
    """What became of a write. Never blurred."""

    COMMITTED = errors_pb2.OUTCOME_COMMITTED
    REJECTED = errors_pb2.OUTCOME_REJECTED
    UNKNOWN = errors_pb2.OUTCOME_UNKNOWN


class Reason(Enum):
    """Stable error codes; values and names as in errors.proto (there with the prefix ERROR_REASON_)."""

    INVALID_ARGUMENT = 1
    CORRUPT_BATCH = 2
    WRONG_CHECKSUM = 3
    BATCH_TOO_LARGE = 4
    INVALID_TOPIC_NAME = 5
    INVALID_CONFIG = 6
    UNKNOWN_TOPIC = 7
    UNKNOWN_PARTITION = 8
    UNKNOWN_NODE = 9
    TOPIC_EXISTS = 10
    TOPIC_ID_MISMATCH = 11
    OFFSET_OUT_OF_RANGE = 12
    NOT_ENOUGH_NODES = 13
    PERMISSION_DENIED = 14
    UNAUTHENTICATED = 15
    WRONG_CLUSTER = 16
    NODE_ID_IN_USE = 17
    PARTITION_COUNT = 18
    INVALID_GROUP_NAME = 19
    UNKNOWN_GROUP = 20
    GROUP_NOT_EMPTY = 21
    FENCED_MEMBER = 22
    WRONG_EXPECTED_OFFSET = 30
    OUT_OF_ORDER_SEQUENCE = 31
    UNKNOWN_PRODUCER = 32
    DUPLICATE_FORGOTTEN = 33
    NOT_LEADER = 50
    NO_LEADER = 51
    NO_QUORUM = 52
    NO_CONTROLLER = 53
    OVERLOADED = 54
    STOPPING = 55
    NOT_READY = 56
    REPLICA_OFFLINE = 57
    DISK_FULL = 58
    OUTCOME_UNKNOWN = 70
    TIMEOUT = 71
    INTERNAL = 90


@dataclass(frozen=True, slots=True)
class ReasonTraits:
    """What holds for every error of one reason. `status` is the name of a gRPC status code."""

    status: str
    retriable: bool
    outcome: Outcome


def _rejected(status: str, *, retriable: bool = False) -> ReasonTraits:
    return ReasonTraits(status, retriable, Outcome.REJECTED)


def _unknown(status: str, *, retriable: bool = True) -> ReasonTraits:
    return ReasonTraits(status, retriable, Outcome.UNKNOWN)


TRAITS: Mapping[Reason, ReasonTraits] = {
    Reason.INVALID_ARGUMENT: _rejected("INVALID_ARGUMENT"),
    Reason.CORRUPT_BATCH: _rejected("INVALID_ARGUMENT"),
    Reason.WRONG_CHECKSUM: _rejected("INVALID_ARGUMENT"),
    Reason.BATCH_TOO_LARGE: _rejected("INVALID_ARGUMENT"),
    Reason.INVALID_TOPIC_NAME: _rejected("INVALID_ARGUMENT"),
    Reason.INVALID_CONFIG: _rejected("INVALID_ARGUMENT"),
    Reason.UNKNOWN_TOPIC: _rejected("NOT_FOUND"),
    Reason.UNKNOWN_PARTITION: _rejected("NOT_FOUND"),
    Reason.UNKNOWN_NODE: _rejected("NOT_FOUND"),
    Reason.TOPIC_EXISTS: _rejected("ALREADY_EXISTS"),
    Reason.TOPIC_ID_MISMATCH: _rejected("FAILED_PRECONDITION"),
    Reason.OFFSET_OUT_OF_RANGE: _rejected("OUT_OF_RANGE"),
    Reason.NOT_ENOUGH_NODES: _rejected("FAILED_PRECONDITION"),
    Reason.PERMISSION_DENIED: _rejected("PERMISSION_DENIED"),
    Reason.UNAUTHENTICATED: _rejected("UNAUTHENTICATED"),
    Reason.WRONG_CLUSTER: _rejected("FAILED_PRECONDITION"),
    Reason.NODE_ID_IN_USE: _rejected("ALREADY_EXISTS"),
    Reason.PARTITION_COUNT: _rejected("INVALID_ARGUMENT"),
    Reason.INVALID_GROUP_NAME: _rejected("INVALID_ARGUMENT"),
    Reason.UNKNOWN_GROUP: _rejected("NOT_FOUND"),
    Reason.GROUP_NOT_EMPTY: _rejected("FAILED_PRECONDITION"),
    Reason.FENCED_MEMBER: _rejected("FAILED_PRECONDITION"),
    Reason.WRONG_EXPECTED_OFFSET: _rejected("FAILED_PRECONDITION"),
    Reason.OUT_OF_ORDER_SEQUENCE: _rejected("FAILED_PRECONDITION"),
    Reason.UNKNOWN_PRODUCER: _rejected("FAILED_PRECONDITION"),
    Reason.DUPLICATE_FORGOTTEN: _unknown("ALREADY_EXISTS", retriable=False),
    Reason.NOT_LEADER: _rejected("UNAVAILABLE", retriable=True),
    Reason.NO_LEADER: _rejected("UNAVAILABLE", retriable=True),
    Reason.NO_QUORUM: _rejected("UNAVAILABLE", retriable=True),
    Reason.NO_CONTROLLER: _rejected("UNAVAILABLE", retriable=True),
    Reason.OVERLOADED: _rejected("RESOURCE_EXHAUSTED", retriable=True),
    Reason.STOPPING: _rejected("UNAVAILABLE", retriable=True),
    Reason.NOT_READY: _rejected("UNAVAILABLE", retriable=True),
    Reason.REPLICA_OFFLINE: _rejected("UNAVAILABLE", retriable=True),
    Reason.DISK_FULL: _rejected("RESOURCE_EXHAUSTED", retriable=True),
    Reason.OUTCOME_UNKNOWN: _unknown("UNAVAILABLE"),
    Reason.TIMEOUT: _unknown("DEADLINE_EXCEEDED"),
    Reason.INTERNAL: _unknown("INTERNAL", retriable=False),
}

assert set(TRAITS) == set(Reason)
assert {f"ERROR_REASON_{r.name}": r.value for r in Reason} == {
    name: number for name, number in errors_pb2.ErrorReason.items() if number != 0
}, "errors.proto and this table must list the same reasons"


class FluxError(Exception):
    """An error that a caller gets to see.

    Args:
        reason: stable code.
        message: for people: condition, values, boundary ("offset 41 is below log_start_offset 100 of orders-3").
        metadata: named values of the condition.
        retry_after_ms: above 0: the caller should not retry sooner.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_ms = retry_after_ms

    @property
    def traits(self) -> ReasonTraits:
        """Status, retriable, outcome of this reason."""
        return TRAITS[self.reason]

    def __repr__(self) -> str:
        return f"FluxError({self.reason.name}, {self.message!r}, {self.metadata!r})"


class CorruptDataError(Exception):
    """Bytes are not what they claim to be: the one error that decoding of foreign bytes raises.

    Nothing is written when it is raised. At the API's edge it becomes CORRUPT_BATCH; in recovery it is judged as torn
    tail or corruption.
    """


class InvariantViolation(Exception):  # not an error of a caller: the replica stops itself
    """Something that must never happen did. The replica that sees it takes itself out (fail-stop) and says why."""
