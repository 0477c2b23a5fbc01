"""python -m tests.integration.hanging_node serve …: `fluxd`, whose disk hangs while a pipe stands at $HANG_WHILE.

A sync then waits until somebody has opened the pipe for writing and closed it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fluxd.__main__ import main

if __name__ == "__main__":
    pipe, fdatasync = Path(os.environ["HANG_WHILE"]), os.fdatasync

    def hang_and_sync(fd: Any) -> None:
        """As the system's, later."""
        with suppress(FileNotFoundError):
            pipe.read_bytes()
        fdatasync(fd)

    os.fdatasync = hang_and_sync
    main()
