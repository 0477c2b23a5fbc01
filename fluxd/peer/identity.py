"""Who this node is, as it tells other nodes."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from fluxd.core.types import NodeId
from fluxd.peer.proof import Caller, new_nonce
from fluxlog.v1 import peer_pb2


@dataclass(slots=True)
class Identity:
    """This node. `founding` is empty until the node belongs to a cluster; then it never changes."""

    node_id: NodeId
    directory_id: bytes
    seed_list: tuple[str, ...]
    """"id@host:port", ascending by id, as configured."""
    advertised_address: str
    process_id: int
    version: str
    allows_remote_stop: bool
    founding: peer_pb2.Founding | None = None
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    """For nonces."""

    @property
    def cluster_id(self) -> str:
        """Empty before founding."""
        return self.founding.cluster_id if self.founding is not None else ""

    def call_to(self, peer: NodeId) -> Caller:
        """This node as the caller of that one, with a fresh nonce."""
        return Caller(self.node_id, peer, self.directory_id, self.cluster_id, new_nonce(self.random_bytes))

    def hello_request(self) -> peer_pb2.HelloRequest:
        """What this node says first."""
        return peer_pb2.HelloRequest(
            node_id=self.node_id,
            directory_id=self.directory_id,
            cluster_id=self.cluster_id,
            seeds=self.seed_list,
            advertised_address=self.advertised_address,
            process_id=self.process_id,
            version=self.version,
            allows_remote_stop=self.allows_remote_stop,
        )

    def hello_response(self) -> peer_pb2.HelloResponse:
        """What this node answers; with the founding once there is one."""
        return peer_pb2.HelloResponse(
            node_id=self.node_id,
            directory_id=self.directory_id,
            cluster_id=self.cluster_id,
            seeds=self.seed_list,
            advertised_address=self.advertised_address,
            process_id=self.process_id,
            version=self.version,
            allows_remote_stop=self.allows_remote_stop,
            founding=self.founding,
        )
