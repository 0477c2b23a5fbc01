"""The proof in the metadata of every node-to-node call that caller and callee know the cluster's secret.

    fluxd-from        the caller's node id
    fluxd-to          the node id that the caller means to reach
    fluxd-directory   the caller's directory id, hex
    fluxd-cluster     the caller's cluster id, empty before founding
    fluxd-nonce       16 random bytes of the caller, hex
    fluxd-proof       HMAC-SHA256(secret, "fluxd call v1" and the five above, each ended by a zero byte), hex

The callee answers Hello with `fluxd-proof` over "fluxd answer v1", the nonce and its own id, so that the caller
knows that it is a member, too.

What it is good for: strangers, wrong clusters and misdirected connections are kept out. What it is not: it does
not cover a call's content, and who can read the wire can replay it. Until the links are encrypted (mTLS) they
belong on a private network.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fluxd.core.errors import FluxError, Reason
from fluxd.core.types import NodeId

PROOF_KEY = "fluxd-proof"
_KEYS = ("fluxd-from", "fluxd-to", "fluxd-directory", "fluxd-cluster", "fluxd-nonce")

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as proven."""

    node_id: NodeId
    to: NodeId
    directory_id: bytes
    cluster_id: str
    nonce: str


def _sign(secret: bytes, purpose: str, values: Iterable[str]) -> str:
    text = "".join(f"{value}\0" for value in (purpose, *values))
    return hmac.new(secret, text.encode(), "sha256").hexdigest()


def new_nonce(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """16 random bytes, hex."""
    return random_bytes(16).hex()


def prove(secret: bytes, caller: Caller) -> Metadata:
    """Metadata for one call."""
    values = (str(caller.node_id), str(caller.to), caller.directory_id.hex(), caller.cluster_id, caller.nonce)
    return (*zip(_KEYS, values, strict=True), (PROOF_KEY, _sign(secret, "fluxd call v1", values)))


def verify(secret: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
    """Read and check the metadata of a call.

    Raises:
        FluxError: UNAUTHENTICATED: the proof is missing, malformed or made with another secret.
    """
    given = {key: value for key, value in metadata if isinstance(value, str)}
    values = [given.get(key) for key in _KEYS]
    proof = given.get(PROOF_KEY, "")
    if not all(isinstance(value, str) for value in values) or not proof:
        raise FluxError(Reason.UNAUTHENTICATED, "a node-to-node call without the cluster's proof")
    texts = [str(value) for value in values]
    if not hmac.compare_digest(proof.encode(), _sign(secret, "fluxd call v1", texts).encode()):
        raise FluxError(
            Reason.UNAUTHENTICATED,
            f"the proof of {texts[0][:20]!r} was made with another cluster secret than this node's",
        )
    try:
        node_id, to, directory_id = int(texts[0]), int(texts[1]), bytes.fromhex(texts[2])
    except ValueError:
        raise FluxError(Reason.UNAUTHENTICATED, "the cluster's proof is malformed") from None
    return Caller(NodeId(node_id), NodeId(to), directory_id, texts[3], texts[4])


def prove_answer(secret: bytes, nonce: str, node_id: NodeId) -> str:
    """The callee's half: knows the secret, and answers this very call."""
    return _sign(secret, "fluxd answer v1", (nonce, str(node_id)))


def verify_answer(secret: bytes, proof: str, nonce: str, node_id: NodeId) -> bool:
    """The answer to the call with that nonce comes from that node."""
    return hmac.compare_digest(proof.encode(), prove_answer(secret, nonce, node_id).encode())
