"""Who may come in: the judgement of calls from other nodes. No gRPC here; `rpc/peer.py` is the door."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import DIRECTORY_ID_BYTES, NodeId
from fluxd.observability import get_logger
from fluxd.peer.identity import Identity
from fluxd.peer.proof import Caller, prove_answer, verify
from fluxlog.v1 import peer_pb2

log = get_logger()


class Reception:
    """Admits node-to-node calls.

    Args:
        directory_of: directory id of the live node that this node is connected to under a number, or None.
    """

    def __init__(self, me: Identity, secret: bytes, directory_of: Callable[[NodeId], bytes | None]) -> None:
        self._me = me
        self._secret = secret
        self._directory_of = directory_of
        self._last_refusals: dict[str, str] = {}

    def admit(self, metadata: Iterable[tuple[str, str | bytes]], source: str) -> Caller:
        """Check the proof and the caller's identity.

        Args:
            source: the caller's address, for the log.

        Raises:
            FluxError: UNAUTHENTICATED, WRONG_CLUSTER, NODE_ID_IN_USE, or INVALID_ARGUMENT (it looked for another node).
        """
        try:
            caller = verify(self._secret, metadata)
            self._check(caller)
        except FluxError as error:
            self._log_refusal(source, error)
            raise
        return caller

    def admit_member(self, metadata: Iterable[tuple[str, str | bytes]], source: str) -> Caller:
        """The same for calls that only members of the cluster may make.

        Raises:
            FluxError: as `admit`, or NOT_READY: one of the two does not belong to a cluster yet.
        """
        caller = self.admit(metadata, source)
        if not self._me.cluster_id or not caller.cluster_id:
            raise FluxError(Reason.NOT_READY, "the node has not joined the cluster yet")
        return caller

    def answer(self, caller: Caller) -> tuple[peer_pb2.HelloResponse, str]:
        """The answer to Hello and the proof that goes with it."""
        return self._me.hello_response(), prove_answer(self._secret, caller.nonce, self._me.node_id)

    def _check(self, caller: Caller) -> None:
        me = self._me
        if len(caller.directory_id) != DIRECTORY_ID_BYTES:
            raise FluxError(Reason.UNAUTHENTICATED, "the caller's directory id is not 16 bytes")
        if caller.to != me.node_id:
            raise FluxError(
                Reason.INVALID_ARGUMENT,
                f"node {caller.node_id} looks for node {caller.to} and reached node {me.node_id}: check the seeds",
            )
        if me.cluster_id and caller.cluster_id and caller.cluster_id != me.cluster_id:
            raise FluxError(
                Reason.WRONG_CLUSTER,
                f"node {caller.node_id} belongs to cluster {caller.cluster_id}, node {me.node_id} to {me.cluster_id}",
            )
        live = me.directory_id if caller.node_id == me.node_id else self._directory_of(caller.node_id)
        if live is not None and live != caller.directory_id:
            raise FluxError(
                Reason.NODE_ID_IN_USE,
                f"node id {caller.node_id} belongs to a live node with directory {live.hex()}, "
                f"the caller has directory {caller.directory_id.hex()}",
            )

    def _log_refusal(self, source: str, error: FluxError) -> None:
        """Once per host and condition: a stranger that tries again and again must not fill the log."""
        host = source.rpartition(":")[0]
        if self._last_refusals.get(host) != error.message:
            if len(self._last_refusals) >= 1_000:
                self._last_refusals.clear()
            self._last_refusals[host] = error.message
            log.warning("peer_refused", source=source, reason=error.reason.name, message=error.message)
