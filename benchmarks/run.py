"""Measures this runtime, Ray and Monarch in one run, round by round in turn, and prints medians and ratios.

In every round each runtime is brought up, measured and taken down again while no other one runs; the order rotates.
Numbers drift with the machine, so what counts are the ratios. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parent.parent)

from rich.console import Console

from benchmarks import machine, report
from benchmarks.conversation import Conversation, PeerFailed
from benchmarks.environments import ROOT, python_of
from benchmarks.family import adopt_orphans
from benchmarks.measures import MEASURES, MONARCH, OURS, RAY, Measure

PEERS = (OURS, RAY, MONARCH)
console = Console(width=None if sys.stdout.isatty() else 150)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    adopt_orphans()
    pythons = {peer: python_of(peer) for peer in options.peers}
    visits: list[dict[str, Any]] = []
    about = machine.describe()
    for number in range(options.rounds):
        for peer in rotated(options.peers, number):
            visits.append(visit(peer, pythons[peer], number, options))
            report_visit(visits[-1])
            save(options.json, about, visits)
    report.show(report.rows(visits), console)
    if options.markdown:
        options.markdown.write_text(report.markdown(report.rows(visits)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write every round and the medians to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--rounds", type=int, default=None, help="rounds (5; with --quick 2)")
    parser.add_argument("--only", action="append", metavar="NAME", help="measure whose name contains NAME; repeatable")
    parser.add_argument("--peers", default=",".join(PEERS), help="of ours,ray,monarch, separated by commas")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no heavy measures")
    options = parser.parse_args(argv)
    options.peers = [peer for peer in PEERS if peer in options.peers.split(",")]
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


def rotated(peers: list[str], by: int) -> list[str]:
    by %= len(peers)
    return peers[by:] + peers[:by]


def visit(peer: str, python: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """One peer in one round: up, measured, down, nothing left."""
    seen: dict[str, Any] = {"round": number, "peer": peer, "load": os.getloadavg()[0], "measures": {}, "errors": {}}
    log = ROOT / "build" / "bench" / f"{peer}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with Conversation(peer, python, log) as talk:
        try:
            opened = talk.ask(do="open")
            seen["versions"] = opened.pop("versions")
            seen["measures"] = {name: {"value": value} for name, value in opened.items()}
            for measure in wanted(peer, number, options):
                measure_one(talk, measure, options.quick, seen)
            talk.ask(do="close")
        except PeerFailed as error:
            seen["errors"]["run"] = str(error)
    seen["left_behind"] = talk.leftovers.as_json() if talk.leftovers else None
    return seen


def wanted(peer: str, number: int, options: argparse.Namespace) -> list[Measure]:
    def is_wanted(measure: Measure) -> bool:
        if measure.from_open or peer not in measure.peers:
            return False
        if options.only:
            return any(name in measure.name for name in options.only) and (number == 0 or not measure.once)
        return not measure.once or (number == 0 and not options.quick)

    return [measure for measure in MEASURES if is_wanted(measure)]


def measure_one(talk: Conversation, measure: Measure, quick: bool, seen: dict[str, Any]) -> None:
    """One measure's failure is noted and the others go on, as long as the peer lives."""
    try:
        result = talk.ask(do="measure", name=measure.name, quick=quick)
    except PeerFailed as error:
        if talk.process.poll() is not None:
            raise
        seen["errors"][measure.name] = str(error)
        return
    if "value" in result:
        seen["measures"][measure.name] = result


def report_visit(seen: dict[str, Any]) -> None:
    left = seen["left_behind"] or {}
    text = f"round {seen['round']} {seen['peer']}: {len(seen['measures'])} measures"
    text += f", left behind and killed: {', '.join(left['killed'])}" if left.get("killed") else ", nothing left behind"
    console.print(text, highlight=False)
    for name, reason in seen["errors"].items():
        console.print(f"  {name}: {reason}", style="red", highlight=False, markup=False)


def save(path: Path | None, about: dict[str, Any], visits: list[dict[str, Any]]) -> None:
    if path is None:
        return
    versions = {seen["peer"]: seen["versions"] for seen in visits if "versions" in seen}
    medians = [row.as_json() for row in report.rows(visits)]
    path.write_text(
        json.dumps({"machine": about, "versions": versions, "medians": medians, "visits": visits}, indent=1)
    )


if __name__ == "__main__":
    main()
