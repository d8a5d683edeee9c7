"""Medians, ratios and targets of a run, as a table for the terminal and as one for the docs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measures import MEASURES, MONARCH, OURS, RAY, Measure

HEADINGS = ("measure", "unit", "rolecall", "Ray", "Monarch", "vs Ray", "vs Monarch", "target", "met")


@dataclass(frozen=True)
class Row:
    """One measure's medians by peer, and what follows from them."""

    measure: Measure
    medians: dict[str, float]

    def times(self, peer: str) -> float | None:
        if OURS not in self.medians or peer not in self.medians:
            return None
        return self.measure.times(self.medians[OURS], self.medians[peer])

    @property
    def met(self) -> bool | None:
        if self.measure.target is None or OURS not in self.medians:
            return None
        return self.measure.target.met(self.medians[OURS], self.times(RAY))

    def cells(self) -> list[str]:
        medians = [number(self.medians.get(peer)) for peer in (OURS, RAY, MONARCH)]
        ratios = [f"{times:.1f}x" if (times := self.times(peer)) else "" for peer in (RAY, MONARCH)]
        verdict = {True: "yes", False: "no", None: ""}[self.met]
        return [self.measure.title, self.measure.unit, *medians, *ratios, str(self.measure.target or ""), verdict]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.measure.name,
            "unit": self.measure.unit,
            "medians": self.medians,
            "times_ray": self.times(RAY),
            "times_monarch": self.times(MONARCH),
            "target": str(self.measure.target) if self.measure.target else None,
            "met": self.met,
        }


def rows(visits: list[dict[str, Any]]) -> list[Row]:
    """One row for each measure that any peer has a value of."""
    found = (Row(measure, medians(measure, visits)) for measure in MEASURES)
    return [row for row in found if row.medians]


def medians(measure: Measure, visits: list[dict[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for visit in visits:
        if measure.name in visit["measures"]:
            values.setdefault(visit["peer"], []).append(visit["measures"][measure.name]["value"])
    return {peer: statistics.median(seen) for peer, seen in values.items()}


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(table_rows: list[Row], console: Console) -> None:
    table = Table(title="medians over the rounds; a ratio above 1 means that we are better")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("measure", "unit", "target") else "right")
    for row in table_rows:
        table.add_row(*row.cells(), style={True: "green", False: "red", None: None}[row.met])
    console.print(table)


def markdown(table_rows: list[Row]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "--:|" * 5 + "---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row.cells()) + " |" for row in table_rows)]) + "\n"
