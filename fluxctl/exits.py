"""Exit codes, and errors as one clear line with what to do about them."""

from __future__ import annotations

import os
from enum import IntEnum

from fluxlog.errors import FluxlogError, Outcome


class ExitCode(IntEnum):
    """What a script may rely on."""

    OK = 0
    ERROR = 1
    USAGE = 2
    REJECTED = 3
    """produce: some lines were not written."""
    UNKNOWN = 4
    """produce: of some lines it is not known whether they were written."""
    UNHEALTHY = 10
    DAMAGED = 11
    """topics verify, log check: not everything is sound, or not all of it could be checked."""
    INTERRUPTED = 130


EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 error; 2 wrong usage; 3 something was rejected (surely not written); "
    "4 something is unknown (may have been written); 10 the cluster is not healthy; "
    "11 verify, check: something differs, is damaged, or could not be checked; 130 interrupted (Ctrl-C)."
)


class CommandError(Exception):
    """A command cannot go on. Shown as `error: message — advice`.

    Args:
        message: condition, values, boundary.
        advice: what to do about it, or empty.
    """

    def __init__(self, message: str, advice: str = "", *, code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.message, self.advice, self.code = message, advice, code


_ADVICE = {
    "UNREACHABLE": "is the cluster up (fluxctl cluster status)? name its nodes with --bootstrap host:port",
    "UNAVAILABLE": "is the cluster up (fluxctl cluster status)? name its nodes with --bootstrap host:port",
    "DEADLINE_EXCEEDED": "look at fluxctl cluster health, then try again",
    "UNKNOWN_TOPIC": "see fluxctl topics list; create it with fluxctl topics create NAME",
    "UNKNOWN_PARTITION": "see fluxctl topics describe for the partitions there are",
    "UNKNOWN_NODE": "see fluxctl nodes list",
    "TOPIC_EXISTS": "choose another name, or pass --if-not-exists",
    "TOPIC_ID_MISMATCH": "the topic was deleted and created again meanwhile: begin anew",
    "INVALID_TOPIC_NAME": "1 to 249 of a-z A-Z 0-9 . _ -, not beginning with __",
    "INVALID_CONFIG": "see docs/fluxctl.md for the keys there are",
    "UNKNOWN_GROUP": "see fluxctl groups list",
    "GROUP_NOT_EMPTY": "stop its members first (fluxctl groups describe NAME --members)",
    "NOT_ENOUGH_NODES": "lower --replication-factor or start more nodes",
    "PARTITION_COUNT": "give a total above the present number of partitions",
    "OFFSET_OUT_OF_RANGE": "use --offset start, or an offset inside the bounds named",
    "BATCH_TOO_LARGE": "lower --batch-lines; a line with its key may have 1 MiB at most",
    "PERMISSION_DENIED": "start the node with --allow-remote-stop, or end its process on its own host",
    "NO_LEADER": "an election is under way: try again in a second",
    "NO_QUORUM": "start the missing nodes; it goes on by itself (fluxctl topics describe NAME --why)",
    "NO_CONTROLLER": "start the missing nodes; it goes on by itself (fluxctl cluster health)",
    "OVERLOADED": "try again more slowly",
    "STOPPING": "ask another node",
    "NOT_READY": "the node is joining its cluster: fluxctl cluster wait",
    "OUTCOME_UNKNOWN": "it may have been done: look before you repeat it",
    "TIMEOUT": "it may have been done: look before you repeat it",
    "DELIVERY_TIMEOUT": "look at fluxctl cluster health",
}


def describe_failure(failure: FluxlogError) -> str:
    """One line: message, reason, advice."""
    advice = _ADVICE.get(failure.reason, "")
    if not advice and failure.retriable:
        advice = "try again"
    return f"{failure.message} ({failure.reason})" + (f" — {advice}" if advice else "")


def describe_os_error(failure: OSError) -> str:
    """One line: which file, where one is named, and what the system says."""
    said = failure.strerror or str(failure)
    return said if failure.filename is None else f"{os.fsdecode(failure.filename)}: {said}"


def exit_code_of(outcomes: set[Outcome]) -> ExitCode:
    """Worst first: what is unknown needs more care than what was rejected."""
    if Outcome.UNKNOWN in outcomes:
        return ExitCode.UNKNOWN
    return ExitCode.REJECTED if Outcome.REJECTED in outcomes else ExitCode.OK
