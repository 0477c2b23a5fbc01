"""Who used the processors while something was measured: each node, the client, and everybody else on the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time over one measurement."""

    seconds: float
    cpu_s: dict[str, float]
    """User and system time by name."""
    others_cores: float
    """Processors taken by everything that is not named, kernel threads included."""

    def ms_per_mb(self, size: int) -> dict[str, float]:
        """Milliseconds of processor per 10^6 bytes."""
        return {name: 1000 * spent / (size / 1e6) for name, spent in self.cpu_s.items()} if size else {}


class Meter:
    """Reads the clocks at its making and at `stop`.

    Args:
        processes: process ids by name; this process is added as the client.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = {**processes, CLIENT: os.getpid()}
        self._began, self._busy = time.perf_counter(), _busy_s()
        self._spent = self._read()

    def stop(self) -> Usage:
        """What was used since."""
        seconds, busy = time.perf_counter() - self._began, _busy_s() - self._busy
        spent = {name: now - self._spent[name] for name, now in self._read().items()}
        return Usage(seconds, spent, max(0.0, busy - sum(spent.values())) / seconds)

    def _read(self) -> dict[str, float]:
        return {name: _cpu_s(process_id) for name, process_id in self._processes.items()}


def _cpu_s(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def _busy_s() -> float:
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / _TICKS_PER_SECOND


def memory_mb(process_id: int) -> tuple[float, float]:
    """Resident memory of a process now and at its peak, in 10^6 bytes."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return sizes["VmRSS"] * 1024 / 1e6, sizes["VmHWM"] * 1024 / 1e6
