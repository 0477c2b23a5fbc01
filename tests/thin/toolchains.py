"""How each language's program of examples/thin is built: its own ordinary tools and packages, in a directory apart."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "thin"
_BUILD_SECONDS = 600


class MissingToolchain(Exception):
    """What is missing to build a language's program."""


def _need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise MissingToolchain(f"not on this machine: {', '.join(missing)}")


def _run(directory: Path, command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _python(directory: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "python" / "thin.py")]


BUILDERS: Mapping[str, Callable[[Path], list[str]]] = {
    "python": _python,
}
