"""Processes by id and start time, so that a recycled id is never taken for the process that had it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.02


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for ever."""

    process_id: int
    started: str
    """When, in the system's own form; compared for equality only."""


def identify(process_id: int) -> ProcessIdentity | None:
    """The live process with this id now; None when there is none (a zombie is none)."""
    started = _start_of(process_id)
    return None if started is None else ProcessIdentity(process_id, started)


def is_running(process: ProcessIdentity) -> bool:
    """The process is alive. Collects it first when it is a dead child of ours."""
    with contextlib.suppress(ChildProcessError):  # not ours, or collected already
        os.waitpid(process.process_id, os.WNOHANG)
    return _start_of(process.process_id) == process.started


def send_signal(process: ProcessIdentity, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone."""
    if not is_running(process):
        return False
    try:
        os.kill(process.process_id, number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(process: ProcessIdentity, timeout: float) -> bool:
    """Wait until the process has ended; False when it has not within `timeout` seconds."""
    give_up_at = time.monotonic() + timeout
    while is_running(process):
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(_POLL)
    return True


def _start_of(process_id: int) -> str | None:
    stat = Path(f"/proc/{process_id}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The command, in brackets, may hold anything; behind it: state (field 3), …, start time in ticks (22).
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    listed = subprocess.run(  # systems without /proc
        ["ps", "-o", "stat=,lstart=", "-p", str(process_id)], capture_output=True, text=True, check=False
    )
    state, _, started = listed.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()
