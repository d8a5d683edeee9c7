"""The command line's front: one app, its commands, and how errors end it. Commands load what they need and no more."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rolecall import __version__
from rolecall.cli.demo import demo
from rolecall.cli.doctor import doctor
from rolecall.cli.logs import logs
from rolecall.cli.ps import ps
from rolecall.cli.stack import stack
from rolecall.cli.stop import stop
from rolecall.cli.terminal import remark
from rolecall.cli.top import top
from rolecall.errors import RolecallError

ERROR = 2  # as for a wrong option
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


class Commands(TyperGroup):
    """Ends expected faults in one line on stderr, and Ctrl-C in silence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RolecallError as e:
            remark(str(e))
            raise typer.Exit(ERROR) from e
        except KeyboardInterrupt as e:
            raise typer.Exit(INTERRUPTED) from e
        except BrokenPipeError as e:  # the reader (`| head`) has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from e


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Shows the runtime at work, looks at runs, ends them, and says what is wrong with this machine.",
)


def print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def front(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    return None


for command in (demo, ps, logs, top, stack, stop, doctor):
    app.command()(command)
