"""All mutants."""

from __future__ import annotations

from tests.simulation.mutation import durability, elections, proposals, replication
from tests.simulation.mutation.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *replication.MUTANTS,
    *durability.MUTANTS,
    *elections.MUTANTS,
    *proposals.MUTANTS,
)

assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
