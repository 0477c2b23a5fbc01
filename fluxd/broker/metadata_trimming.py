"""Keeps the metadata log short, on the node that leads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fluxd.broker.cluster import ClusterView
from fluxd.broker.log_trimming import Done, LogTrimming
from fluxd.broker.metadata import MetadataFollower
from fluxd.core import limits
from fluxd.core.metadata_commands import STATE_VERSION
from fluxd.core.metadata_snapshot import snapshot
from fluxd.core.runtime import Reactor
from fluxd.core.types import METADATA_TOPIC, Offset
from fluxd.raft.spec import Role
from fluxlog.v1 import state_pb2


class TrimmedReplica(Protocol):
    """This node's replica of the metadata group."""

    on_role: list[Callable[[], None]]

    @property
    def role(self) -> Role: ...
    @property
    def log_start_offset(self) -> Offset: ...
    def trim(self, log_start_offset: Offset, done: Done) -> None: ...


class MetadataTrimming:
    """See the module; a `StateLog`.

    Args:
        append: proposes one chunk; None: it is committed.
    """

    def __init__(
        self, reactor: Reactor, view: ClusterView, follower: MetadataFollower, replica: TrimmedReplica,
        append: Callable[[state_pb2.StateChunk, Done], None],
    ) -> None:  # fmt: skip
        self._view, self._follower, self._replica = view, follower, replica
        self.append_chunk = append
        self._trimming = LogTrimming(reactor, self)
        self._leads = False
        replica.on_role.append(self._role_changed)
        self._role_changed()

    def _role_changed(self) -> None:
        leads = self._replica.role is Role.LEADER
        if leads != self._leads:
            self._leads = leads
            (self._trimming.begin if leads else self._trimming.end)()

    @property
    def name(self) -> str:
        """The topic's."""
        return METADATA_TOPIC

    @property
    def log_start_offset(self) -> Offset:
        """First offset kept."""
        return self._replica.log_start_offset

    @property
    def applied_offset(self) -> Offset:
        """First offset that is not applied."""
        return self._follower.applied_offset

    def is_long(self) -> bool:
        """There are METADATA_TRIM_RECORDS commands, or METADATA_TRIM_BYTES of them, and nobody would be ended by it."""
        records, size = self.applied_offset - self.log_start_offset, self._follower.bytes_behind_state
        is_long = records >= limits.METADATA_TRIM_RECORDS or size >= limits.METADATA_TRIM_BYTES
        return is_long and self._all_understand()

    def _all_understand(self) -> bool:
        """A node of an older version stops when it meets a state: while one is up (an upgrade), none is written."""
        others = self._follower.image.nodes.keys() - {self._view.local.node_id}
        told = [self._view.told(node_id) for node_id in others if self._view.is_up(node_id)]
        return all(each is not None and each.status.metadata_version >= STATE_VERSION for each in told)

    def encoded_state(self) -> bytes:
        """The image."""
        return snapshot(self._follower.image, self.applied_offset)

    def trim(self, log_start_offset: Offset, done: Done) -> None:
        """As the replica does."""
        self._replica.trim(log_start_offset, done)
