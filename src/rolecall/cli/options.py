"""Options that several commands have, with one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunOption = Annotated[
    str | None,
    typer.Option("--run", "-r", help="Run directory, experiment/trial, experiment (its newest trial) or run id."),
]
FilerootOption = Annotated[Path | None, typer.Option("--fileroot", help="Where runs are kept [~/.rolecall].")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
