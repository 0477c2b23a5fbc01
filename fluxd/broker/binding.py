"""Has the cluster agree that a copied replica's vote is bound to this node's directory.

The node tells it in its status, the controller commits it (`Controller`), and the metadata bring it back here. A
replica takes part only after that: so a disk that was lost and comes back after all has no vote any more.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxd.broker.cluster import ClusterView
from fluxd.broker.metadata import Change
from fluxd.core.metadata import Image
from fluxd.core.runtime import Reactor
from fluxd.core.types import GroupId
from fluxd.raft.spec import GroupSpec


class ReplicaBinding:
    """See the module. `bind` is for `Host.bind`, `metadata_changed` for the metadata's listeners."""

    def __init__(self, reactor: Reactor, view: ClusterView, image: Image) -> None:
        self._reactor, self._view, self._image = reactor, view, image
        self._waiting: dict[GroupId, Callable[[], None]] = {}

    def bind(self, spec: GroupSpec, done: Callable[[], None]) -> None:
        """Call back when the metadata bind this node's replica to this directory."""
        self._waiting[spec.group_id] = done
        self._view.copied.add(spec.group_id)
        self._reactor.call_soon(self._look)

    def metadata_changed(self, change: Change) -> None:
        """The metadata have changed."""
        self._image = change.new
        self._look()

    def _look(self) -> None:
        local = self._view.local
        for group_id, done in tuple(self._waiting.items()):
            partition = self._image.partition(group_id)
            if partition is None:
                self._forget(group_id)  # deleted
            elif partition.directory_of(local.node_id) == local.directory_id:
                self._forget(group_id)
                done()

    def _forget(self, group_id: GroupId) -> None:
        del self._waiting[group_id]
        self._view.copied.discard(group_id)
