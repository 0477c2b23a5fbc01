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
from fluxd.core.types import METADATA_GROUP, GroupId
from fluxd.raft.spec import GroupSpec

_AGAIN = 5.0
"""Until what could not be written is tried again."""


class ReplicaBinding:
    """See the module. `bind` is for `Host.bind`, `metadata_changed` for the metadata's listeners.

    Args:
        remember: blocking; notes durably that the metadata replica is bound, which has to be known before its log is
            read.
    """

    def __init__(self, reactor: Reactor, view: ClusterView, image: Image, remember: Callable[[], None]) -> None:
        self._reactor, self._view, self._image, self._remember = reactor, view, image, remember
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
                if group_id == METADATA_GROUP:
                    self._remember_first(done)
                else:
                    done()

    def _remember_first(self, done: Callable[[], None]) -> None:
        def remembered(error: BaseException | None) -> None:
            if error is None:
                done()
            else:  # the disk may recover
                self._reactor.call_at(self._reactor.now() + _AGAIN, lambda: self._remember_first(done))

        self._reactor.run_blocking([self._remember], remembered)

    def _forget(self, group_id: GroupId) -> None:
        del self._waiting[group_id]
        self._view.copied.discard(group_id)
