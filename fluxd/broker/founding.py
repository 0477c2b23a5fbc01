"""How a node comes to belong to a cluster: it founds it, or meets it.

A cluster is founded once, and only when *all* seed nodes answer "empty" with the same seed list; the one with the
lowest id does it. Were a majority enough, a wiped majority would found a second cluster beside the first. The founding
names the directory of each seed: an empty node that meets a cluster joins it, but its vote stays out unless its
directory is the one that was there at the founding.

    power cut before the founder's meta.json is durable   all are empty still: founded again, under another id
    … after it, before anybody has heard of it            the others find it when the founder is back
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import random_id
from fluxd.core.runtime import Reactor
from fluxd.core.types import NodeId
from fluxd.observability import get_logger
from fluxd.peer.channels import GRPC_NETWORK, Network, PeerUnreachable, say_hello
from fluxd.peer.identity import Identity
from fluxd.storage.directory import DataDirectory, FoundingMember, Meta
from fluxlog.v1 import peer_pb2

RETRY = 0.2

Answer = peer_pb2.HelloResponse | FluxError | None
"""Of one seed: its Hello, its refusal, or silence."""

log = get_logger()


class StartError(Exception):
    """The node cannot start, or must not go on. The message is one line for people."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again later."""

    why: str


@dataclass(frozen=True, slots=True)
class Join:
    """Belong to this cluster from now on."""

    founding: peer_pb2.Founding


@dataclass(frozen=True, slots=True)
class Found:
    """This node founds the cluster, with these seeds."""

    seeds: tuple[peer_pb2.FoundingSeed, ...]


def decide(
    me: Identity, addresses: Mapping[NodeId, str], answers: Mapping[NodeId, Answer], *, patient: bool = False
) -> Wait | Join | Found:
    """What an empty node does after it has asked all other seeds.

    Args:
        addresses: of all seeds, this node among them.
        answers: of all other seeds.
        patient: ask again when this node's number is said to be taken (see `check_refusals`).

    Raises:
        StartError: it has no place in this cluster.
    """
    refusals = {
        peer: refusal for peer, answer in answers.items() if (refusal := _refusal(me, peer, answer)) is not None
    }
    check_refusals(refusals, len(answers), patient=patient)
    for refusal in refusals.values():
        if refusal.reason is Reason.NODE_ID_IN_USE:
            return Wait(refusal.message)
    heard = {peer: answer for peer, answer in answers.items() if isinstance(answer, peer_pb2.HelloResponse)}
    for answer in heard.values():
        if answer.HasField("founding"):
            _check_place(me, addresses, answer.founding)
            return Join(answer.founding)
    if refusals:
        return Wait("; ".join(refusal.message for refusal in refusals.values()))
    silent = sorted(peer for peer, answer in answers.items() if answer is None)
    if silent:
        return Wait(f"no answer from nodes {', '.join(map(str, silent))}")
    founder = min(addresses)
    if founder != me.node_id:
        return Wait(f"node {founder} is about to found the cluster")
    directories = {me.node_id: me.directory_id} | {peer: answer.directory_id for peer, answer in heard.items()}
    return Found(
        tuple(
            peer_pb2.FoundingSeed(node_id=node, directory_id=directories[node], address=address)
            for node, address in sorted(addresses.items())
        )
    )


def check_refusals(refusals: Mapping[NodeId, FluxError], others: int, *, patient: bool) -> None:
    """Whether the refusals of other nodes mean that this one is wrong: all of them refuse, or its number is taken.

    Args:
        patient: nothing follows yet from a number that is taken: who has it may be this node's former process, which
            died without a word and left another directory. See limits.NODE_ID_PATIENCE.

    Raises:
        StartError: it is.
    """
    taken = [peer for peer, error in refusals.items() if error.reason is Reason.NODE_ID_IN_USE]
    if taken and patient:
        return
    for peer in taken:
        raise StartError(f"refused by node {peer}: {refusals[peer].message}")
    if refusals and len(refusals) == others:
        peer, error = min(refusals.items())
        raise StartError(f"refused by node {peer}{' and all others' if others > 1 else ''}: {error.message}")


def _refusal(me: Identity, peer: NodeId, answer: Answer) -> FluxError | None:
    if isinstance(answer, FluxError):
        return answer
    if answer is not None and not answer.HasField("founding") and tuple(answer.seeds) != me.seed_list:
        return FluxError(
            Reason.INVALID_ARGUMENT,
            f"node {peer} has the seed list {','.join(answer.seeds)}, node {me.node_id} has {','.join(me.seed_list)}: "
            "they must be the same before a cluster is founded",
        )
    return None


def _check_place(me: Identity, addresses: Mapping[NodeId, str], founding: peer_pb2.Founding) -> None:
    founders = sorted(seed.node_id for seed in founding.seeds)
    if founders != sorted(addresses):
        raise StartError(
            f"cluster {founding.cluster_id} was founded by nodes {', '.join(map(str, founders))}; "
            f"the seeds of node {me.node_id} are {', '.join(me.seed_list)}"
        )


class Joining:
    """Carries out what is decided, until this node belongs to a cluster."""

    def __init__(
        self,
        me: Identity,
        directory: DataDirectory,
        secret: bytes,
        addresses: Mapping[NodeId, str],
        reactor: Reactor,
        network: Network = GRPC_NETWORK,
    ) -> None:
        self._me, self._directory, self._secret = me, directory, secret
        self._addresses, self._reactor, self._network = addresses, reactor, network
        self._last_reported = ""

    async def join(self) -> None:
        """Return when this node belongs to a cluster, durably.

        Raises:
            StartError: it cannot.
        """
        if self._directory.meta.cluster_id:
            self._me.founding = founding_of(self._directory.meta)
            self._check_own_place()
            return
        patience_ends = self._reactor.now() + limits.NODE_ID_PATIENCE
        while True:
            answers = await self._ask_all()
            match decide(self._me, self._addresses, answers, patient=self._reactor.now() < patience_ends):
                case Wait(why):
                    self._report(why)
                    await asyncio.sleep(RETRY)
                case Join(founding):
                    self._belong_to(founding)
                    log.info("cluster_joined", cluster_id=founding.cluster_id)
                    return
                case Found(seeds):
                    cluster_id = random_id(self._reactor.random).hex()
                    self._belong_to(peer_pb2.Founding(cluster_id=cluster_id, seeds=seeds))
                    log.info("cluster_founded", cluster_id=cluster_id, seeds=list(self._me.seed_list))
                    return

    def _check_own_place(self) -> None:
        founding = self._me.founding
        assert founding is not None
        _check_place(self._me, self._addresses, founding)

    def _belong_to(self, founding: peer_pb2.Founding) -> None:
        members = tuple(
            FoundingMember(NodeId(seed.node_id), seed.directory_id.hex(), seed.address) for seed in founding.seeds
        )
        self._directory.set_cluster(founding.cluster_id, members)
        self._me.founding = founding

    def _report(self, why: str) -> None:
        if why != self._last_reported:
            self._last_reported = why
            log.info("waited_for_cluster", why=why)

    async def _ask_all(self) -> dict[NodeId, Answer]:
        others = [node for node in self._addresses if node != self._me.node_id]
        answers = await asyncio.gather(*(self._ask(node) for node in others))
        return dict(zip(others, answers, strict=True))

    async def _ask(self, peer: NodeId) -> Answer:
        channel = self._network.open_channel(self._addresses[peer])
        try:
            return await say_hello(channel, self._me, self._secret, peer)
        except FluxError as error:
            return error
        except PeerUnreachable:
            return None
        finally:
            await channel.close()


def founding_of(meta: Meta) -> peer_pb2.Founding:
    """The founding that a data directory remembers."""
    return peer_pb2.Founding(
        cluster_id=meta.cluster_id,
        seeds=[
            peer_pb2.FoundingSeed(
                node_id=member.node_id, directory_id=bytes.fromhex(member.directory_id), address=member.address
            )
            for member in meta.founding
        ],
    )
