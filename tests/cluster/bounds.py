"""Bounds of production that a run of some seconds would never meet, made small for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fluxd.core import limits, state_chunks


@contextmanager
def metadata_trimmed_at(records: int) -> Iterator[None]:
    """The metadata's state is written into their log at so many commands, in several chunks; 0: as in production."""
    small = {
        (limits, "METADATA_TRIM_RECORDS"): records,
        (limits, "METADATA_SEGMENT_BYTES"): 1_500,
        (limits, "LOG_TRIM_INTERVAL"): 0.4,
        (state_chunks, "_CHUNK_BYTES"): 400,
    }
    before = {(module, name): getattr(module, name) for module, name in small}
    for (module, name), value in small.items() if records else ():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
