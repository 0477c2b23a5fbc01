"""All mutants."""

from __future__ import annotations

from tests.simulation.mutation import (
    catching_up,
    copying,
    durability,
    elections,
    heartbeats,
    proposals,
    replication,
    scrubbing,
    trimming,
)
from tests.simulation.mutation.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *replication.MUTANTS,
    *durability.MUTANTS,
    *elections.MUTANTS,
    *heartbeats.MUTANTS,
    *proposals.MUTANTS,
    *trimming.MUTANTS,
    *copying.MUTANTS,
    *catching_up.MUTANTS,
    *scrubbing.MUTANTS,
)

assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
