"""All commands under one name, and the one place where a command's end becomes an exit code.

inspectbus NOUN ... ─> cli/<noun>.py ─> printed on standard output
                         └── an InspectBusError: one line on standard error, exit code 2
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inspectbus.cli import (
    advise,
    bus,
    compare,
    data,
    dead,
    decisions,
    doctor,
    environment,
    inspect,
    models,
    recipes,
    run,
    scores,
    serve,
    stations,
    tokens,
    train,
)
from inspectbus.cli.printing import plain

FAILED = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
"""As shells count a process ended by SIGPIPE."""


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class Commands(TyperGroup):
    """A group whose commands may raise the product's errors."""

    def invoke(self, ctx: Any) -> Any:
        try:
            answer = super().invoke(ctx)
            # Here, where a reader that has gone is still ours to handle, and not at the interpreter's end.
            sys.stdout.flush()
        except _product_errors() as error:
            typer.echo(f"error: {plain(str(error))}", err=True)
            raise typer.Exit(FAILED) from None
        except BrokenPipeError:
            # Whatever is still buffered goes nowhere, quietly.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except OSError as error:
            # A taken port, a full disk, a folder nobody may write: the operator's to mend, not a fault of ours.
            typer.echo(f"error: {plain(str(error))}", err=True)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        return answer


def _product_errors() -> type[Exception]:
    """Imported only once something was raised: gRPC, which the errors know, is not needed to say --help."""
    from inspectbus.errors import InspectBusError

    return InspectBusError


def _show_version(asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"inspectbus {version('inspectbus')}")
    except PackageNotFoundError:  # run from its sources
        typer.echo("inspectbus unreleased")
    raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Try [bold]inspectbus inspect --help[/bold]: every command shows examples.")
def begin(
    context: typer.Context,
    log_level: Annotated[
        LogLevel | None, typer.Option(envvar="INSPECTBUS_LOG_LEVEL", help="Least severe log line to show.")
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="INSPECTBUS_LOG_FORMAT", help="Log lines for people or for machines.")
    ] = LogFormat.TEXT,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Visual inspection of manufactured parts."""
    from inspectbus.runtime import logs

    environment.check(os.environ)
    # Only a service tells of its everyday: elsewhere the lines would stand between results and progress bars.
    usual = LogLevel.INFO if context.invoked_subcommand == "serve" else LogLevel.WARNING
    logs.configure(log_level or usual, "json" if log_format is LogFormat.JSON else "text")


app.command("run", epilog=run.EXAMPLES)(run.run)
app.command("serve", epilog=serve.EXAMPLES)(serve.serve)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("train", epilog=train.TRAIN_EXAMPLES)(train.train)
app.command("evaluate", epilog=train.EVALUATE_EXAMPLES)(train.evaluate)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("advise", epilog=advise.EXAMPLES)(advise.advise)
app.command("scores", epilog=scores.EXAMPLES)(scores.scores)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.add_typer(data.app, name="data", epilog=data.EXAMPLES)
app.add_typer(models.app, name="models", epilog=models.EXAMPLES)
app.add_typer(recipes.app, name="recipes", epilog=recipes.EXAMPLES)
app.add_typer(stations.app, name="stations", epilog=stations.EXAMPLES)
app.add_typer(decisions.app, name="decisions", epilog=decisions.EXAMPLES)
app.add_typer(bus.app, name="bus", epilog=bus.EXAMPLES)
app.add_typer(tokens.app, name="tokens", epilog=tokens.EXAMPLES)
app.add_typer(dead.app, name="dead", epilog=dead.EXAMPLES)
