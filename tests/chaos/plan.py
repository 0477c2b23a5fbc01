"""What goes wrong, and when: drawn from the seed before the run begins.

Two plans run side by side, one of processes and one of the network, so that faults meet. Which node is the leader is
only known when a fault comes; everything else is fixed by the seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Kinds of faults."""

    KILL = "kill"
    PAUSE = "pause"
    STOP = "stop"
    POWER_CUT = "power cut"
    ISOLATE = "cut: one node"
    SPLIT = "cut: the majority"
    RING = "cut: ring"
    ONE_WAY = "cut: one way"
    DELAY = "delay"
    LOSS = "loss"


class Target(StrEnum):
    """Whom a fault hits."""

    LEADER = "leader"
    RANDOM = "random"
    MAJORITY = "majority"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong for a while."""

    kind: Kind
    target: Target
    pause: float
    """Seconds after the end of the fault before."""
    seconds: float
    """How long it lasts: until the restart, the resume, the healing."""
    choice: int
    """For what else is to be chosen: 32 random bits."""


_PROCESS_KINDS = {Kind.KILL: 4, Kind.PAUSE: 3, Kind.POWER_CUT: 4, Kind.STOP: 1}
_NETWORK_KINDS = {
    Kind.ISOLATE: 3, Kind.SPLIT: 1, Kind.RING: 2, Kind.ONE_WAY: 2, Kind.DELAY: 2, Kind.LOSS: 2,
}  # fmt: skip
_TARGETS = {Target.LEADER: 4, Target.RANDOM: 3, Target.MAJORITY: 2, Target.ALL: 2}
_ONE = {Target.LEADER: 4, Target.RANDOM: 3}

_LENGTH_MIN, _LENGTH_MAX = 0.1, 30.0
_PAUSE_MIN, _PAUSE_MAX = 0.2, 10.0


def process_plan(seed: int, seconds: float, only: Collection[Kind] = ()) -> list[Fault]:
    """Faults of processes; of some kinds only, if any are given."""
    return _plan(random.Random(f"{seed} processes"), seconds, _choose(_PROCESS_KINDS, only))


def network_plan(seed: int, seconds: float, only: Collection[Kind] = ()) -> list[Fault]:
    """Faults of the network."""
    return _plan(random.Random(f"{seed} network"), seconds, _choose(_NETWORK_KINDS, only))


def _choose(kinds: dict[Kind, int], only: Collection[Kind]) -> dict[Kind, int]:
    return {kind: weight for kind, weight in kinds.items() if kind in (only or kinds)}


def _plan(rng: random.Random, seconds: float, kinds: dict[Kind, int]) -> list[Fault]:
    """As many as fit; each kind once before any comes again, so that short runs see all of them."""
    if not kinds:
        return []
    longest = min(_LENGTH_MAX, max(1.0, seconds / 8))
    faults: list[Fault] = []
    end, fresh = 0.0, list(kinds)
    while True:
        weights = [kinds[kind] for kind in fresh]
        kind = rng.choices(fresh, weights)[0]
        fresh.remove(kind)
        fresh = fresh or list(kinds) + [kind for kind, weight in kinds.items() for _ in range(weight - 1)]
        targets = _ONE if kind in (Kind.ISOLATE, Kind.ONE_WAY, Kind.RING) else _TARGETS
        target = rng.choices(list(targets), list(targets.values()))[0]
        pause, length = _log_uniform(rng, _PAUSE_MIN, _PAUSE_MAX), _log_uniform(rng, _LENGTH_MIN, longest)
        end += pause + length
        if end > seconds:
            return faults
        faults.append(Fault(kind, target, pause, length, rng.getrandbits(32)))


def _log_uniform(rng: random.Random, least: float, most: float) -> float:
    return math.exp(rng.uniform(math.log(least), math.log(most)))


def choose(target: Target, leader: int | None, members: Sequence[int], choice: int) -> list[int]:
    """The nodes that a fault hits.

    Args:
        leader: None where none is known: then any node stands for it.
        choice: random bits of the fault.
    """
    rng = random.Random(choice)
    if target is Target.ALL:
        return list(members)
    if target is Target.MAJORITY:
        return sorted(rng.sample(members, len(members) // 2 + 1))
    if target is Target.LEADER and leader:
        return [leader]
    return [rng.choice(members)]
