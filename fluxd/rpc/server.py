"""The one port of a node: the gRPC server with all services, health and reflection."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fluxd.peer.channels import PEER_MESSAGE_BYTES_MAX

SERVICES = ("fluxlog.v1.Log", "fluxlog.v1.Admin", "fluxlog.v1.Groups", "fluxlog.v1.Consumer", "fluxlog.v1.Peer")

OPTIONS: tuple[tuple[str, int], ...] = (
    # A port that is taken is an error, not a second listener that gets half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", PEER_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", PEER_MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 4_096),
    # Whether a member of a group is there: libraries answer these pings by themselves, also while the program computes;
    # a process that is stopped, or cut off, does not.
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # a minute otherwise, whatever keepalive says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
)


class Server:
    """The listening server. Not serving, as its health service says, until `set_serving`."""

    def __init__(self, address: str, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.address = address
        self._server = aio.server(options=OPTIONS)
        self._server.add_generic_rpc_handlers(tuple(handlers))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.
        """
        await self.set_serving(serving=False)
        try:
            self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self.address}: is another process using that port?") from error
        await self._server.start()

    async def set_serving(self, *, serving: bool) -> None:
        """What the health service answers."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; calls that are still running after the grace are cancelled."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
