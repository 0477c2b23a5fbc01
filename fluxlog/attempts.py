"""What became of the attempts of one call, whether there may be another, and what is told in the end.

No I/O: shared by the connections on an event loop and those on threads.
"""

from __future__ import annotations

from enum import Enum, auto

from fluxlog.errors import FluxlogError, Outcome, UnreachableError

ROUND_PAUSE_MIN = 0.05
ROUND_PAUSE_MAX = 0.5
"""Seconds between two rounds over all addresses."""


class Effect(Enum):
    """What a call does when it is sent again after an attempt that may have had its effect."""

    NONE = auto()
    """It never changes anything."""
    SAME = auto()
    """It leaves things as the first attempt would have."""
    ANOTHER = auto()
    """It may change something else, for instance a topic that was created anew under the name: it is not sent again."""


class Attempts:
    """Of one call, in rounds over the addresses of the cluster."""

    def __init__(self, effect: Effect) -> None:
        self._effect = effect
        self._in_doubt = False
        """Some attempt was sent and may have had its effect."""
        self._failures: list[FluxlogError] = []
        """Of this round."""

    @property
    def changes(self) -> bool:
        """A node has to be reached before it is sent the call: a dead address must not leave the effect in doubt."""
        return self._effect is not Effect.NONE

    def failed(self, failure: FluxlogError, *, sent: bool) -> None:
        """Take note of a failure.

        Args:
            sent: the call was, not only what comes before it.

        Raises:
            FluxlogError: the failure, where another attempt cannot help or could do harm.
        """
        self._in_doubt = self._in_doubt or (sent and failure.outcome is Outcome.UNKNOWN)
        may_go_on = failure.retriable and not (self._in_doubt and self._effect is Effect.ANOTHER)
        if sent and not may_go_on:
            raise self._told(failure)
        self._failures.append(failure)

    def end_round(self) -> FluxlogError:
        """Every address failed: the failure to report, should this have been the last round."""
        failures, self._failures = self._failures, []
        for failure in failures:
            if failure.from_server:
                return self._told(failure)
        addresses = ", ".join(failure.address for failure in failures)
        return UnreachableError(
            "UNREACHABLE",
            f"no node answers at {addresses}: {failures[0].message}",
            outcome=Outcome.UNKNOWN if self._in_doubt else Outcome.REJECTED,
            retriable=True,
        )

    def _told(self, failure: FluxlogError) -> FluxlogError:
        """A refusal of the last attempt does not say that nothing was done, if an earlier one may have done it."""
        if self._in_doubt and self.changes and failure.outcome is not Outcome.UNKNOWN:
            failure.outcome = Outcome.UNKNOWN
            failure.message += "; an earlier attempt may have done it"
        return failure
