"""The disk's own limit: what a replicated log on one machine cannot exceed.

Three files, as three replicas would write them; each chunk is written to each and synced with fdatasync by a thread of
its own. Bytes are counted once, as a producer would count them.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

FILES = 3


def write_limit(root: Path, total_bytes: int, chunk_bytes: int) -> float:
    """10^6 bytes a second with which chunks reach all three files durably.

    Args:
        root: on the disk in question.
        total_bytes: to each file: as many as the measurement beside it wrote, since short runs flatter.
    """
    chunk = os.urandom(chunk_bytes)
    chunks = max(1, total_bytes // chunk_bytes)
    with tempfile.TemporaryDirectory(dir=root, prefix="limit-") as directory:
        threads = [
            threading.Thread(target=_write_synced, args=(Path(directory) / str(number), chunk, chunks))
            for number in range(FILES)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return chunks * chunk_bytes / (time.perf_counter() - began) / 1e6


def _write_synced(path: Path, chunk: bytes, chunks: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for _ in range(chunks):
            os.write(fd, chunk)
            os.fdatasync(fd)
    finally:
        os.close(fd)


def sync_latencies(root: Path, count: int, per_second: float, size: int = 256) -> list[float]:
    """Seconds that one small write with its fdatasync takes, at a steady rate."""
    out, data = [], os.urandom(size)
    with tempfile.TemporaryDirectory(dir=root, prefix="limit-") as directory:
        fd = os.open(Path(directory) / "small", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            began = time.perf_counter()
            for number in range(count):
                due = began + number / per_second
                time.sleep(max(0.0, due - time.perf_counter()))
                sent = time.perf_counter()
                os.write(fd, data)
                os.fdatasync(fd)
                out.append(time.perf_counter() - sent)
        finally:
            os.close(fd)
    return out
