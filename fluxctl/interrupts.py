"""Ctrl-C as a wish that is looked at where stopping is safe, instead of an exception anywhere."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """While entered, the first Ctrl-C sets `requested`, a second one `insisted`.

    Args:
        raises: the second one raises KeyboardInterrupt, at once and anywhere. Otherwise both are only looked at.
    """

    def __init__(self, *, raises: bool = True) -> None:
        self.requested = self.insisted = False
        self._raises = raises
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.insisted = self.requested
        self.requested = True
        if self.insisted and self._raises:
            raise KeyboardInterrupt
