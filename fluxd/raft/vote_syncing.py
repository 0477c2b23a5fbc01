"""Has the votes of a node synced, and tries again when that fails.

No vote is forgotten meanwhile: every message that reflects one that is not durable is held back by its group. When a
second try has failed, too, the groups that wait are told (`stuck`), so that they say so; those whose votes are durable
go on. The node says what is wrong with the file (`why`) for as long as that is so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fluxd.core.runtime import Reactor
from fluxd.raft.healing import Backoff
from fluxd.storage.errors import being_mended
from fluxd.storage.votes import VoteCheck, VoteFile


class VoteSyncing:
    """See the module.

    Args:
        synced: more votes are durable.
        stuck: votes could not be made durable, for this reason.
    """

    def __init__(
        self, reactor: Reactor, votes: VoteFile, log_event: Callable[..., None], *,
        synced: Callable[[], None], stuck: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._reactor, self._votes, self._log_event = reactor, votes, log_event
        self._synced, self._stuck = synced, stuck
        self._busy = self._stopped = False
        self._failures = 0
        self._backoff = Backoff()
        self._check: VoteCheck | None = None
        self._mended_at = 0
        """Operation that is durable when a damaged file was written anew; 0: it is sound, as far as known."""
        self._damage = self._unwritten = ""

    @property
    def why(self) -> str:
        """As `NodeFile` has it (`scrubbing.py`)."""
        return "; ".join(filter(None, (self._damage, self._unwritten)))

    def stop(self) -> None:
        """Sync nothing more."""
        self._stopped = True

    def sync(self) -> None:
        """Have what was put so far synced, unless that is under way."""
        votes = self._votes
        if self._busy or self._stopped or not votes.dirty:
            return
        job = votes.begin_sync()
        self._busy = True

        def done(error: BaseException | None) -> None:
            if self._stopped:
                return
            if error is not None:
                votes.sync_failed(job, error)
                self._failed(str(error))
                return
            self._busy = False
            votes.finish_sync(job)
            if self._failures:
                self._failures, self._unwritten = 0, ""
                self._log_event("votes_synced_again")
            if 0 < self._mended_at <= votes.synced_op:
                self._mended_at, self._damage = 0, ""
                self._log_event("file_mended", why="the votes were written anew")
            self._synced()
            self.sync()

        self._reactor.run_blocking(job.steps, done)

    def begin_check(self) -> Callable[[], str] | None:
        """As `NodeFile` has it (`scrubbing.py`)."""
        self._check = self._votes.begin_check()
        return self._check.read if self._check is not None else None

    def mend(self, fault: str) -> Sequence[Callable[[], None]]:
        """Have the votes written anew, as after a failed sync."""
        if self._check is not None:
            self._mended_at = self._votes.lost(self._check)
            self._damage = being_mended(fault) if self._mended_at else ""
            self.sync()
        return ()

    def _failed(self, why: str) -> None:
        """Once more at once: it may have passed; then with waits."""
        self._failures += 1
        self._log_event("votes_sync_failed", why=why, failures=self._failures)
        if self._failures > 1:
            self._unwritten = f"its votes cannot be written: {why}"
            self._stuck(why)
        now = self._reactor.now()
        self._reactor.call_at(now + (self._backoff.next(now) if self._failures > 1 else 0.0), self._again)

    def _again(self) -> None:
        self._busy = False
        self.sync()
