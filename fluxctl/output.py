"""How results reach people (tables on a terminal) and programs (JSON, YAML, plain columns in a pipe)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 220
"""Columns when not on a terminal: lines are not to be folded for a program."""


class OutputFormat(StrEnum):
    """--output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="table for people, json or yaml for programs.", show_default=True)
]


def stdout_console() -> Console:
    """For results."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, soft_wrap=False, highlight=False)


def stderr_console() -> Console:
    """For progress, warnings and errors."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH, highlight=False)


def emit(data: Any, output: OutputFormat) -> None:
    """Write plain data for programs."""
    if output is OutputFormat.JSON:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    sys.stdout.write(text)
    sys.stdout.flush()


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


def plural(count: int, noun: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
