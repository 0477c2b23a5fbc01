"""pysyncobj 0.3.17: the one version whose source was audited, how it is configured, and the clock it sees.

The library as shipped loses acknowledged records. What closes that is outside of it: a journal (`journal.py`), a
transport that is a guard (`guard.py`), this configuration, and messages delivered through its public callbacks. Nothing
of it is edited, overridden or vendored; its module-level clock, random source and journal factory are set here, and one
private attribute is written once (`build`).

Its clock stands still during a step and has moved by at least STEP between two steps of a node. So its time-bounded
loops end on their own conditions, and `appendEntriesPeriod` never caps the rate of commits (5 ms would mean 184 a
second with one entry in flight).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pysyncobj
from pysyncobj import syncobj
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from fluxd.core import limits
from fluxd.core.types import NodeId
from fluxd.raft.journal import ENTRY_WEIGHT, RaftJournal

AUDITED_SYNCOBJ_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"
STEP = 2e-6
_APPEND_ENTRIES_PERIOD = 1e-6
_NEVER = 10**12

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
"""The library's states, as its onStateChanged reports them."""


class LibraryError(Exception):
    """The installed pysyncobj is not the audited one: fluxd must not start."""


@cache
def check_library() -> None:
    """Refuse any pysyncobj but the audited one. Read once per process.

    Raises:
        LibraryError: syncobj.py has another hash.
    """
    source = Path(str(syncobj.__file__))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != AUDITED_SYNCOBJ_SHA256:
        raise LibraryError(
            f"pysyncobj's syncobj.py has sha256 {digest[:16]}…, the audited one {AUDITED_SYNCOBJ_SHA256[:16]}…: "
            "install exactly pysyncobj==0.3.17"
        )


class LibraryClock:
    """What pysyncobj takes for monotonic time, and for how long a leader may hear of no majority; set by `Host` before
    each step of a group."""

    def __init__(self) -> None:
        self.now = 0.0
        self.leader_fallback = limits.ELECTION_TIMEOUT_MIN

    def read(self) -> float:
        """Seconds."""
        return self.now


CLOCK = LibraryClock()


class _NoRandom:
    """The library draws its election timeouts from this; they are always past, the guard decides when to campaign."""

    @staticmethod
    def random() -> float:
        return 0.5


class _NullPoller:
    """The library polls at the end of each tick; there is nothing to poll, and this saves the system call."""

    def poll(self, timeout: float) -> None:
        """Nothing."""


def _given_journal(journal: RaftJournal) -> RaftJournal:
    return journal


syncobj.monotonicTime = CLOCK.read
syncobj.random = _NoRandom
syncobj.createJournal = _given_journal
logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)


_SETTINGS = pysyncobj.SyncObjConf(
    autoTick=False,
    appendEntriesPeriod=_APPEND_ENTRIES_PERIOD,
    appendEntriesUseBatch=True,
    # above any frame: its "transmission" path, which pickles, is then dead
    appendEntriesBatchSizeBytes=limits.ENTRY_FRAME_BYTES_MAX + ENTRY_WEIGHT + 1,
    raftMinTimeout=10 * _APPEND_ENTRIES_PERIOD,
    raftMaxTimeout=20 * _APPEND_ENTRIES_PERIOD,
    leaderFallbackTimeout=limits.ELECTION_TIMEOUT_MIN,
    logCompactionMinEntries=_NEVER,
    logCompactionMinTime=_NEVER,
    fullDumpFile=None,
    dynamicMembershipChange=False,
    commandsWaitLeader=False,
    useFork=False,
    pollerType="select",
)
"""Of all groups."""


class _Conf(pysyncobj.SyncObjConf):
    """Of one group. What all have in common are attributes of the class: 1.5 KB that not each of thousands needs."""

    def __init__(self, journal: RaftJournal, on_state: Callable[[int, int], None]) -> None:
        self.journalFile, self.onStateChanged = journal, on_state

    @property
    def leaderFallbackTimeout(self) -> float:  # noqa: N802 - the library's name
        """As the clock, of the node whose group is being stepped."""
        return CLOCK.leader_fallback


for _name, _value in vars(_SETTINGS).items():
    if _name not in vars(_Conf):
        setattr(_Conf, _name, _value)


def build(
    node_id: NodeId,
    others: Iterable[NodeId],
    journal: RaftJournal,
    transport: Transport,
    on_state: Callable[[int, int], None],
) -> pysyncobj.SyncObj:
    """Construct the library's state machine for one replica (C0 and C8 in docs/raft.md).

    Args:
        others: the other voters; not empty (see `guard.DISK_PEER`).
    """
    raft = pysyncobj.SyncObj(
        Node(node_id), [Node(other) for other in others], _Conf(journal, on_state), nodeClass=Node, transport=transport
    )
    raft._poller = _NullPoller()
    # The one private write: committed entries are not replayed through the library at start; it applies nothing for us.
    raft._SyncObj__raftLastApplied = raft.raftCommitIndex  # type: ignore[attr-defined]
    return raft
