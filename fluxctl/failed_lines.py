"""The files of lines that failed: rejected ones can be produced again, unknown ones are to be looked at first."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from fluxctl.exits import CommandError
from fluxlog.errors import Outcome


class FailedLines:
    """Lines that failed, as they were read. A file is made, or replaced, when there is something for it.

    A file that cannot be written ends nothing: what became of the lines is told all the same.

    Args:
        path: of the rejected lines; the unknown ones go to the same name with ".unknown".
    """

    def __init__(self, path: Path) -> None:
        self._paths = {Outcome.REJECTED: path, Outcome.UNKNOWN: Path(f"{path}.unknown")}
        self._files: dict[Outcome, BinaryIO] = {}
        self._failures: dict[Outcome, OSError] = {}

    def check(self, input_descriptor: int) -> None:
        """Refuse, before anything is read, what would empty the input or surely could not be written.

        Raises:
            CommandError: a file is the input itself, or the file of rejected lines cannot be made.
        """
        source = os.fstat(input_descriptor)
        for path in self._paths.values():
            with contextlib.suppress(OSError):
                if stat.S_ISREG(source.st_mode) and os.path.samestat(source, path.stat()):
                    raise CommandError(f"{path} is the input, and would be emptied", "choose another --failed-file")
        path = self._paths[Outcome.REJECTED]
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise CommandError(f"{path}: cannot be written", "choose another --failed-file")

    def keep(self, outcome: Outcome, lines: Sequence[bytes]) -> None:
        """Write lines, unless their file has failed before."""
        if outcome in self._failures:
            return
        try:
            if outcome not in self._files:
                self._files[outcome] = self._paths[outcome].open("wb")
            self._files[outcome].writelines(line + b"\n" for line in lines)
        except OSError as error:
            self._failures[outcome] = error

    def close(self) -> tuple[list[Path], list[str]]:
        """Close the files.

        Returns:
            Those that hold every line that was to be kept in them; and what to say of each of the others.
        """
        for outcome, file in self._files.items():
            try:
                file.close()
            except OSError as error:
                self._failures.setdefault(outcome, error)
        written = [self._paths[outcome] for outcome in self._files if outcome not in self._failures]
        problems = [
            f"{self._paths[outcome]} could not be written, failed lines are missing in it: {error.strerror}"
            for outcome, error in self._failures.items()
        ]
        return written, problems
