"""Real text for the demo: every line of the Python standard library on this machine."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

CHUNK_LINES = 1_000
_NOT_STANDARD = frozenset({"site-packages", "dist-packages", "__pycache__"})
_LINE_BYTES_MAX = 64 * 1024


def standard_library_lines(lines_max: int = 0) -> list[bytes]:
    """Lines of its *.py files, in the order of their paths, without newlines.

    Args:
        lines_max: stop after as many; 0: all.
    """
    lines = islice(_all_lines(), lines_max or None)
    return list(lines)


def _all_lines() -> Iterator[bytes]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _NOT_STANDARD.isdisjoint(path.relative_to(root).parts):
            yield from (line[:_LINE_BYTES_MAX] for line in path.read_bytes().splitlines())


def chunks(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Batches of lines."""
    for begin in range(0, len(lines), CHUNK_LINES):
        yield lines[begin : begin + CHUNK_LINES]
