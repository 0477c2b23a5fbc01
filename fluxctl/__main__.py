"""Entry point of fluxctl: the commands, the options before them, and how errors end."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version as package_version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fluxctl import bench, cluster, demo, groups, log, nodes, topics
from fluxctl.consume import consume
from fluxctl.exits import EXIT_CODES_HELP, CommandError, ExitCode, describe_failure, describe_os_error
from fluxctl.output import discard, drop_unwritable
from fluxctl.produce import produce
from fluxctl.session import Session
from fluxlog.errors import FluxlogError

# These may stand anywhere before a "--", not only before the command.
_FLAGS_ANYWHERE = frozenset({"--verbose"})
_OPTIONS_ANYWHERE = frozenset({"--bootstrap"})


class _Root(TyperGroup):
    """Where every command's errors end: one clear line, and the documented exit code."""

    def invoke(self, ctx: Any) -> Any:  # click's Context: typer's own copy of it in newer versions
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:  # whoever read our output has enough
            discard(sys.stdout)
            raise typer.Exit(ExitCode.OK) from None
        except OSError as failure:
            drop_unwritable()
            self._fail(ctx, describe_os_error(failure), {})
            raise typer.Exit(ExitCode.ERROR) from failure
        except FluxlogError as failure:
            self._fail(ctx, describe_failure(failure), failure.metadata)
            raise typer.Exit(ExitCode.ERROR) from failure
        except CommandError as failure:
            self._fail(ctx, failure.message + (f" — {failure.advice}" if failure.advice else ""), {})
            raise typer.Exit(failure.code) from failure

    def _fail(self, ctx: Any, text: str, metadata: dict[str, str]) -> None:
        session = ctx.obj if isinstance(ctx.obj, Session) else Session()
        session.err.print(f"error: {text}", style="red", soft_wrap=True)
        if session.verbose:
            for key, value in sorted(metadata.items()):
                session.err.print(f"  {key}: {value}", soft_wrap=True)
            session.err.print(traceback.format_exc(), soft_wrap=True)


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(topics.app, name="topics")
app.add_typer(groups.app, name="groups")
app.add_typer(cluster.app, name="cluster")
app.add_typer(nodes.app, name="nodes")
app.add_typer(log.app, name="log")
app.add_typer(demo.app, name="demo")
app.add_typer(bench.app, name="bench")
app.command()(produce)
app.command()(consume)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fluxctl {package_version('fluxd')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    bootstrap: Annotated[
        str,
        typer.Option(
            envvar="FLUXCTL_BOOTSTRAP",
            metavar="HOST:PORT,…",
            help="Nodes to ask. Default: the local cluster that is up in ./fluxd-data, else 127.0.0.1:9101.",
        ),
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="Retries, and the whole story of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Work with a fluxd cluster: topics, records, nodes.

    Try: fluxctl cluster up; fluxctl topics create t -p 3; fluxctl produce t FILE; fluxctl consume t --from-beginning

    --bootstrap and --verbose may stand anywhere. Results go to stdout, everything else to stderr; --output json or
    yaml for programs.
    """
    context.obj = Session(bootstrap=bootstrap, verbose=verbose)


def hoist(arguments: Sequence[str]) -> list[str]:
    """Move the options that hold for every command to the front, so that they may stand anywhere."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            rest += [argument, *waiting]
            break
        if argument in _FLAGS_ANYWHERE or (argument.partition("=")[0] in _OPTIONS_ANYWHERE and "=" in argument):
            front.append(argument)
        elif argument in _OPTIONS_ANYWHERE and waiting:
            front += [argument, waiting.pop(0)]
        else:
            rest.append(argument)
    return front + rest


def main() -> None:
    """Run fluxctl with the process's arguments; ends the process."""
    app(args=hoist(sys.argv[1:]), prog_name="fluxctl")


if __name__ == "__main__":
    main()
