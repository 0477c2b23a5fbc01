"""How a replica is shown to people."""

from __future__ import annotations

import pytest

from fluxctl.describe import _replica_text
from fluxlog.v1 import admin_pb2


@pytest.mark.parametrize(
    ("state", "lag", "in_sync", "shown"),
    [
        (admin_pb2.REPLICA_STATE_FOLLOWER, 0, True, "2: in sync, heard 12 ms ago"),
        (admin_pb2.REPLICA_STATE_UNREACHABLE, 40, False, "2: 40 entries behind, heard 12 ms ago, unreachable"),
        (admin_pb2.REPLICA_STATE_UNADMITTED, 0, False, "2: unadmitted"),
        (admin_pb2.REPLICA_STATE_FAILED, 3, False, "2: failed"),
    ],
)
def test_a_replica_that_takes_no_part_is_not_called_close(state: int, lag: int, in_sync: bool, shown: str) -> None:
    replica = admin_pb2.ReplicaDescription(
        node_id=2,
        state=admin_pb2.ReplicaState.ValueType(state),
        lag_entries=lag,
        in_sync=in_sync,
        last_heard_ms=12,
    )
    assert _replica_text(replica) == shown
