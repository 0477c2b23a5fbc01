"""What every command shares: which cluster, how much to tell."""

from __future__ import annotations

from dataclasses import dataclass, field

import typer
from rich.console import Console

from fluxctl.exits import describe_failure
from fluxctl.local import LocalCluster, default_data_dir
from fluxctl.output import stderr_console, stdout_console
from fluxlog.client import Client, parse_bootstrap
from fluxlog.errors import FluxlogError

BOOTSTRAP_DEFAULT = "127.0.0.1:9101"


@dataclass(slots=True)
class Session:
    """Options that stand before the command."""

    bootstrap: str = ""
    verbose: bool = False
    out: Console = field(default_factory=stdout_console)
    err: Console = field(default_factory=stderr_console)

    def addresses(self) -> list[str]:
        """--bootstrap or its variable; else the local cluster that is up; else the default."""
        if self.bootstrap:
            return parse_bootstrap(self.bootstrap)
        local = self.local_cluster()
        if local is not None and local.running:
            return [node.address for node in local.running]
        return [BOOTSTRAP_DEFAULT]

    def local_cluster(self) -> LocalCluster | None:
        """The local cluster of the default directory, up or not."""
        return LocalCluster.load(default_data_dir())

    def client(self) -> Client:
        """The way to the cluster. To be closed."""
        return Client(self.addresses(), on_retry=self.note_retry)

    def note_retry(self, failure: FluxlogError) -> None:
        """With --verbose every attempt that failed is told."""
        if self.verbose:
            self.err.print(f"retry: {describe_failure(failure)}", style="dim")

    def warn(self, text: str) -> None:
        """One line to stderr."""
        self.err.print(f"warning: {text}", style="yellow")


def session_of(context: typer.Context) -> Session:
    """The session that the root command made."""
    session = context.obj
    assert isinstance(session, Session)
    return session
