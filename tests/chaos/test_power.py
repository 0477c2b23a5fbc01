"""The filesystem that forgets does what the simulated disk does, on real files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fluxd.storage.filesystem import File, FileSystem
from tests.chaos import power
from tests.chaos.filesystem import PowerCutFileSystem
from tests.simulation.disk import Keep, SimDisk

_DIRECTORIES = ("", "a", "a/b", "c")
_NAMES = ("x", "y", "z")


class _Walk:
    """The same random operations on several filesystems."""

    def __init__(self, seed: int, systems: list[FileSystem]) -> None:
        self._rng, self._systems, self._steps = random.Random(seed), systems, 0

    def step(self) -> None:
        self._steps += 1
        rng, directory, name = self._rng, self._rng.choice(_DIRECTORIES), self._rng.choice(_NAMES)
        path, other = f"{directory}/{name}".lstrip("/"), f"{directory}/{rng.choice(_NAMES)}".lstrip("/")
        if rng.random() < 0.5:
            other = f"{rng.choice(_DIRECTORIES)}/{self._steps}".lstrip("/")
        kind, data, at = rng.randrange(12), rng.randbytes(rng.randint(1, 9)), rng.random()
        for fs in self._systems:
            if kind < 6:
                self._use_file(fs, path, kind, data, at)
            elif kind == 6:
                fs.make_directory(directory)
            elif kind == 7:
                fs.remove(path)
            elif kind == 8 and fs.exists(path) and fs.exists(other.rpartition("/")[0]) and path != other:
                # Like fluxd: across directories only a durable name, and to one that was never used.
                fs.sync_directory(directory)
                fs.rename(path, other)
            elif kind == 9 and directory and at < 0.2:
                fs.remove_tree(directory)
            elif kind > 9 and fs.exists(directory):
                fs.sync_directory(directory)

    def _use_file(self, fs: FileSystem, path: str, kind: int, data: bytes, at: float) -> None:
        if not fs.exists(path.rpartition("/")[0]):
            return
        file: File = fs.open(path, create=True)
        if kind < 3:
            file.append(data)
        elif kind == 3:
            file.write_at(int(at * file.size()), data)
        elif kind == 4:
            file.truncate(int(at * file.size()))
        else:
            file.sync()
        file.close()


def tree(fs: FileSystem, path: str = "") -> dict[str, bytes]:
    """Every file and directory with its bytes."""
    found: dict[str, bytes] = {}
    for name in fs.list(path):
        child = f"{path}/{name}".lstrip("/")
        if child in _DIRECTORIES:
            found[child] = b"/"
            found |= tree(fs, child)
        else:
            file = fs.open(child)
            found[child] = file.read(0, file.size())
            file.close()
    return found


@pytest.mark.parametrize("keep", [Keep.NOTHING, Keep.EVERYTHING])
def test_a_power_cut_leaves_what_the_simulated_disk_leaves(tmp_path: Path, keep: Keep) -> None:
    """Over random operations, kills and power cuts both end with the same names and bytes."""
    for seed in range(6):
        root = tmp_path / f"{seed}"
        simulated = SimDisk(random.Random(seed))
        systems: list[FileSystem] = [simulated, PowerCutFileSystem(root)]
        walk = _Walk(seed, systems)
        for _ in range(6):
            for _ in range(random.Random(seed).randint(5, 40)):
                walk.step()
            assert tree(systems[0]) == tree(systems[1]), f"seed {seed}"
            simulated.power_cut(keep)
            systems[1] = PowerCutFileSystem(root)  # the process is killed and looks again before the power fails
            power.cut(root, random.Random(seed), keep)
            systems[1] = PowerCutFileSystem(root)
            assert tree(systems[0]) == tree(systems[1]), f"seed {seed}"


def test_a_random_cut_keeps_a_prefix_and_tears_the_last_write(tmp_path: Path) -> None:
    """Every length between synced and written is seen, and zeros in the place of lost bytes."""
    seen = set()
    for seed in range(200):
        root = tmp_path / f"{seed}"
        fs = PowerCutFileSystem(root)
        file = fs.open("f", create=True)
        fs.sync_directory("")
        file.append(b"ab")
        file.sync()
        file.append(b"cd")
        file.append(b"ef")
        file.close()
        power.cut(root, random.Random(seed))
        seen.add((root / "f").read_bytes())
    assert {b"abcdef"[:n] for n in range(2, 7)} <= seen
    assert {s.rstrip(b"\0") for s in seen} <= {b"abcdef"[:n] for n in range(2, 7)}
    assert any(b"\0" in s for s in seen)
