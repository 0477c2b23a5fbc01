"""Only the members that fluxd/raft uses of pysyncobj 0.3.17."""

from collections.abc import Callable, Iterable
from typing import Any

from .node import Node
from .transport import Transport

class SyncObjConf:
    journalFile: Any
    onStateChanged: Callable[[int, int], None] | None
    def __init__(
        self,
        *,
        autoTick: bool,
        appendEntriesPeriod: float,
        appendEntriesUseBatch: bool,
        appendEntriesBatchSizeBytes: int,
        raftMinTimeout: float,
        raftMaxTimeout: float,
        leaderFallbackTimeout: float,
        logCompactionMinEntries: int,
        logCompactionMinTime: int,
        fullDumpFile: None,
        dynamicMembershipChange: bool,
        commandsWaitLeader: bool,
        useFork: bool,
        pollerType: str,
    ) -> None: ...

class SyncObj:
    _poller: Any
    def __init__(
        self,
        selfNode: Node,
        otherNodes: Iterable[Node],
        conf: SyncObjConf,
        *,
        nodeClass: type[Node],
        transport: Transport,
    ) -> None: ...
    def doTick(self) -> None: ...
    def _applyCommand(self, command: bytes, callback: None) -> None: ...
    def _checkCommandsToApply(self) -> None: ...
    def _isLeader(self) -> bool: ...
    def _getLeader(self) -> Node | None: ...
    @property
    def raftCurrentTerm(self) -> int: ...
    @property
    def raftCommitIndex(self) -> int: ...
