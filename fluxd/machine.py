"""What a node is handed of the machine that it runs on: disk, network, randomness, and the process itself.

The defaults are the real ones. A simulation hands in its own, and drives the same node.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from fluxd.peer.channels import GRPC_NETWORK, Network
from fluxd.rpc.server import Server
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.real import RealFileSystem


class Listener(Protocol):
    """The one port of a node, see `rpc.server.Server`."""

    async def start(self) -> None:
        """Listen. Raises OSError."""

    async def set_serving(self, *, serving: bool) -> None:
        """What the health service answers."""

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; end what still runs after the grace."""


def _kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Machine:
    """See the module."""

    filesystem: Callable[[Path], FileSystem] = RealFileSystem
    """Over a data directory."""
    locks_directories: bool = True
    """Another process might use the same data directory."""
    network: Network = GRPC_NETWORK
    listener: Callable[[str, Sequence[grpc.GenericRpcHandler]], Listener] = Server
    """For an address, host:port, and the services there."""
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    """For secrets and ids."""
    process_id: Callable[[], int] = os.getpid
    kill: Callable[[], None] = _kill_process
    """SIGKILL of this process."""


MACHINE = Machine()
