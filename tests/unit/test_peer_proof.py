"""Who may come in: the proof of the secret, and the judgement of the caller."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId
from fluxd.peer.identity import Identity
from fluxd.peer.proof import Caller, Metadata, new_nonce, prove, prove_answer, verify, verify_answer
from fluxd.peer.reception import Reception
from fluxlog.v1 import peer_pb2

SECRET = b"a secret of some length"
DIRECTORY_1, DIRECTORY_2 = bytes([1]) * 16, bytes([2]) * 16


def caller(node: int = 2, to: int = 1, directory_id: bytes = DIRECTORY_2, cluster_id: str = "c") -> Caller:
    return Caller(NodeId(node), NodeId(to), directory_id, cluster_id, new_nonce())


def identity(cluster_id: str = "c") -> Identity:
    founding = peer_pb2.Founding(cluster_id=cluster_id) if cluster_id else None
    return Identity(NodeId(1), DIRECTORY_1, ("1@a:1", "2@b:2"), "a:1", 1, "0", False, founding)


def reception(cluster_id: str = "c", *, live: dict[int, bytes] | None = None) -> Reception:
    return Reception(identity(cluster_id), SECRET, lambda node: (live or {}).get(node))


def refusal(door: Reception, metadata: Metadata, *, member: bool = True) -> Reason:
    with pytest.raises(FluxError) as caught:
        (door.admit_member if member else door.admit)(metadata, "ipv4:1.2.3.4:5")
    return caught.value.reason


def test_proof_round_trip() -> None:
    """What one node proves, another that knows the secret reads."""
    known = caller()
    assert verify(SECRET, prove(SECRET, known)) == known


@pytest.mark.parametrize("position", range(6))
def test_every_value_is_covered(position: int) -> None:
    """Whatever is changed, the proof no longer holds."""
    metadata = list(prove(SECRET, caller()))
    key, value = metadata[position]
    metadata[position] = (key, "0" + value[1:] if value[:1] != "0" else "1" + value[1:])
    with pytest.raises(FluxError) as caught:
        verify(SECRET, metadata)
    assert caught.value.reason is Reason.UNAUTHENTICATED


@given(st.lists(st.tuples(st.sampled_from(["fluxd-from", "fluxd-to", "fluxd-proof", "x"]), st.text() | st.binary())))
def test_any_metadata_is_a_proof_or_unauthenticated(metadata: list[tuple[str, str | bytes]]) -> None:
    """No metadata raises anything else."""
    with pytest.raises(FluxError) as caught:
        verify(SECRET, metadata)
    assert caught.value.reason is Reason.UNAUTHENTICATED


def test_answer_belongs_to_the_call() -> None:
    """The callee's half holds for this nonce and this node only."""
    proof = prove_answer(SECRET, "n", NodeId(1))
    assert verify_answer(SECRET, proof, "n", NodeId(1))
    assert not verify_answer(SECRET, proof, "m", NodeId(1))
    assert not verify_answer(SECRET, proof, "n", NodeId(2))
    assert not verify_answer(b"other", proof, "n", NodeId(1))
    assert not verify_answer(SECRET, "é", "n", NodeId(1))


def test_members_are_admitted() -> None:
    """Same cluster, right address, a number that nobody else has."""
    known = caller()
    assert reception().admit_member(prove(SECRET, known), "p") == known
    assert reception(live={2: DIRECTORY_2}).admit_member(prove(SECRET, known), "p") == known


def test_refusals() -> None:
    """Each kind of stranger gets its own reason."""
    assert refusal(reception(), ()) is Reason.UNAUTHENTICATED
    assert refusal(reception(), prove(b"another", caller())) is Reason.UNAUTHENTICATED
    assert refusal(reception(), prove(SECRET, caller(directory_id=b"short"))) is Reason.UNAUTHENTICATED
    assert refusal(reception(), prove(SECRET, caller(to=3))) is Reason.INVALID_ARGUMENT
    assert refusal(reception(), prove(SECRET, caller(cluster_id="d"))) is Reason.WRONG_CLUSTER
    assert refusal(reception(), prove(SECRET, caller(node=1))) is Reason.NODE_ID_IN_USE
    assert refusal(reception(live={2: DIRECTORY_1}), prove(SECRET, caller())) is Reason.NODE_ID_IN_USE


def test_before_founding_only_hello() -> None:
    """A node without a cluster may be asked who it is, and nothing else."""
    empty = replace(caller(), cluster_id="")
    assert reception("").admit(prove(SECRET, empty), "p") == empty
    assert refusal(reception(""), prove(SECRET, empty)) is Reason.NOT_READY
    assert refusal(reception(), prove(SECRET, empty)) is Reason.NOT_READY
