"""Lines of a file or a pipe, as they come: a slow pipe's lines are not held back until a buffer is full."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

LINE_BYTES_MAX = 1024 * 1024 - 4096
"""A line with its key must fit a batch of 1 MiB."""
_READ_BYTES = 256 * 1024

Line = bytes | None
"""Without its newline; None: longer than LINE_BYTES_MAX, its bytes were not kept."""


def read_lines(descriptor: int, *, linger: float) -> Iterator[list[Line]]:
    """Read a descriptor to its end.

    Args:
        linger: seconds.

    Yields:
        The lines that are complete, as many as came at once; an empty list whenever nothing came for `linger`.
    """
    rest: list[bytes] = []
    rest_bytes = 0
    while True:
        while not select.select([descriptor], [], [], linger)[0]:
            yield []
        data = os.read(descriptor, _READ_BYTES)
        if not data:
            break
        pieces = data.split(b"\n")
        if len(pieces) == 1:
            rest_bytes += len(data)
            if rest_bytes <= LINE_BYTES_MAX:
                rest.append(data)
            else:  # remembered by its length alone
                rest = []
            continue
        lines: list[Line] = [None if rest_bytes + len(pieces[0]) > LINE_BYTES_MAX else b"".join((*rest, pieces[0]))]
        lines += pieces[1:-1]
        rest, rest_bytes = ([pieces[-1]] if pieces[-1] else []), len(pieces[-1])
        yield lines
    if rest_bytes:  # a last line without a newline
        yield [None if rest_bytes > LINE_BYTES_MAX else b"".join(rest)]
