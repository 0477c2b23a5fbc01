"""Who founds a cluster, who joins it, who has no place in it."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from fluxd.broker.founding import Answer, Found, Join, Joining, StartError, Wait, decide, founding_of
from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.peer.identity import Identity
from fluxd.reactor import AsyncReactor
from fluxd.storage.directory import open_directory
from fluxd.storage.real import RealFileSystem
from fluxlog.v1 import peer_pb2

ADDRESSES = {NodeId(n): f"h{n}:{n}" for n in (1, 2, 3)}
SEEDS = tuple(f"{node}@{address}" for node, address in ADDRESSES.items())


def directory(node: int) -> bytes:
    return bytes([node]) * 16


def me(node: int) -> Identity:
    return Identity(NodeId(node), directory(node), SEEDS, ADDRESSES[NodeId(node)], 1, "0", False)


def empty(node: int, seeds: tuple[str, ...] = SEEDS) -> peer_pb2.HelloResponse:
    return peer_pb2.HelloResponse(node_id=node, directory_id=directory(node), seeds=seeds)


def founded(node: int, nodes: tuple[int, ...] = (1, 2, 3)) -> peer_pb2.HelloResponse:
    answer = empty(node)
    answer.cluster_id = answer.founding.cluster_id = "c"
    answer.founding.seeds.extend(peer_pb2.FoundingSeed(node_id=n, directory_id=directory(n)) for n in nodes)
    return answer


REFUSED = FluxError(Reason.UNAUTHENTICATED, "the secret is another one")
IN_USE = FluxError(Reason.NODE_ID_IN_USE, "node id 1 belongs to a live node")


def decision(node: int, *answers: Answer, patient: bool = False) -> Wait | Join | Found:
    others = [other for other in ADDRESSES if other != node]
    return decide(me(node), ADDRESSES, dict(zip(others, answers, strict=True)), patient=patient)


def test_lowest_founds_when_all_are_empty() -> None:
    """All seeds empty, same list: the lowest founds, with everybody's directory; the others wait for it."""
    found = decision(1, empty(2), empty(3))
    assert isinstance(found, Found)
    assert [(seed.node_id, seed.directory_id) for seed in found.seeds] == [(n, directory(n)) for n in (1, 2, 3)]
    assert decision(2, empty(1), empty(3)) == Wait("node 1 is about to found the cluster")


def test_alone() -> None:
    """A single seed founds at once."""
    alone = Identity(NodeId(1), directory(1), ("1@a:1",), "a:1", 1, "0", False)
    assert isinstance(decide(alone, {NodeId(1): "a:1"}, {}), Found)


def test_never_without_all() -> None:
    """With one seed silent or refusing nobody founds: it may be the one that remembers the cluster."""
    for missing in (None, REFUSED):
        assert isinstance(decision(1, empty(2), missing), Wait)
        assert isinstance(decision(1, missing, empty(3)), Wait)


def test_join_what_is_founded() -> None:
    """One that remembers the founding is enough, whatever the others say; the founding is taken as it was."""
    for others in itertools.permutations([founded(2), None]):
        assert isinstance(decision(1, *others), Join)
    joined = decision(3, founded(1), REFUSED)
    assert isinstance(joined, Join)
    assert joined.founding.cluster_id == "c"


def test_other_seed_lists() -> None:
    """A seed with another list is waited for; if all others differ, this node is wrong. Both lists are named."""
    other = empty(3, ("1@h1:1", "3@h3:3"))
    waiting = decision(1, empty(2), other)
    assert isinstance(waiting, Wait)
    assert "1@h1:1,3@h3:3" in waiting.why
    assert ",".join(SEEDS) in waiting.why
    with pytest.raises(StartError, match="1@h1:1,3@h3:3"):
        decision(1, empty(2, ("1@h1:1", "3@h3:3")), other)


def test_no_place() -> None:
    """Refused by all, a number that is taken, a cluster of other seeds: the node gives up with the reason."""
    with pytest.raises(StartError, match="refused by node 2 and all others: the secret is another one"):
        decision(1, REFUSED, REFUSED)
    with pytest.raises(StartError, match="belongs to a live node"):
        decision(1, empty(2), IN_USE)
    assert isinstance(decision(1, founded(2), IN_USE, patient=True), Wait)
    with pytest.raises(StartError, match="was founded by nodes 1, 2; the seeds of node 3"):
        decision(3, founded(1, (1, 2)), None)


def test_founding_is_durable(tmp_path: Path) -> None:
    """Founded once: the next start reads the same founding from the data directory."""

    async def join(node: Identity) -> peer_pb2.Founding:
        reactor = AsyncReactor(asyncio.get_running_loop(), seed=1)
        opened = open_directory(RealFileSystem(tmp_path), tmp_path, NodeId(1), lambda size: bytes([1]) * size)
        try:
            await Joining(node, opened, b"s", {NodeId(1): "a:1"}, reactor).join()
            assert founding_of(opened.meta) == node.founding
        finally:
            opened.close()
            reactor.close()
        assert node.founding is not None
        return node.founding

    def alone() -> Identity:
        return Identity(NodeId(1), directory(1), ("1@a:1",), "a:1", 1, "0", False)

    first = asyncio.run(join(alone()))
    assert first == asyncio.run(join(alone()))
    assert len(first.cluster_id) == 32
