"""Runs `fluxctl` in this process, against a fake cluster."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from fluxctl.__main__ import app, hoist
from tests.unit.fluxlog_fake import FakeCluster


def run(cluster: FakeCluster | None, *arguments: object) -> Result:
    """With all addresses of the cluster; None: without any."""
    bootstrap = ["--bootstrap", ",".join(cluster.addresses.values())] if cluster is not None else []
    return CliRunner().invoke(app, hoist([*map(str, arguments), *bootstrap]))
