"""What a node asks of its process at start: file descriptors, the allocator, the garbage collector, the event loop."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
from collections.abc import Callable

from fluxd.core.limits import MIB
from fluxd.observability import get_logger

FILES_WANTED = 4_096
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

log = get_logger()


def raise_file_limit() -> None:
    """Take as many file descriptors as the system lets this process have; say so when that is few.

    More partitions than that still work (`storage/descriptors.py`); those that are used in turn are opened in turn.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard not in (resource.RLIM_INFINITY,) and hard < FILES_WANTED:
        log.warning(
            "file_limit_found_low",
            limit=hard,
            wanted=FILES_WANTED,
            replicas_open_max=hard // 4,
            remedy="raise `ulimit -n` for this process",
        )


def tune_allocator() -> None:
    """Have glibc keep what it freed: buffers of about 1 MiB come and go all the time, and each fresh one from the
    system costs its page faults (446 against 38 us for 8 of them, measured). Another C library is left alone."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 64 * MIB)
    mallopt(_M_TRIM_THRESHOLD, 256 * MIB)
    mallopt(_M_TOP_PAD, 16 * MIB)


def freeze_what_is_loaded() -> None:
    """Modules and generated code live for ever: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
