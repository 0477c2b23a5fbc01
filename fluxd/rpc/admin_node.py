"""StopNode and KillNode: the two calls of Admin that concern the process itself, and need leave for it."""

from __future__ import annotations

from collections.abc import Callable

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.observability import get_logger
from fluxd.rpc.handling import Context
from fluxlog.v1 import admin_pb2

log = get_logger()


class NodeControl:
    """Ends this node when asked to.

    Args:
        allowed: the node was started with allow_remote_stop.
        stop: as SIGTERM would.
        kill: as SIGKILL would; called once the answer is on its way.
    """

    def __init__(self, node_id: NodeId, *, allowed: bool, stop: Callable[[], None], kill: Callable[[], None]) -> None:
        self._node_id, self._allowed, self._stop, self._kill = node_id, allowed, stop, kill

    async def StopNode(  # noqa: N802 - the method's name in admin.proto
        self, request: admin_pb2.StopNodeRequest, context: Context
    ) -> admin_pb2.StopNodeResponse:
        """Hand leaderships over, finish what is in flight, exit 0."""
        self._check(request.node_id, "StopNode", context)
        self._stop()
        return admin_pb2.StopNodeResponse()

    async def KillNode(  # noqa: N802
        self, request: admin_pb2.KillNodeRequest, context: Context
    ) -> admin_pb2.KillNodeResponse:
        """End at once."""
        self._check(request.node_id, "KillNode", context)
        context.add_done_callback(self._answered)  # type: ignore[arg-type]  # the stub's class is no protocol
        return admin_pb2.KillNodeResponse()

    def _answered(self, _: Context) -> None:
        self._kill()

    def _check(self, node_id: int, method: str, context: Context) -> None:
        if not self._allowed:
            raise FluxError(
                Reason.PERMISSION_DENIED,
                f"node {self._node_id} was not started with allow_remote_stop: {method} is off",
            )
        if node_id != self._node_id:
            raise FluxError(
                Reason.INVALID_ARGUMENT, f"{method} for node {node_id} reached node {self._node_id}: a wrong address"
            )
        log.warning("node_end_requested", method=method, client=context.peer())
