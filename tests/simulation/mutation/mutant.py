"""A mutant: the code with one protective measure taken out by text replacement, in a copy of the tree."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_COPIED = ("fluxd", "fluxlog", "tests")


class StaleMutant(Exception):
    """The text to be replaced is not in the code, or not exactly once."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement.

    Args:
        file: below the tree's root.
        old: stands in the file exactly once.
    """

    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        """Replace, in the copy.

        Raises:
            StaleMutant: the code has changed since the mutant was written.
        """
        path = tree / self.file
        text = path.read_text()
        if (found := text.count(self.old)) != 1:
            raise StaleMutant(f"{self.file} has {found} times, not once:\n{self.old}")
        text = text.replace(self.old, self.new)
        compile(text, self.file, "exec")
        path.write_text(text)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One measure taken out.

    Args:
        name: for the command line.
        measure: what was taken out, for people.
        guard: id of the test that must fail, as pytest takes it; empty: none is known.
        expected_silent: why it is no fault that no test fails; empty: one must.
        essential: also run by the test suite itself.
    """

    name: str
    measure: str
    edits: tuple[Edit, ...]
    guard: str = ""
    expected_silent: str = ""
    essential: bool = False


def copy_tree(target: Path) -> None:
    """Copy what the tests need; times are kept, so that compiled files stay valid."""
    for name in _COPIED:
        shutil.copytree(ROOT / name, target / name)
    shutil.copy2(ROOT / "pyproject.toml", target)
