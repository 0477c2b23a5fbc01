"""Lines from a pipe: none lost, none changed, none held back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from fluxctl.lines import LINE_BYTES_MAX, Line, read_lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)


def _write(descriptor: int, *pieces: bytes) -> None:
    def work() -> None:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]

    threading.Thread(target=work).start()


def _all(descriptor: int) -> list[Line]:
    return [line for lines in read_lines(descriptor, linger=5) for line in lines]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\n\n\xff\n", [b"a\r", b"", b"\xff"]),
    ],
)
def test_lines_are_what_stands_between_newlines(pipe: tuple[int, int], data: bytes, lines: list[Line]) -> None:
    _write(pipe[1], data)
    assert _all(pipe[0]) == lines


def test_lines_across_reads_are_whole(pipe: tuple[int, int]) -> None:
    expected = [b"%d" % number * (number % 97) for number in range(20_000)]
    _write(pipe[1], b"\n".join(expected) + b"\n")
    assert _all(pipe[0]) == expected


def test_a_line_that_no_batch_can_hold_is_marked_and_not_kept(pipe: tuple[int, int]) -> None:
    _write(pipe[1], b"a\n", b"x" * (LINE_BYTES_MAX + 1), b"\nb\n", b"y" * LINE_BYTES_MAX, b"\n", b"z" * 2_000_000)
    assert _all(pipe[0]) == [b"a", None, b"b", b"y" * LINE_BYTES_MAX, None]


def test_a_slow_pipe_is_heard_of(pipe: tuple[int, int]) -> None:
    """So that what was read can be sent although no more comes."""
    os.write(pipe[1], b"a\nhalf")
    lines = read_lines(pipe[0], linger=0.001)
    assert next(lines) == [b"a"]
    assert next(lines) == []
    _write(pipe[1], b" whole\n")
    assert [line for chunk in lines for line in chunk] == [b"half whole"]
