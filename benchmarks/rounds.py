"""Contenders that are measured in turn, round by round, and their medians. It knows nothing of what is measured."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine

ROUNDS, QUICK_ROUNDS = 5, 1


@dataclass(frozen=True)
class Contest:
    """What is compared.

    Attributes:
        measures: Names of the numbers that each contender gives in a round, with their units.
        ratio_of: The measure whose ratio to the contender `ratio_to` is shown beside.
        facts: Goes into the file.
    """

    measures: Sequence[str]
    ratio_of: str
    ratio_to: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def run(self, contenders: Mapping[str, Callable[[], dict[str, float]]], options: argparse.Namespace) -> None:
        """Measures the chosen contenders and shows and writes what was seen. In every round the order rotates."""
        about, names = machine.describe(), [name for name in contenders if name in options.only]
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                seen[name].append(contenders[name]())
                print(f"round {number}, {name}: {seen[name][-1]}", file=sys.stderr, flush=True)
        medians = {
            name: {m: statistics.median(r[m] for r in rounds) for m in self.measures} for name, rounds in seen.items()
        }
        if options.json:
            told = {"machine": about, **self.facts, "medians": medians, "rounds": seen}
            options.json.write_text(json.dumps(told, indent=1))
        self._show(medians)

    def _show(self, medians: Mapping[str, Mapping[str, float]]) -> None:
        base = medians.get(self.ratio_to)
        table = Table("", *self.measures, *([f"{self.ratio_of} vs {self.ratio_to}"] if base else []))
        for name, values in medians.items():
            cells = [f"{values[m]:.3g}" for m in self.measures]
            table.add_row(name, *cells, *([f"{values[self.ratio_of] / base[self.ratio_of]:.2f}x"] if base else []))
        Console(width=None if sys.stdout.isatty() else 120).print(table)


def parser(doc: str | None, contenders: Sequence[str]) -> argparse.ArgumentParser:
    """What every such benchmark can be told."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--rounds", type=int, help=f"rounds ({ROUNDS}; with --quick {QUICK_ROUNDS})")
    made.add_argument("--quick", action="store_true", help="fewer rounds and repetitions")
    made.add_argument("--json", type=Path, help="write every round and the medians to this file")
    made.add_argument(
        "--only", type=lambda text: text.split(","), default=list(contenders), help="default: %(default)s"
    )
    return made


def parsed(made: argparse.ArgumentParser, contenders: Sequence[str]) -> argparse.Namespace:
    """The options, with the number of rounds filled in. Ends the program when there is no such contender."""
    options = made.parse_args()
    unknown = set(options.only) - set(contenders)
    if unknown:
        made.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(contenders)}")
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options
