"""Replicas that an error of the disk has stopped, and how they come back.

A replica that met an error of its files (a failed sync, EIO, no room) stops at once and answers what waits. Then its
files are opened again: what the log had synced is kept, what stands behind it was never acknowledged and is removed,
and the log goes on in a new segment (`PartitionLog.open`, `after`). That is tried until it works, less and less often;
where the disk was full, not before there is more room than the reserve. Until then the replica is FAILED and says why.
The rest of the node goes on.

Damage (bytes are not what was written) is no such error: then the replica takes no part until it was copied.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId
from fluxd.raft.group import Group
from fluxd.raft.opening import Damaged, Opened, open_replica
from fluxd.raft.spec import Role
from fluxd.storage.filesystem import FileSystem

_IN_USE_RETRY = 0.05
"""Until the log's last sync, or another step that uses its files, has returned."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


@dataclass(slots=True)
class _Patient:
    group: Group
    needs_room: bool
    timer: Timer | None = None


class Backoff:
    """Doubling waits. Of one thing that is tried again and again."""

    def __init__(self) -> None:
        self._wait, self._last_at = limits.DISK_RETRY_MIN, float("-inf")

    def next(self, now: float) -> float:
        """Seconds until the next try. After a good while without any the waits are short again."""
        if now - self._last_at > 2 * limits.DISK_RETRY_MAX:
            self._wait = limits.DISK_RETRY_MIN
        wait, self._wait = self._wait, min(2 * self._wait, limits.DISK_RETRY_MAX)
        self._last_at = now + wait
        return wait


class Healing:
    """See the module.

    Args:
        in_use: some step that uses the group's files is under way.
        may_open: what else a replica needs is there.
        opened: its files are open again.
        damaged: they are not what was written.
    """

    def __init__(
        self,
        reactor: Reactor,
        fs: FileSystem,
        log_event: Callable[..., None],
        *,
        in_use: Callable[[GroupId], bool],
        may_open: Callable[[Group], bool],
        opened: Callable[[Group, Opened], None],
        damaged: Callable[[Group, str], None],
    ) -> None:
        self._reactor, self._fs, self._log_event = reactor, fs, log_event
        self._in_use, self._may_open, self._opened, self._damaged = in_use, may_open, opened, damaged
        self._patients: dict[GroupId, _Patient] = {}
        self._backoffs: dict[GroupId, Backoff] = {}

    def stop(self, group: Group, error: OSError) -> None:
        """Take a replica out, and bring it back when that is possible."""
        if group.role is Role.FAILED:
            return
        patient = self._patients[group.group_id] = _Patient(group, error.errno in _NO_ROOM)
        self._later(patient, self._backoffs.setdefault(group.group_id, Backoff()).next(self._reactor.now()))
        group.fail(f"{_told(error)}; its files are being opened again")

    def forget(self, group_id: GroupId) -> None:
        """It is closed."""
        patient = self._patients.pop(group_id, None)
        self._backoffs.pop(group_id, None)
        if patient is not None and patient.timer is not None:
            patient.timer.cancel()

    def _later(self, patient: _Patient, seconds: float) -> None:
        patient.timer = self._reactor.call_at(self._reactor.now() + seconds, lambda: self._try(patient))

    def _try(self, patient: _Patient) -> None:
        group = patient.group
        if self._in_use(group.group_id):
            self._later(patient, _IN_USE_RETRY)
            return
        if not self._may_open(group) or (patient.needs_room and self._is_full()):
            self._later(patient, limits.DISK_CHECK_INTERVAL)
            return
        found: list[Opened | str] = []
        after = group.log.synced

        def read() -> None:
            group.log.close()
            found.append(open_replica(self._fs, group.spec, has_voted=True, after=after))

        def done(error: BaseException | None) -> None:
            result: Opened | str = found[0] if error is None else f"{type(error).__name__}: {error}"
            if self._patients.get(group.group_id) is not patient:
                if isinstance(result, Opened):
                    result.log.close()  # closed meanwhile
                return
            self._take(patient, result)

        self._reactor.run_blocking([read], done)

    def _is_full(self) -> bool:
        try:
            return self._fs.free_bytes() < limits.DISK_RESERVE_BYTES
        except OSError:
            return True

    def _take(self, patient: _Patient, result: Opened | str) -> None:
        group = patient.group
        if isinstance(result, Opened):
            try:
                self._opened(group, result)
            except OSError as error:
                result.log.close()
                result = f"its files cannot be opened: {error}"
            except CorruptDataError as error:
                result.log.close()
                result = Damaged(error)
            except Exception as error:  # noqa: BLE001 - the boundary of fail-stop: whatever it is, it does not go on
                result.log.close()
                self._give_up(group, f"it could not be started again: {type(error).__name__}: {error}")
                return
        if isinstance(result, Opened):
            del self._patients[group.group_id]
        elif isinstance(result, Damaged):
            del self._patients[group.group_id]
            group.why = str(result)
            self._damaged(group, result)
        else:
            wait = self._backoffs[group.group_id].next(self._reactor.now())
            group.why = f"{result}; tried again in {wait:.1f} s"
            self._later(patient, wait)

    def _give_up(self, group: Group, why: str) -> None:
        """What is wrong is not the disk's."""
        del self._patients[group.group_id]
        if group.role is not Role.FAILED:  # it had begun
            group.fail(why)
            return
        group.why = why
        self._log_event("replica_failed", group=str(group.group_id), why=why)


def _told(error: OSError) -> str:
    what = "its files cannot be opened" if error.errno in _NO_DESCRIPTOR else "its disk failed"
    return f"{what}: {error}"
