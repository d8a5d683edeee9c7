"""What commands print: tables and JSON on stdout, remarks on stderr. It decides nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 1000  # rich cuts cells to 80 columns when there is no terminal; a pipe has no width


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints one JSON document; `indent=None` makes it one line."""
    print(json.dumps(value, indent=indent), flush=True)


def remark(text: str) -> None:
    """Says something beside the result."""
    print(f"rolecall: {text}", file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] | None = None) -> Table:
    """A plain table. Cells are shown as they are: no markup in them is obeyed.

    Args:
        styles: One for each row, for instance `red`; empty for none.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        made.add_column(name, overflow="fold", no_wrap=i == 0)  # a name that is cut in two cannot be read or copied
    for i, row in enumerate(rows):
        made.add_row(*(Text(cell) for cell in row), style=styles[i] if styles else None)
    return made
