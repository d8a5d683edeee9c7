"""The terminal: options that commands share, tables and JSON on stdout, remarks on stderr, numbers with units."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.table import Table
from rich.text import Text

from rolecall.errors import printable

RunOption = Annotated[
    str | None,
    typer.Option("--run", "-r", help="Run directory, experiment/trial, experiment (its newest trial) or run id."),
]
FilerootOption = Annotated[Path | None, typer.Option("--fileroot", help="Where runs are kept [~/.rolecall].")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PIPE_WIDTH = 1000  # without a terminal, rich would cut cells to fit 80 columns


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints one JSON document; `indent=None` makes it one line."""
    print(json.dumps(value, indent=indent), flush=True)


def remark(text: str) -> None:
    """Prints a message to stderr, which keeps stdout for the result."""
    print(f"rolecall: {printable(text)}", file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] | None = None) -> Table:
    """A plain table. Cells are shown verbatim: rich's markup in them is not interpreted.

    Args:
        styles: One per row, for instance `red`; empty for none.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        made.add_column(name, overflow="fold", no_wrap=i == 0)  # a name that is wrapped cannot be copied
    for i, row in enumerate(rows):
        made.add_row(*(Text(printable(cell)) for cell in row), style=styles[i] if styles else None)
    return made


def format_bytes(count: float) -> str:
    """Bytes in binary units: `1.5 GiB`."""
    size, name = pick_unit_and_suffix(int(count), ["B", "KiB", "MiB", "GiB", "TiB"], 1024)
    return f"{count / size:.{int(size > 1)}f} {name}"


def format_duration(seconds: float) -> str:
    """The two largest units: `45 s`, `3 m 20 s`, `2 d 4 h`."""
    whole = max(0, int(seconds))
    for unit, length, below, short in (("d", 86400, 3600, "h"), ("h", 3600, 60, "m"), ("m", 60, 1, "s")):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // below} {short}"
    return f"{whole} s"


UNITS: dict[str, tuple[str, Callable[[Any], str]]] = {  # by a name's ending: what a title says of it, and the format
    "_per_s": ("/s", "{:.1f}".format),
    "_percent": (" %", "{:.0f}".format),
    "_bytes": ("", format_bytes),
    "_s": ("", format_duration),
}


def cell(name: str, value: Any) -> str:
    """A value in the unit that its name ends with; `-` when unknown."""
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return next((shown(value) for ending, (_, shown) in UNITS.items() if name.endswith(ending)), str(value))


def title(name: str) -> str:
    """`RSS` for `rss_bytes`."""
    ending = next(filter(name.endswith, UNITS), "")
    return (name.removesuffix(ending) + UNITS.get(ending, ("",))[0]).upper()


def table_of(columns: str, rows: Iterable[Any], styles: Sequence[str] | None = None) -> Table:
    """A table of one row for each object, of its attributes that `columns` names, between spaces."""
    names = columns.split()
    return table([*map(title, names)], ([cell(name, getattr(row, name)) for name in names] for row in rows), styles)
