"""Bits that flip anywhere in closed segments, state files and snapshots, while nodes die, leaders change and logs are
trimmed: it all heals, and no log ever differs from another one in what is committed (the invariants look after every
step)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from fluxd.core.errors import CorruptDataError
from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.scrubbing import Scrubber
from fluxd.storage.checkpoint import STATE_NAME
from fluxd.storage.scrub import Verified
from fluxd.storage.snapshot import SUFFIX
from tests.simulation.lab import Lab
from tests.simulation.node import GROUP, SimNode
from tests.simulation.test_copying import BIG

DIRECTORY = f"partitions/{GROUP.directory_name}"


class World:
    """A lab in which things happen at random; of the disks a minority is damaged at a time."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.lab = Lab(self.rng.choice((3, 3, 5)), seed=seed)
        self.lab.elect(1)
        self.damaged: set[NodeId] = set()
        self.flips = Counter[str]()
        for number in self.lab.nodes:
            self._scrub(number)

    def _scrub(self, number: int) -> None:
        of = self.lab.nodes[NodeId(number)]
        assert of.host is not None
        assert of.reactor is not None
        Scrubber(of.reactor, of.host, of._log, interval_s=0.5, bytes_per_second=1 << 24).start()

    @property
    def minority(self) -> int:
        return (len(self.lab.nodes) - 1) // 2

    def healed(self) -> bool:
        """All take part with the same log, and every byte of it is sound."""
        leader = self.lab.leader()
        if leader is None or any(of.group is None for of in self.lab.nodes.values()):
            return False
        last = (self.lab[leader].log.last_index, self.lab[leader].log.last.checksum)
        groups = [self.lab[number] for number in self.lab.nodes]
        return all(
            (group.log.last_index, group.log.last.checksum) == last == (group.commit_index, last[1]) for group in groups
        )

    def step(self) -> None:
        match self.rng.randrange(10):
            case 0 | 1 | 2:
                self._flip()
            case 3:
                self._kill_or_start()
            case 4:
                self._lead()
            case 5:
                self._trim()
            case _:
                self._write()
        self.lab.run(self.rng.random())

    def _flip(self) -> None:
        self.damaged = {number for number in self.damaged if not is_sound(self.lab.nodes[number])}
        of = self.rng.choice(list(self.lab.nodes.values()))
        if len(self.damaged | {of.node_id}) > self.minority:
            return
        names = of.disk.list(DIRECTORY)
        kinds = [sorted(name for name in names if name.endswith(".seg"))[:-1], [n for n in names if n == STATE_NAME]]
        kinds.append([name for name in names if name.endswith(SUFFIX)])
        if of.group is None or not all(kinds):
            return
        path = f"{DIRECTORY}/{self.rng.choice(self.rng.choice(kinds))}"
        size = len(of.disk.durable_bytes(path) or b"")
        if size:
            of.disk.flip_bit(path, self.rng.randrange(size), self.rng.randrange(8))
            self.damaged.add(of.node_id)
            of.damaged = True
            self.flips[path.rpartition(".")[2]] += 1

    def _kill_or_start(self) -> None:
        down = [of.node_id for of in self.lab.nodes.values() if not of.alive]
        if len(down) < self.minority and self.rng.random() < 0.5:
            self.lab.kill(self.rng.choice([of.node_id for of in self.lab.nodes.values() if of.alive]))
        elif down:
            self._start(self.rng.choice(down))

    def _start(self, number: NodeId) -> None:
        self.lab.start(number)
        self._scrub(number)

    def _lead(self) -> None:
        leader = self.lab.leader()
        if leader is not None:
            self.lab[leader].transfer(None)

    def _trim(self) -> None:
        leader = self.lab.leader()
        if leader is not None:
            group = self.lab[leader]
            start = group.log_start_offset + (group.high_watermark - group.log_start_offset) // 2
            group.trim(type(group.high_watermark)(start), lambda error: None)

    def _write(self) -> None:
        leader = self.lab.leader()
        for _ in range(self.rng.randrange(6)):
            if leader is not None:
                self.lab.propose(leader, self.rng.randbytes(10) + BIG)


def is_sound(of: SimNode) -> bool:
    """Every byte of a replica's log, up to what is committed, and of what stands beside it."""
    if of.group is None or of.group.log.scrub.beside.faults(RaftIndex(0)):
        return False
    at = Verified()
    try:
        while piece := of.group.log.scrub.next_piece(at, end_index=of.group.commit_index, max_bytes=1 << 20):
            at = piece.read()
    except (CorruptDataError, OSError):
        return False
    return True


@pytest.mark.parametrize("seed", range(1, 11))
def test_flipped_bits_heal(seed: int) -> None:
    """And what was committed is on all replicas in the end."""
    world = World(seed)
    for _ in range(60):
        world.step()
    for of in list(world.lab.nodes.values()):
        if not of.alive:
            world._start(of.node_id)
    world.lab.until(lambda: world.healed() and all(map(is_sound, world.lab.nodes.values())), within=120)
    assert world.flips
    lab = world.lab
    lab.until(lambda: bool((leader := lab.leader()) and not lab[leader].guard.leading.handing_over))
    assert lab.commit(lab.leader() or 0, b"after all that").base_offset
