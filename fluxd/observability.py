"""Logging, configured once by the entry point: JSON lines on stderr, or a readable form on a terminal.

Events are constants in snake_case and the past tense; keys are glossary names with units. A line that cannot be written
is lost, and the next one that can be says how many were (`lines_lost`).
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_CLIENT_HUNG_UP = "ExecuteBatchError raised in core by servicer method"

_EventDict = MutableMapping[str, Any]
_Processor = Callable[[Any, str, _EventDict], Any]


def configure(level: str, form: Literal["auto", "json", "console"], *, node_id: int) -> None:
    """Set up structlog, and the standard library's logging behind it, for the whole process.

    Args:
        level: a key of LEVELS.
        form: auto is console on a terminal and JSON otherwise.
        node_id: stands in every line.
    """
    lines = Lines.on_stderr()
    console = form == "console" or (form == "auto" and lines.isatty())
    structlog.contextvars.clear_contextvars()

    def add_node(_: Any, __: str, event: _EventDict) -> _EventDict:
        event["node_id"] = node_id
        if lines.lost:
            event["lines_lost"] = lines.lost
        return event

    processors: list[_Processor] = [
        structlog.processors.add_log_level,
        add_node,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        processors.append(structlog.dev.ConsoleRenderer(colors=lines.isatty()))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, lines)),
        cache_logger_on_first_use=True,
    )
    # Libraries (asyncio, grpc) log through the standard library: only what is wrong, in the same form.
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(logging.WARNING)


class Lines(io.TextIOBase):
    """Text that may be lost: a full disk below it, or a pipe whose reader has gone, must not stop who writes.

    Nothing is buffered: what could not be written is not tried again, neither with the next line nor when the process
    ends.

    Args:
        fd: stays open.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._torn = False
        self.lost = 0
        """Lines since the last one that was written."""

    @classmethod
    def on_stderr(cls) -> Lines:
        """Where the process was started without stderr all lines are lost: its number may be another file's."""
        return cls(os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else sys.stderr.fileno())

    def write(self, text: str) -> int:
        """Write one line, with its end, or lose it. Never raises OSError."""
        data = memoryview(("\n" * self._torn + text).encode(errors="backslashreplace"))
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            self.lost += 1
            self._torn = self._torn or done > 0
        else:
            self.lost, self._torn = 0, False
        return len(text)

    def isatty(self) -> bool:
        """Somebody may read it as it appears."""
        return os.isatty(self._fd)


class _Bridge(logging.Handler):
    """Hands the standard library's records to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log it. That a client hung up while it was being answered is an error to gRPC alone."""
        message = record.getMessage()
        level = logging.DEBUG if message.startswith(_CLIENT_HUNG_UP) else record.levelno
        structlog.get_logger().log(
            level, "library_logged", logger=record.name, message=message, exc_info=record.exc_info
        )


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The process's logger; cheap to call at import, configured later."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log
