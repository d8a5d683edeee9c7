"""The entry point of the command line: the commands, and the exit status after an error."""

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
from rolecall.cli.looking import ps, top
from rolecall.cli.stack import stack
from rolecall.cli.stop import stop
from rolecall.cli.terminal import remark
from rolecall.errors import RolecallError

ERROR = 2  # the same as for a wrong option
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


class Commands(TyperGroup):
    """Prints a RolecallError as one line on stderr instead of a traceback; ends silently on Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RolecallError as e:
            remark(str(e))
            raise typer.Exit(ERROR) from e
        except PermissionError as e:  # another user's run, mostly
            remark(f"{e.filename}: {e.strerror}; ask as the user of the run, or pass another --fileroot")
            raise typer.Exit(ERROR) from e
        except KeyboardInterrupt as e:
            raise typer.Exit(INTERRUPTED) from e
        except BrokenPipeError as e:  # the reader (`| head`) has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from e


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Inspects and ends runs, checks this machine, and runs the demo.",
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
