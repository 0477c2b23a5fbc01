"""Addresses of a cluster's nodes: parsing, the order in which they are asked, and how channels to them behave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fluxlog.errors import LocalError

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    # A node that comes back must be found within moments; the default grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A node that has fallen silent (stopped, cut off, without power) is noticed within moments, not when a call's own
    # time is up: only then another one is asked.
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_500),
    ("grpc.http2.ping_timeout_ms", 1_500),  # a minute otherwise, whatever keepalive says
    ("grpc.http2.max_pings_without_data", 0),
    # Retries are ours, since only we know which are safe.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


def parse_bootstrap(text: str) -> list[str]:
    """Split "host:port,host:port".

    Raises:
        LocalError: empty, or an item without a port in 1..65,535.
    """
    addresses = [item.strip() for item in text.split(",") if item.strip()]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
            raise LocalError("INVALID_ARGUMENT", f"not host:port: {address!r}")
    if not addresses:
        raise LocalError("INVALID_ARGUMENT", "no bootstrap address")
    return addresses


class AddressBook:
    """Every address known, the one that answered last first. Not thread-safe."""

    def __init__(self, bootstrap: Sequence[str]) -> None:
        if not bootstrap:
            raise LocalError("INVALID_ARGUMENT", "no bootstrap address")
        self._order = list(dict.fromkeys(bootstrap))

    def addresses(self) -> list[str]:
        """A copy."""
        return list(self._order)

    def remember(self, addresses: Iterable[str]) -> None:
        """Add addresses that a node told."""
        self._order += [address for address in dict.fromkeys(addresses) if address and address not in self._order]

    def next_address(self, failed: str) -> str:
        """The address to try after one that failed (round robin; the same one where there is no other)."""
        order = self._order
        return order[(order.index(failed) + 1) % len(order)] if failed in order else order[0]

    def prefer(self, address: str) -> None:
        """It has answered."""
        if self._order[0] != address:
            self._order = [address, *(other for other in self._order if other != address)]
