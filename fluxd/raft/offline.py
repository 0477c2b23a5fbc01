"""A replica that takes no part: it neither votes nor acknowledges, and says why.

Its vote is bound to a data directory that is not this one, or its votes or its log are missing or corrupt. If it took
part all the same, one wiped disk and one absent node would lose acknowledged records: an empty voter elects an empty
leader.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId, Offset, RaftIndex, Term
from fluxd.raft.copying import Copying
from fluxd.raft.proposal import Append
from fluxd.raft.spec import GroupSpec, Role


class OfflineGroup:
    """Stands in the place of a `Group` that could not be opened."""

    role = Role.UNADMITTED
    was_handed_over = False
    term = Term(0)
    leader_id: NodeId | None = None
    commit_index = RaftIndex(0)
    high_watermark = log_start_offset = log_end_offset = Offset(0)
    log = None

    def __init__(self, spec: GroupSpec, why: str) -> None:
        self.spec, self._why = spec, why
        self.copying: Copying | None = None
        """How it becomes a replica again, where that is possible."""
        self.group_id, self.generation, self.voters = spec.group_id, spec.generation, spec.voters
        self.on_commit: list[Callable[[], None]] = []
        self.on_role: list[Callable[[], None]] = []

    @property
    def why(self) -> str:
        """For people: what is wrong, and how far the repair is."""
        return f"{self._why}; {self.copying.progress}" if self.copying else self._why

    def say_why_it_stays_out(self) -> None:
        """It cannot be repaired."""
        if len(self.voters) == 1:
            self._why += "; it stays out: there is no other replica to copy from"
        else:
            self._why += (
                f"; it stays out: the other one of {len(self.voters)} replicas is no majority that could say what was "
                "committed, but what it has can be read"
            )

    def _refusal(self) -> FluxError:
        return FluxError(
            Reason.REPLICA_OFFLINE, f"the replica of {self.group_id} on this node takes no part: {self.why}"
        )

    def submit(self, append: Append) -> None:
        """Always REJECTED."""
        append.done(self._refusal())

    def read_index(self, done: Callable[[FluxError | None], None]) -> None:
        """Never confirmed."""
        done(self._refusal())

    def transfer(self, to: NodeId | None) -> FluxError | None:
        """Never possible."""
        return self._refusal()

    def quorum_missing(self) -> tuple[NodeId, ...] | None:
        """Not known here."""
        return None
