"""`rolecall demo`: trains a small model with GRPO on the chosen backend."""

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

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _option(text: str) -> tuple[str, Any]:
    """Parses `NAME=VALUE`; the value is JSON if it is valid JSON, else a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--option")
    with contextlib.suppress(ValueError):
        return name, loads(value)
    return name, value


def demo(
    seed: Annotated[int, typer.Option(help="Seed of initial weights, prompts and sampling.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of training steps.")] = DemoOptions.steps,
    seconds: Annotated[float, typer.Option(help="No training step begins later than this.")] = DemoOptions.seconds,
    scheduler: Annotated[str, typer.Option(help="Where to run: local, slurm or ray.")] = DemoOptions.scheduler,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the scheduler: -o partition=gpu."),
    ] = None,
    fileroot: Annotated[
        Path | None, typer.Option(help="Where run directories are made; ~/.rolecall by default.")
    ] = None,
    experiment: Annotated[str, typer.Option(help="First part of the run's name.")] = DemoOptions.experiment,
    trial: Annotated[str | None, typer.Option(help="Second part of the run's name; by default the time.")] = None,
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
        console.print("interrupted; all processes of the run have ended")
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print(dumps(asdict(summary)))
