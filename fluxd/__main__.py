"""`fluxd serve`: read the settings, start a node, stop it on a signal. `fluxd health`: does it serve?

Exit codes: 0 stopped as asked, 1 could not start or had to give up, 2 the settings are not usable.
"""

from __future__ import annotations

import asyncio
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fluxd import config, health, observability, tuning
from fluxd.broker.founding import StartError
from fluxd.node import Node
from fluxd.reactor import AsyncReactor

EXIT_FAILED = 1
EXIT_CONFIG = 2

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="A node of a fluxd cluster."
)
log = observability.get_logger()


@app.callback()
def _group() -> None:
    """Keeps `serve` a command of its own."""


@app.command("version")
def show_version() -> None:
    """Print the version."""
    typer.echo(version("fluxd"))


@app.command("health")
def show_health(
    address: Annotated[str, typer.Argument(help="host:port. [default: $FLUXD_LISTEN, or 127.0.0.1:9640]")] = "",
) -> None:
    """Ask a node whether it serves; exit code 0 when it does, 1 otherwise."""
    raise typer.Exit(health.run(address))


@app.command()
def serve(
    node_id: Annotated[int | None, typer.Option(help="This node's number, 1..65535, the same for ever.")] = None,
    listen: Annotated[
        str | None, typer.Option(help=f"host:port of the one port. [default: {config.DEFAULT_LISTEN}]")
    ] = None,
    advertise: Annotated[str | None, typer.Option(help="host:port for others. [default: own entry in --seeds]")] = None,
    seeds: Annotated[str | None, typer.Option(help='"1@host:port,2@host:port,…", the same on every node.')] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Belongs to this node alone. [default: fluxd-data]")] = None,
    cluster_secret_file: Annotated[Path | None, typer.Option(help="Same content on every node.")] = None,
    allow_remote_stop: Annotated[
        bool | None, typer.Option("--allow-remote-stop/--no-allow-remote-stop", help="Leave for StopNode and KillNode.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console. [default: auto]")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML file with the same keys.")] = None,
) -> None:
    """Run a node until SIGTERM. Flags win over FLUXD_… variables, which win over the file."""
    flags: dict[str, object] = {
        "node_id": node_id,
        "listen": listen,
        "advertise": advertise,
        "seeds": seeds,
        "data_dir": data_dir,
        "cluster_secret_file": cluster_secret_file,
        "allow_remote_stop": allow_remote_stop,
        "log_level": log_level,
        "log_format": log_format,
        "config": config_file,
    }
    try:
        settings = config.load(flags)
    except config.ConfigError as error:
        _exit(str(error), EXIT_CONFIG)
    observability.configure(settings.log_level, settings.log_format, node_id=settings.node_id)
    tuning.raise_file_limit()
    tuning.tune_allocator()
    try:
        with asyncio.Runner(loop_factory=tuning.loop_factory()) as runner:
            runner.run(_run(settings))
    except StartError as error:
        log.error("node_gave_up", why=str(error))  # noqa: TRY400 - the reason is the operator's, not a traceback's
        _exit(str(error), EXIT_FAILED)
    except Exception:  # the edge: say so in the log's own form before the process ends
        log.exception("node_failed")
        _exit("stopped by a defect; the log has the details", EXIT_FAILED)
    log.info("node_stopped")


async def _run(settings: config.Settings) -> None:
    loop = asyncio.get_running_loop()
    reactor = AsyncReactor(loop)
    try:
        node = Node(settings, reactor)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, node.stop)
        tuning.freeze_what_is_loaded()
        await node.run()
    finally:
        reactor.close()


def _exit(message: str, code: int) -> NoReturn:
    """One clear line."""
    observability.Lines.on_stderr().write(f"fluxd: {message}\n")  # before and beside the log, for whoever started it
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the command `fluxd`."""
    app()


if __name__ == "__main__":
    main()
