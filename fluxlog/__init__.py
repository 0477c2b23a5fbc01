"""Client library of fluxd.

For programs, on asyncio: `Producer`, `Consumer`, `Admin` (docs/library.md); `fluxlog.sync` has them for scripts.

    fluxlog.aio      what the three are made of                fluxlog.partitioners  key to partition
    fluxlog.batch    RecordBatch, column by column             fluxlog.errors        reasons and outcomes
    fluxlog.entry    entries of the log                        fluxlog.v1            the generated stubs
    fluxlog.pipeline the rules of delivery                     fluxlog.checker       judges a cluster under faults

For tools, on threads: `fluxlog.client`, `fluxlog.admin`, `fluxlog.sender`, `fluxlog.reader`, `fluxlog.offsets`.

Nothing is imported before it is asked for, so that the stubs can be used without the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluxlog.aio.admin import Admin
    from fluxlog.aio.bulk import BulkDeliveryError, BulkResult, DeliveredRange
    from fluxlog.aio.connection import Connection
    from fluxlog.aio.consumed import (
        Assigned,
        CaughtUp,
        ConsumedBatch,
        ConsumedRecord,
        ConsumerEvent,
        Leaderless,
        Lost,
        Revoked,
        TopicPartition,
    )
    from fluxlog.aio.consumer import Consumer
    from fluxlog.aio.lanes import Delivered, Delivery
    from fluxlog.aio.producer import Producer
    from fluxlog.codec import Codec
    from fluxlog.errors import (
        BufferFullError,
        DeliveryError,
        FluxlogError,
        Outcome,
        RejectedError,
        UnknownOutcomeError,
    )

__all__ = [
    "Admin",
    "Assigned",
    "BufferFullError",
    "BulkDeliveryError",
    "BulkResult",
    "CaughtUp",
    "Codec",
    "Connection",
    "ConsumedBatch",
    "ConsumedRecord",
    "Consumer",
    "ConsumerEvent",
    "Delivered",
    "DeliveredRange",
    "Delivery",
    "DeliveryError",
    "FluxlogError",
    "Leaderless",
    "Lost",
    "Outcome",
    "Producer",
    "RejectedError",
    "Revoked",
    "TopicPartition",
    "UnknownOutcomeError",
]

_HOMES = {
    "fluxlog.aio.admin": ("Admin",),
    "fluxlog.aio.bulk": ("BulkDeliveryError", "BulkResult", "DeliveredRange"),
    "fluxlog.aio.connection": ("Connection",),
    "fluxlog.aio.consumed": (
        "Assigned", "CaughtUp", "ConsumedBatch", "ConsumedRecord", "ConsumerEvent", "Leaderless", "Lost", "Revoked",
        "TopicPartition",
    ),
    "fluxlog.aio.consumer": ("Consumer",),
    "fluxlog.aio.lanes": ("Delivered", "Delivery"),
    "fluxlog.aio.producer": ("Producer",),
    "fluxlog.codec": ("Codec",),
    "fluxlog.errors": (
        "BufferFullError", "DeliveryError", "FluxlogError", "Outcome", "RejectedError", "UnknownOutcomeError",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
