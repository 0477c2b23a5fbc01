"""What the figures were measured on and with."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("fluxd", "grpcio", "protobuf", "pysyncobj", "uvloop", "crc32c")


def describe(root: Path) -> dict[str, Any]:
    """Processors, memory, kernel, file system and versions."""
    memory = Path("/proc/meminfo").read_text().split("\n", 1)[0].split()
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpu_lines if line.startswith("model name")]
    return {
        "processors": os.cpu_count(),
        "processor": models[0] if models else platform.machine(),
        "memory_gb": round(int(memory[1]) * 1024 / 1e9, 1),
        "kernel": platform.release(),
        "file_system": _file_system(root),
        "disk_free_gb": round(shutil.disk_usage(root).free / 1e9, 1),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def _file_system(root: Path) -> str:
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    path = str(root.resolve())
    inside = [(len(at), kind) for _, at, kind in mounts if path == at or path.startswith(at.rstrip("/") + "/")]
    return max(inside)[1] if inside else "unknown"
