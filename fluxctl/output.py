"""How results reach people (tables on a terminal) and programs (JSON, YAML, plain columns in a pipe)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any, TextIO

import typer
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 1 << 20
"""Columns when not on a terminal, more than any line has: lines are not to be folded for a program."""


class OutputFormat(StrEnum):
    """--output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="table for people, json or yaml for programs.", show_default=True)
]


@contextlib.contextmanager
def writing_results() -> Iterator[None]:
    """Around what writes to stdout: its errors name it, as those of files name the file."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error


class _ResultConsole(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """As ever."""
        with writing_results():
            super().print(*objects, **options)

    def out(self, *objects: Any, **options: Any) -> None:
        """As ever."""
        with writing_results():
            super().out(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Whoever read has enough: what that means is for the command to say, instead of rich's exit code 1."""
        raise BrokenPipeError


class _NoteConsole(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads the notes any more: they end no command, nor a thread that notes something."""
        self.quiet = True
        discard(sys.stderr)


def stdout_console() -> Console:
    """For results. Text is shown as it is: names that others gave are no markup."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return _ResultConsole(width=width, soft_wrap=False, highlight=False, markup=False, emoji=False)


def stderr_console() -> Console:
    """For progress, warnings and errors, likewise."""
    width = None if sys.stderr.isatty() else _PIPE_WIDTH
    return _NoteConsole(stderr=True, width=width, highlight=False, markup=False, emoji=False)


def discard(stream: TextIO) -> None:
    """What still waits in a stream that cannot be written, and all that follows, goes nowhere, without an error."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor, or is closed
        descriptor = stream.fileno()
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)


def drop_unwritable() -> None:
    """What still waits for stdout goes nowhere when stdout cannot be written: it would fail once more at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)


@contextlib.contextmanager
def unread_is_well() -> Iterator[None]:
    """Around the output of commands that tell by their exit code, too: it counts although nobody reads the output."""
    try:
        yield
    except BrokenPipeError:
        discard(sys.stdout)


def confirm(question: str) -> None:
    """Ask; anything but yes ends the command.

    Raises:
        typer.Abort: no, or the end of the input.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        typer.confirm(question, abort=True)
    except typer.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def emit(data: Any, output: OutputFormat) -> None:
    """Write plain data for programs."""
    if output is OutputFormat.JSON:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    with writing_results():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Write records to stdout, at once."""
    with writing_results():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table without lines, so that it can be cut and searched as text.

    Args:
        right: columns to align to the right.
    """
    out = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False)
    for column in columns:
        out.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        out.add_row(*(str(cell) for cell in row))
    return out


def milliseconds(value: float | None) -> str:
    """ "12 ms", "3.4 s", "2 min", or "never"."""
    if value is None:
        return "never"
    if value < 1_000:
        return f"{value:.0f} ms"
    if value < 120_000:
        return f"{value / 1000:.1f} s"
    return f"{value / 60_000:.0f} min"


def size(value: float) -> str:
    """ "512 B", "1.4 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def plural(count: int, noun: str, several: str = "") -> str:
    """ "1 node", "2 nodes"; `several` where that is not the noun with an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {several or f'{noun}s'}"
