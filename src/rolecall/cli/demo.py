"""`rolecall demo`: trains a small model on this machine and shows the runtime at work."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from json import dumps, loads
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rolecall.demo.loop import run_demo
from rolecall.demo.options import DemoOptions, Recipe

INTERRUPTED = 130  # what a shell makes of SIGINT


def _option(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as JSON where it is some."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--option")
    with contextlib.suppress(ValueError):
        return name, loads(value)
    return name, value


def demo(
    seed: Annotated[int, typer.Option(help="First weights, prompts and sampling.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, at most.")] = DemoOptions.steps,
    seconds: Annotated[float, typer.Option(help="No step begins later than this.")] = DemoOptions.seconds,
    scheduler: Annotated[str, typer.Option(help="Where to run: local, slurm or ray.")] = DemoOptions.scheduler,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the scheduler: -o partition=gpu."),
    ] = None,
    fileroot: Annotated[
        Path | None, typer.Option(help="Where run directories are made; ~/.rolecall by default.")
    ] = None,
    experiment: Annotated[str, typer.Option(help="First part of the run directory.")] = DemoOptions.experiment,
    trial: Annotated[str | None, typer.Option(help="Second part; the time by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON; progress goes to stderr.")] = False,
) -> None:
    """Trains GRPO on "sort five digits" from random weights, on two actors and two rollout workers."""
    options = DemoOptions(
        Recipe(seed=seed),
        steps=steps,
        seconds=seconds,
        scheduler=scheduler,
        fileroot=fileroot,
        experiment=experiment,
        trial=trial,
        scheduler_options=dict(_option(text) for text in option or ()),
    )
    console = Console(stderr=json)
    try:
        summary = run_demo(options, console)
    except KeyboardInterrupt:
        console.print("interrupted; everything started has ended")
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print(dumps(asdict(summary)))
