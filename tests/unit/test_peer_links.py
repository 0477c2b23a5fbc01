"""Links over real connections in one process: up, order, down, gone, refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest
from grpc import aio

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.peer.identity import Identity
from fluxd.peer.links import Links
from fluxd.peer.proof import PROOF_KEY, prove_answer, verify
from fluxd.peer.reception import Reception
from fluxd.rpc.peer import PeerService
from fluxd.rpc.server import Server
from fluxlog.v1 import peer_pb2

SECRET = b"a secret of some length"


class End:
    """One node's end: a server and links, and what they told."""

    def __init__(
        self, node: int, addresses: dict[NodeId, str], *, secret: bytes = SECRET, cluster_id: str = "c"
    ) -> None:
        seeds = tuple(f"{n}@{a}" for n, a in addresses.items())
        me = Identity(
            NodeId(node), bytes([node]) * 16, seeds, addresses[NodeId(node)], 1, "0", False,
            peer_pb2.Founding(cluster_id=cluster_id),
        )  # fmt: skip
        self.links = Links(me, secret, addresses)
        self.server = Server(
            addresses[NodeId(node)], [PeerService(Reception(me, secret, self.links.directory_of), self).handlers()]
        )
        self.told: list[str] = []
        self.terms: dict[NodeId, list[int]] = {}
        self.statuses: list[int] = []
        self.refusals: list[Reason] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.server.start()
        self._task = asyncio.ensure_future(self.links.run(self))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.server.stop(0)

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def link_up(self, peer: NodeId, hello: peer_pb2.HelloResponse) -> None:
        self._tell(f"up {peer}")

    def link_down(self, peer: NodeId, *, gone: bool) -> None:
        self._tell(f"{'gone' if gone else 'down'} {peer}")

    def link_refused(self, peer: NodeId, error: FluxError) -> None:
        self.refusals.append(error.reason)
        self._changed.set()

    def called_by(self, peer: NodeId) -> None:
        self.links.heard_from(peer)

    def receive_frame(self, peer: NodeId, frame: peer_pb2.PeerFrame) -> None:
        self.terms.setdefault(peer, []).extend(message.term for message in frame.messages)
        if frame.HasField("status"):
            self.statuses.append(frame.status.process_id)
        self._changed.set()

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self._changed.set()


def two_addresses() -> dict[NodeId, str]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return {NodeId(n): f"127.0.0.1:{s.getsockname()[1]}" for n, s in ((1, first), (2, second))}


def run(test: Callable[[dict[NodeId, str]], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(two_addresses()))


def send(end: End, peer: int, term: int, *, size: int = 0) -> bool:
    append = peer_pb2.AppendEntries(sequence=term)
    message = peer_pb2.GroupMessage(topic_id=bytes(16), term=term, append_entries=append)
    return end.links.send(NodeId(peer), message, [bytes(size)] if size else [])


def test_messages_arrive_in_order() -> None:
    """Both directions stand; what is sent on a stream arrives in order; unsent before the link is up."""

    async def test(addresses: dict[NodeId, str]) -> None:
        one, two = End(1, addresses), End(2, addresses)
        assert not send(one, 2, 1)
        await one.start()
        await two.start()
        await one.until(lambda: one.told[-1:] == ["up 2"])
        await two.until(lambda: two.told[-1:] == ["up 1"])
        assert one.links.is_connected(NodeId(2))
        assert one.links.directory_of(NodeId(2)) == bytes([2]) * 16
        for term in range(200):
            assert send(one, 2, term)
        for term in range(8):
            assert send(two, 1, term, size=1 << 20)
        one.links.broadcast_status(peer_pb2.NodeStatus(process_id=5))
        await two.until(lambda: two.terms.get(NodeId(1)) == list(range(200)) and two.statuses == [5])
        await one.until(lambda: one.terms.get(NodeId(2)) == list(range(8)))
        await one.stop()
        await two.stop()

    run(test)


def test_peer_that_ends_is_gone_and_comes_back() -> None:
    """A peer whose port refuses is gone, said once; back again, the link stands without a new start."""

    async def test(addresses: dict[NodeId, str]) -> None:
        one, two = End(1, addresses), End(2, addresses)
        await one.start()
        await two.start()
        await one.until(lambda: one.told[-1:] == ["up 2"])
        await two.stop()
        await one.until(lambda: one.told[-1:] == ["gone 2"])
        assert not send(one, 2, 1)
        two = End(2, addresses)
        await two.start()
        await one.until(lambda: one.told[-1:] == ["up 2"])
        assert one.told.count("gone 2") <= 2  # once before node 2 was there at all, perhaps
        assert one.told[-3:] == ["down 2", "gone 2", "up 2"]
        await one.stop()
        await two.stop()

    run(test)


def test_refusals_are_told() -> None:
    """Another secret, another cluster: neither side gets a link, and the caller learns why."""

    async def test(addresses: dict[NodeId, str]) -> None:
        for other, reason in (
            (End(2, addresses, secret=b"another secret"), Reason.UNAUTHENTICATED),
            (End(2, addresses, cluster_id="d"), Reason.WRONG_CLUSTER),
        ):
            one = End(1, addresses)
            await one.start()
            await other.start()
            await one.until(lambda one=one: bool(one.refusals))  # type: ignore[misc]
            await other.until(lambda other=other: bool(other.refusals))  # type: ignore[misc]
            assert {*one.refusals, *other.refusals} == {reason}
            assert "up 2" not in one.told
            await one.stop()
            await other.stop()

    run(test)


def test_wrong_node_behind_an_address() -> None:
    """Addresses that are mixed up are noticed: the callee says who it is."""

    async def test(addresses: dict[NodeId, str]) -> None:
        one = End(1, {NodeId(1): addresses[NodeId(1)], NodeId(3): addresses[NodeId(2)]})
        two = End(2, addresses)
        await two.start()
        await one.start()
        await one.until(lambda: bool(one.refusals))
        assert one.refusals[0] is Reason.INVALID_ARGUMENT
        await one.stop()
        await two.stop()

    run(test)


@pytest.mark.parametrize("proven", [False, True])
def test_an_answer_that_cannot_be_read_ends_no_node(proven: bool) -> None:
    """Whatever answers at an address, a stranger or a broken node: it is asked again, and others hear of nothing."""

    async def test(addresses: dict[NodeId, str]) -> None:
        asked, thrice = 0, asyncio.Event()

        async def hello(request: bytes, context: Any) -> bytes:
            nonlocal asked
            asked += 1
            if asked == 3:
                thrice.set()
            if proven:
                caller = verify(SECRET, context.invocation_metadata())
                context.set_trailing_metadata(((PROOF_KEY, prove_answer(SECRET, caller.nonce, NodeId(2))),))
            return b"\xff\xff\xff"

        handlers: dict[str, Any] = {"Hello": grpc.unary_unary_rpc_method_handler(hello)}
        stranger = aio.server()
        stranger.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fluxlog.v1.Peer", handlers),))
        stranger.add_insecure_port(addresses[NodeId(2)])
        await stranger.start()
        one = End(1, addresses)
        await one.start()
        async with asyncio.timeout(10):
            await thrice.wait()
        assert one.running
        assert set(one.refusals) == (set() if proven else {Reason.UNAUTHENTICATED})
        assert not one.told
        await one.stop()
        await stranger.stop(0)

    run(test)
